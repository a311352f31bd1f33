"""How far wrong the recommendation when to stop is, which knows no labels.

    python benchmarks/stopping.py --data_dir DATA --out DIR [SET ...]

Of each set and of 500 of its images, from random weights and from a base, one seed, one run under
the schedule 'anytime' that ends after each of the budgets: the linear probe on test images, and
retrieval. Then, by what `hpt_jax.stopping` says at the end of each but the last, what twice the
steps did to the probe; and how alike probe and retrieval rank the trainings of a set. Prints three
tables in Markdown, which docs/stopping.md holds. The same command continues.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from schedules import STARTS, study
from scipy import stats
from small_runs import SETS, arguments, results

from hpt_jax import plan, run, stopping
from hpt_jax.report.claims import Results
from hpt_jax.report.tables import ResultRow, points
from hpt_jax.shapes import LINEAGE
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import read_json, stage_folder

BUDGETS = (50, 100, 200, 400, 800)
SUBSETS = (1.0, 500)
SAID = {"levelled off": "levelled off", "likely to help": "go on", "": "nothing"}


@dataclasses.dataclass(frozen=True)
class End:
    """The end of one training.

    Attributes:
      images: that it trained on.
      probe: accuracy on test, a fraction.
      retrieval: of its features.
      said: 'levelled off', 'go on' or 'nothing'.
    """

    images: int
    probe: float
    retrieval: float
    said: str


def end(stage: plan.Stage, probe: float, workdir: Path) -> End:
    """What a finished stage's files say."""
    folder = stage_folder(workdir, stage.id)
    images = read_json(folder.lineage, LINEAGE)["dataset"]["pretrained_on"]
    measures = read_metrics(folder.measures)
    text = stopping.advice(stage, images, measures)
    said = next(word for part, word in SAID.items() if part in text)
    return End(images, probe, measures[-1]["retrieval"], said)


def ends(config: ConfigDict, rows: list[ResultRow], workdir: Path) -> dict[str, list[End]]:
    """Arm -> its ends, by ascending budgets."""
    probe = Results(rows, "linear")
    stages = {(one.arm, one.pretrain_steps): one.stage for one in run.make_plan(config).runs}
    return {
        arm: [
            end(stages[place], probe.mean(place), workdir)
            for place in ((f"{arm}@anytime", steps) for steps in BUDGETS)
        ]
        for arm in STARTS.values()
    }


def summary(every: Sequence[Sequence[End]]) -> list[str]:
    """What twice the steps brought, by what was said."""
    lines = []
    pairs = [pair for of_arm in every for pair in itertools.pairwise(of_arm)]
    for said in SAID.values():
        brought = [then.probe - now.probe for now, then in pairs if now.said == said]
        if brought:
            worse = sum(one < 0 for one in brought)
            span = f"{points(min(brought))} to {points(max(brought))}"
            cells = f"{len(brought)} | {points(statistics.fmean(brought))} | {span} | {worse}"
            lines.append(f"| {said} | {cells} |")
    return lines


def likeness(found: Sequence[End]) -> float:
    """Spearman's rank correlation of probe and retrieval."""
    pairs = [(one.probe, one.retrieval) for one in found]
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def main() -> None:
    """The command."""
    asked = arguments(__doc__, list(SETS))
    heads = " | ".join(f"{steps} steps" for steps in BUDGETS)
    print(f"| set | images | arm | {heads} |\n|---|---|---|{'---|' * len(BUDGETS)}")
    every, alike = [], []
    for place, subset in itertools.product(asked.sets, SUBSETS):
        if (place, subset) == ("photographs", 1.0):
            continue  # 20,000, of which 800 steps are five passes
        config = study(place, asked.data_dir, asked.out, ("anytime",), BUDGETS, (0,), subset)
        config.name += f"_stopping_{subset}".removesuffix("_1.0")
        workdir = asked.out / "schedules"
        of_arms = ends(config, results(config, workdir), workdir)
        both = [one for found in of_arms.values() for one in found]
        alike.append(f"| {place} | {both[0].images:,} | {likeness(both):.2f} |")
        for arm, found in of_arms.items():
            every.append(found)
            cells = " | ".join(f"{100 * one.probe:.1f} ({one.retrieval:.2f})" for one in found)
            print(f"| {place} | {found[0].images:,} | {arm} | {cells} |", flush=True)
    print("\n| said | trainings | twice the steps brought | from, to | below 0 |")
    print("|---|---|---|---|---|")
    print("\n".join(summary(every)))
    print("\n| set | images | rank correlation |\n|---|---|---|")
    print("\n".join(alike))


if __name__ == "__main__":
    main()
