"""The sentence on whether adapting has helped says what the results say, and no more."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from health_files import write_health
from scipy import stats
from small_files import DONE, EVALUATION, LINEAGE
from test_report_page import read_page

from hpt_jax.report import helped
from hpt_jax.report.tables import ResultRow

CHOICES = [{"field": "batch_size", "value": "64", "reason": "as many"}]
ARMS = {"B-direct": 0, "B": 0, "B+T": 100}


def plan(metric: str = "top1", **fields: Any) -> dict[str, Any]:
    runs = [
        {
            "arm": arm,
            "seed": 0,
            "stage_id": f"{arm}-00000000",
            "chain": [f"{arm}-00000000"],
            "pretrain_steps": steps,
            "evaluations": {"linear": "evaluations/linear.json"},
        }
        for arm, steps in ARMS.items()
    ]
    return {
        "study": "adapt",
        "config_id": "0",
        "config": {"evaluations": ["linear"]},
        "dataset": "folder:x",
        "metric": metric,
        "runs": runs,
        "choices": CHOICES,
    } | fields


def rows(**test: float) -> list[ResultRow]:
    """On validation all are alike."""
    return [
        ResultRow(
            "adapt", arm, "", "folder:x", ARMS[arm], "linear", "top1", split, found, 0, "val", "0"
        )
        for arm, value in test.items()
        for split, found in (("val", 0.5), ("test", value))
    ]


def results_of(direct: float, statistics: float, adapted: float) -> list[ResultRow]:
    return rows(**{"B-direct": direct, "B": statistics, "B+T": adapted})


def judged_on(root: Path, images: int) -> Path:
    for arm in ARMS:
        folder = root / "stages" / f"{arm}-00000000" / "evaluations"
        folder.mkdir(parents=True)
        (folder / "linear.json").write_text(json.dumps(EVALUATION | {"test_images": images}))
    return root


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (0.7, "It helped"),
        (0.63, "It made no difference that can be told from chance"),
        (0.57, "It made no difference that can be told from chance"),
        (0.5, "It did harm"),
    ],
)
def test_a_difference_counts_where_so_many_images_can_show_it(after, word, tmp_path):
    said = helped.sentence(plan(), results_of(0.4, 0.6, after), judged_on(tmp_path, 1000))
    chance = 1.96 * math.sqrt((0.6 * 0.4 + after * (1 - after)) / 1000)
    assert said.startswith(f"{word}: on 1,000 test images a linear probe gets {100 * after:.1f} %")
    assert "after 100 steps, 60.0 % before (B, the checkpoint with its batch norm's " in said
    assert f": {100 * (after - 0.6):+.1f} ± {100 * chance:.1f} points" in said
    assert ("--config.export=B exports" in said) == (word != "It helped")


def test_seeds_that_differ_more_than_images_let_them_decide(tmp_path):
    """Of 0.6 before, seeds end 4 below, 1 above and 6 above: nothing, however many images."""
    of_seeds = [
        dataclasses.replace(row, seed=seed, value=row.value + (row.arm == "B+T") * moved)
        for seed, moved in enumerate((-0.04, 0.01, 0.06))
        for row in results_of(0.4, 0.6, 0.6)
    ]
    said = helped.sentence(plan(), of_seeds, judged_on(tmp_path, 50_000))
    half = stats.t.ppf(0.975, 2) * 5 / math.sqrt(3)
    assert said.startswith("It made no difference that can be told from chance")
    assert f"+1.0 ± {half:.1f} points, by chance of so many images and 3 seeds." in said


def test_what_is_one_model_for_all_seeds_is_compared_with_each(tmp_path):
    made = rows(**{"B-direct": 0.6}) + [
        dataclasses.replace(row, seed=seed, value=row.value + moved)
        for seed, moved in ((7, 0.0), (8, 0.1))
        for row in rows(**{"B+T": 0.6})
    ]
    said = helped.sentence(plan(), made, judged_on(tmp_path, 50_000))
    half = stats.t.ppf(0.975, 1) * 10 / math.sqrt(2) / math.sqrt(2)
    assert f"+5.0 ± {half:.1f} points" in said


def test_nobody_is_told_to_export_random_weights(tmp_path):
    made = [dataclasses.replace(row, arm="random") for row in results_of(0.4, 0.6, 0.7)[:2]]
    said = helped.sentence(plan(), [*made, *rows(**{"B+T": 0.3})], judged_on(tmp_path, 1000))
    assert said.startswith("It did harm")
    assert "--config.export" not in said


def test_more_images_show_smaller_differences(tmp_path):
    said = helped.sentence(plan(), results_of(0.4, 0.6, 0.63), judged_on(tmp_path, 10_000))
    assert said.startswith("It helped")


def test_it_is_compared_with_the_better_of_what_was_there_before(tmp_path):
    said = helped.sentence(plan(), results_of(0.9, 0.6, 0.7), judged_on(tmp_path, 1000))
    assert said.startswith("It did harm")
    assert "90.0 % before (B-direct, the checkpoint as it is)" in said


@pytest.mark.parametrize(("metric", "images"), [("macro_auroc", 1000), ("top1", 0)])
def test_where_chance_cannot_be_told_that_is_said(metric, images, tmp_path):
    made = plan(metric)
    said = helped.sentence(made, results_of(0.4, 0.6, 0.61), judged_on(tmp_path, images))
    assert said.startswith("Before and after: ")
    assert "how many of them are chance is not known" in said


def test_nothing_is_said_before_both_are_known_and_of_other_plans(tmp_path):
    every = results_of(0.4, 0.6, 0.7)
    assert helped.sentence(plan(), every[:-2], tmp_path) == ""
    assert helped.sentence(plan(), every[-2:], tmp_path) == ""
    assert helped.sentence(plan(choices=[]), every, tmp_path) == ""
    assert helped.sentence(plan(runs=[]), every, tmp_path) == ""
    assert helped.sentence(plan(config={"evaluations": []}), every, tmp_path) == ""


def write_unlabelled(root: Path, last: float, **verdict: Any) -> dict[str, Any]:
    """A plan without a target, whose stage began with a retrieval of 0.3."""
    made = plan(dataset="", config={"evaluations": []})
    folder = root / "stages" / made["runs"][-1]["stage_id"]
    write_health(folder, 100, **verdict)
    first, *_ = (folder / "measures.csv").read_text().splitlines()
    lines = [first, "0,12.0,0.9,-1.0,0.3", f"100,20.0,0.5,-2.0,{last}", ""]
    (folder / "measures.csv").write_text("\n".join(lines))
    (folder / "done.json").write_text(json.dumps(DONE))
    (folder / "lineage.json").write_text(json.dumps(LINEAGE | {"id": folder.name}))
    return made


@pytest.mark.parametrize(
    ("last", "level", "word"),
    [
        (0.5, "healthy", "It learned: "),
        (0.5, "watch", "It learned: "),
        (0.31, "healthy", "It changed little: "),
        (0.1, "healthy", "It unlearned: "),
        (0.5, "alarm", "It went wrong: the queue is stale; "),
    ],
)
def test_without_labels_the_features_are_compared(last, level, word, tmp_path):
    made = write_unlabelled(tmp_path, last, level=level, text="the queue is stale")
    said = helped.sentence(made, [], tmp_path)
    assert said.startswith(word)
    assert f"to {100 * last:.0f} % after 100 steps, to 30 % before" in said


@pytest.mark.parametrize("name", ["measures.csv", "health.json", "done.json"])
def test_without_a_file_nothing_is_said(name, tmp_path):
    made = write_unlabelled(tmp_path, 0.5)
    path = tmp_path / "stages" / made["runs"][-1]["stage_id"] / name
    for content in ("step,loss\n1,2\n", "{"):
        path.write_text(content)
        if name != "done.json":
            assert helped.sentence(made, [], tmp_path) == ""
    path.unlink()
    assert helped.sentence(made, [], tmp_path) == ""


def test_the_page_begins_with_it(tmp_path):
    made = write_unlabelled(tmp_path, 0.5)
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "adapt.json").write_text(json.dumps(made))
    assert helped.sentence(made, [], tmp_path) in read_page(tmp_path).words
