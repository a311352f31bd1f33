"""Whether adapting a model to a set of images has helped, in a sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpt_jax.errors import UserError
from hpt_jax.report.claims import Place
from hpt_jax.report.tables import ResultRow, points, student, summarize
from hpt_jax.shapes import EVALUATION, HEALTH
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import read_json, stage_folder

# What the arms of adapt are that train nothing.
_BEFORE = {
    "B-direct": "B-direct, the checkpoint as it is",
    "B": "B, the checkpoint with its batch norm's statistics of these images",
    "random": "random, no checkpoint",
}
_PLAIN = {"linear": "a linear probe", "knn": "nearest neighbours"}
# Of `retrieval`: what is less says nothing.
_MOVED = 0.02


def sentence(plan: Mapping[str, Any], rows: Sequence[ResultRow], root: Path) -> str:
    """Before against after, of a plan that `configs/adapt.py` or one like it made.

    Args:
      plan: of `plans/NAME.json`.
      rows: of its study, from `results.csv`.
      root: the workdir.

    Returns:
      One line of text; '' for other plans, and where it is not known yet.
    """
    if not plan.get("choices") or not plan["runs"]:
        return ""
    if not plan["dataset"]:
        return _by_features(plan, root)
    return _by_labels(plan, rows, root) if plan["config"]["evaluations"] else ""


def _by_labels(plan: Mapping[str, Any], rows: Sequence[ResultRow], root: Path) -> str:
    """By the first evaluation: what was trained on it, the best on validation, against before."""
    evaluation = plan["config"]["evaluations"][0]
    mine = [row for row in rows if row.evaluation == evaluation]
    test = {(one.arm, one.pretrain_steps): one.mean for one in summarize(mine)}
    # The best there was, by test itself: it is not to be flattered by what validation prefers.
    before = [place for place in test if not place[1]]
    after = [one for one in summarize(mine, "val") if one.pretrain_steps]
    if not before or not after:
        return ""
    start, last = max(before, key=test.__getitem__), max(after, key=lambda one: one.mean)
    was, now = test[start], test[last.arm, last.pretrain_steps]
    images = _test_images(plan, evaluation, root)
    chance = _by_chance(was, now, images) if plan["metric"] == "top1" and images else None
    if chance is not None:
        chance = max(chance, _by_seeds(mine, start, (last.arm, last.pretrain_steps)))
    on = f"{images:,} test images" if images else "test"
    told = (
        f"on {on} {_PLAIN.get(evaluation, evaluation)} gets {100 * now:.1f} % ({plan['metric']}) "
        f"after {last.pretrain_steps:,} steps, {100 * was:.1f} % before "
        f"({_BEFORE.get(start[0], start[0])}): {points(now - was)}"
    )
    if chance is None:
        return f"Before and after: {told} points; how many of them are chance is not known."
    if abs(now - was) <= chance:
        word = "It made no difference that can be told from chance"
    else:
        word = "It helped" if now > was else "It did harm"
    seeds = f" and {last.seeds} seeds" if last.seeds > 1 else ""
    line = f"{word}: {told} ± {100 * chance:.1f} points, by chance of so many images{seeds}."
    if word == "It helped" or start[0] == "random":
        return line
    return f"{line} --config.export={start[0]} exports what was there before."


def _test_images(plan: Mapping[str, Any], evaluation: str, root: Path) -> int:
    """0 where no result tells."""
    for run in plan["runs"]:
        file = run["evaluations"].get(evaluation)
        path = stage_folder(root, run["stage_id"]).path / (file or "none")
        found = read_json(path, EVALUATION)
        if found:
            return found.get("test_images", 0)
    return 0


def _by_chance(one: float, other: float, images: int) -> float:
    """Half of the 95 % interval of the difference of two accuracies, as of independent images."""
    return 1.96 * math.sqrt((one * (1 - one) + other * (1 - other)) / images)


def _by_seeds(rows: Sequence[ResultRow], start: Place, last: Place) -> float:
    """Half of the 95 % interval of the mean difference over seeds; 0 for one seed.

    What is one model, however many seeds there are, has a result of one seed alone.
    """
    test: dict[Place, dict[int, float]] = {start: {}, last: {}}
    for row in rows:
        place = (row.arm, row.pretrain_steps)
        if row.split == "test" and place in test:
            test[place][row.seed] = row.value
    was = statistics.fmean(test[start].values())
    found = [value - test[start].get(seed, was) for seed, value in test[last].items()]
    std = statistics.stdev(found) if len(found) > 1 else None
    low, high = student(0.0, std, len(found)) or (0.0, 0.0)
    return (high - low) / 2


def _by_features(plan: Mapping[str, Any], root: Path) -> str:
    """By how well views are told apart, and the verdict on the training."""
    folder = stage_folder(root, plan["runs"][-1]["stage_id"])
    try:
        measures = read_metrics(folder.measures)
    except UserError:
        return ""
    verdict = read_json(folder.health, HEALTH)
    if verdict is None or not folder.is_done or not measures or "retrieval" not in measures[0]:
        return ""
    if measures[0]["step"]:  # what was before is not there any more
        return ""
    was, now = (measures[place]["retrieval"] for place in (0, -1))
    steps = int(measures[-1]["step"])
    told = (
        f"an image's other view is found again to {100 * now:.0f} % after {steps:,} steps, to "
        f"{100 * was:.0f} % before (retrieval: 0 by chance, 100 always first)"
    )
    if verdict["level"] == "alarm":
        return f"It went wrong: {verdict['text']}; {told}."
    if abs(now - was) <= _MOVED:
        return f"It changed little: {told}."
    if now < was:
        return f"It unlearned: {told}."
    rest = "What that is worth to your task, the neighbours on the page show, or a few labels"
    return f"It learned: {told}. {rest}."
