"""Figures show the numbers that brute force finds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hpt_jax.report.figures import BASE, DATA, Curve, draw, draw_bars, draw_curves, draw_drops, save
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
    for seeds, words in (((0, 1, 2), "n = 3 seeds"), ((4,), "one seed")):
        (legend,) = draw(rows(seeds=seeds), ORDER).legends
        assert words in legend.get_title().get_text()
        assert words in draw_bars(rows(seeds=seeds), ORDER, ["linear"]).get_supxlabel()


def test_nothing_of_a_figure_overlaps_or_is_cut():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    many = variants([f"arm_with_a_long_name_{i}@T" for i in range(12)])
    figures = [
        draw(rows(), ORDER),
        draw(many, []),
        draw_bars(rows(), ORDER, ["linear", "knn"]),
        draw_drops(variants([f"{a}@{p}" for a in ("T", "B+T") for p in ("moco_v2", "crop")]), []),
    ]
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        words = list(figure.legends)
        words += [text for text in (figure._supxlabel,) if text is not None]
        for axes in figure.axes:
            words += [axes.xaxis.label, axes._left_title, *axes.texts]
            words += [label for label in axes.get_xticklabels() if label.get_text()]
        boxes = [word.get_window_extent(renderer) for word in words]
        for i, box in enumerate(boxes):
            assert box.x0 >= 0, words[i]
            assert box.y0 >= 0, words[i]
            assert box.x1 <= figure.bbox.x1, words[i]
            assert box.y1 <= figure.bbox.y1, words[i]
            for other, word in zip(boxes[:i], words, strict=False):
                apart = box.x0 >= other.x1 or other.x0 >= box.x1
                assert apart or box.y0 >= other.y1 or other.y0 >= box.y1, (words[i], word)


@pytest.mark.parametrize("steps", [STEPS, (200,), ()], ids=str)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=str)
def test_the_files_are_a_legible_png_and_an_svg(tmp_path, steps, seeds):
    path = tmp_path / "report" / "linear.png"
    save(draw(rows(seeds, steps, ("linear",), ("test",)), ORDER), path)
    assert path.with_suffix(".svg").read_text().rstrip().endswith("</svg>")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 960
        assert 690 < image.height < 800
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


def variants(arms, steps=(10, 30), seeds=(0, 1, 2)):
    """Random results of arms, each at two budgets; those without `+` or `T` take no steps."""
    rng = np.random.default_rng(1)
    return [
        ResultRow("s", arm, "x", "d", n, "linear", "top1", split, rng.random(), seed, "val", "c")
        for arm in arms
        for n in (steps if "T" in arm else (0,))
        for seed in seeds
        for split in ("test", "val")
    ]


def of_longest(found, arm):
    last = max(r.pretrain_steps for r in found if r.arm == arm)
    return np.array(percents(found, arm, last, "linear"))


@pytest.mark.parametrize(
    ("axis", "names", "xs"),
    [
        (DATA, ("1%", "10%", "100%"), (1, 10, 100)),
        (BASE, ("base_200", "base_1000", "base_20000"), (200, 1000, 20000)),
    ],
)
def test_variants_of_an_arm_are_one_line_over_their_numbers(axis, names, xs):
    arms = ["random", "T", *(f"B+T@{name}" for name in names), *(f"B@{name}" for name in names)]
    found = variants(arms)
    axes = draw(found, arms, axis=axis).axes[0]
    lines = {container.get_label(): container for container in axes.containers}
    assert list(lines) == ["B+T", "B"]
    for line, container in lines.items():
        values = [of_longest(found, f"{line}@{name}") for name in names]
        np.testing.assert_array_equal(container[0].get_xdata(orig=False), xs)
        np.testing.assert_allclose(container[0].get_ydata(orig=False), np.mean(values, axis=1))
    dashed = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "--"}
    assert list(dashed) == ["random (0 steps)", "T (30 steps)"]
    np.testing.assert_allclose(dashed["T (30 steps)"].get_ydata(), np.mean(of_longest(found, "T")))


def test_bars_are_each_arm_at_its_longest():
    arms = ["random", "B", "T", "B+T"]
    found = variants(arms)
    axes = draw_bars(found, arms, ["linear"]).axes[0]
    bars = {bar.get_label(): bar[0] for bar in axes.containers if hasattr(bar, "patches")}
    assert list(bars) != []
    low = axes.get_xlim()[0]
    assert f"from {low:g}" in axes.get_xlabel()
    texts = [text.get_text() for text in axes.texts]
    for place, arm in enumerate(arms):
        values = of_longest(found, arm)
        bar = bars[arm]
        assert low <= min(of_longest(found, one).min() for one in arms)
        np.testing.assert_allclose(bar.get_x() + bar.get_width(), values.mean())
        np.testing.assert_allclose(bar.get_y() + bar.get_height() / 2, place)
        assert f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" in texts
    dots = np.vstack([c.get_offsets() for c in axes.collections if len(c.get_offsets()) > 1])
    expected = np.concatenate([of_longest(found, arm) for arm in arms])
    np.testing.assert_allclose(sorted(dots[:, 0]), sorted(expected))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == arms
    assert axes.yaxis_inverted()


def test_bars_have_a_panel_for_each_evaluation():
    panels = draw_bars(rows(), ORDER, ["linear", "knn"]).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["linear", "knn"]


def test_drops_are_taken_seed_by_seed():
    policies = ["moco_v2", "no_grayscale", "no_color", "crop_blur", "crop"]
    arms = [f"{init}@{policy}" for policy in policies[::-1] for init in ("T", "B+T")]
    found = variants([*arms, "random"])
    # A seed that the full policy lacks has nothing to be compared to.
    found = [r for r in found if (r.arm, r.seed) != ("T@moco_v2", 2)]
    axes = draw_drops(found, arms).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == policies
    lines = {container.get_label(): container for container in axes.containers}
    assert list(lines) == ["T", "B+T"]
    for init, seeds in (("T", 2), ("B+T", 3)):
        expected = [
            of_longest(found, f"{init}@{policy}")[:seeds] - of_longest(found, f"{init}@moco_v2")
            for policy in policies
        ]
        line, _, (bars,) = lines[init]
        np.testing.assert_allclose(line.get_ydata(orig=False), np.mean(expected, axis=1), atol=1e-9)
        lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(lengths, 2 * np.std(expected, axis=1, ddof=1), atol=1e-9)
        np.testing.assert_allclose(np.round(line.get_xdata(orig=False)), range(5))


def test_curves_of_one_name_share_a_colour_and_panels_an_axis():
    curves = [
        Curve(panel, line, (1, 2, end), (seed, 2, 3))
        for panel in ("loss", "accuracy", "norm", "spread")
        for line, end in (("T", 10), ("B+T", 900))
        for seed in (0, 1)
    ]
    panels = draw_curves(curves, "step").axes
    assert [axes.get_title(loc="left") for axes in panels] == ["loss", "accuracy", "norm", "spread"]
    for axes in panels:
        shown = [(line.get_label(), line.get_ydata().tolist()) for line in axes.lines]
        assert shown == [(n, [s, 2, 3]) for n in ("T", "B+T") for s in (0, 1)]
        assert len({(line.get_label(), line.get_color()) for line in axes.lines}) == 2
        assert axes.get_xscale() == "log"
    assert len({axes.get_xlim() for axes in panels}) == 1
