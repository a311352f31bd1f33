"""Figures show the numbers that brute force finds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hpt_jax.report.figures import accuracy_against_steps, draw
from hpt_jax.report.tables import ResultRow

ORDER = ("random", "B", "T", "B+T", "B+T@no_color")
STEPS = (25, 50, 100, 200)


def rows(seeds=(0, 1, 2), steps=STEPS, evaluations=("linear", "knn"), splits=("test", "val")):
    rng = np.random.default_rng(0)
    return [
        ResultRow(
            "digits",
            arm,
            f"{arm}-{n}-{seed}",
            "package:digits",
            n,
            evaluation,
            "top1",
            split,
            rng.uniform(0.4, 0.9),
            seed,
            "val",
            "c0",
        )
        for arm in ORDER
        for n in ((0,) if arm in ("random", "B") else steps)
        for seed in seeds
        for evaluation in evaluations
        for split in splits
    ]


def percents(found, arm, n, evaluation):
    return [
        100 * r.value
        for r in found
        if (r.arm, r.pretrain_steps, r.evaluation, r.split) == (arm, n, evaluation, "test")
    ]


@pytest.mark.parametrize("evaluation", ["linear", "knn"])
def test_lines_are_the_means_over_seeds(evaluation):
    found = rows()
    axes = draw(found, ORDER, evaluation).axes[0]
    lines = {container.get_label(): container for container in axes.containers}
    assert list(lines) == ["T", "B+T", "B+T@no_color"]
    for arm, container in lines.items():
        line, _, (bars,) = container
        values = [percents(found, arm, n, evaluation) for n in STEPS]
        np.testing.assert_array_equal(line.get_xdata(orig=False), STEPS)
        np.testing.assert_allclose(line.get_ydata(orig=False), np.mean(values, axis=1))
        lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(lengths, 2 * np.std(values, axis=1, ddof=1))
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(n) for n in STEPS]


def test_arms_without_steps_are_dashed_lines_at_their_means():
    found = rows()
    axes = draw(found, ORDER).axes[0]
    lines = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "--"}
    assert list(lines) == ["random (0 steps)", "B (0 steps)"]
    for arm in ("random", "B"):
        height = np.mean(percents(found, arm, 0, "linear"))
        np.testing.assert_allclose(lines[f"{arm} (0 steps)"].get_ydata(), height)


def test_every_seed_is_a_dot():
    found = rows()
    axes = draw(found, ORDER).axes[0]
    dots = np.vstack([c.get_offsets() for c in axes.collections if len(c.get_offsets()) > 1])
    expected = [
        (r.pretrain_steps, 100 * r.value)
        for r in found
        if (r.evaluation, r.split) == ("linear", "test") and r.pretrain_steps
    ]
    np.testing.assert_allclose(sorted(dots.tolist()), sorted(expected))


def test_an_arm_looks_the_same_whichever_arms_have_results():
    found = rows()
    few = [r for r in found if r.arm == "B+T"]
    one, other = (draw(some, ORDER).axes[0].containers for some in (found, few))
    looks = [
        {c.get_label(): (c[0].get_color(), c[0].get_marker()) for c in containers}
        for containers in (one, other)
    ]
    assert looks[0]["B+T"] == looks[1]["B+T"]
    assert len(set(looks[0].values())) == 3


def test_the_caption_tells_the_number_of_seeds():
    assert "n = 3 seeds" in draw(rows(), ORDER).get_supxlabel()
    assert "one seed" in draw(rows(seeds=(4,)), ORDER).get_supxlabel()


@pytest.mark.parametrize("steps", [STEPS, (200,), ()], ids=str)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=str)
def test_the_file_is_a_legible_png(tmp_path, steps, seeds):
    path = tmp_path / "report" / "linear.png"
    accuracy_against_steps(rows(seeds, steps, ("linear",), ("test",)), path, ORDER)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (1200, 675)
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_labels_of_crowded_steps_keep_apart():
    steps = (50, 51, 52, 500, 5000, 400_000)
    axes = draw(rows(steps=steps), ORDER).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["52", "500", "5k", "400k"]
    np.testing.assert_array_equal(axes.containers[0][0].get_xdata(), steps)


def test_no_result_of_an_evaluation_and_mixed_metrics_are_refused():
    found = rows()
    with pytest.raises(ValueError, match="finetune"):
        draw(found, ORDER, "finetune")
    auroc = ResultRow(
        "digits",
        "T",
        "x",
        "package:digits",
        25,
        "linear",
        "macro_auroc",
        "test",
        0.5,
        0,
        "val",
        "c0",
    )
    with pytest.raises(ValueError, match="one metric"):
        draw([*found, auroc], ORDER)
