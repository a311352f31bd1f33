"""How far wrong the recommendation when to stop is, which knows no labels.

    python benchmarks/stopping.py --data_dir DATA --out DIR [SET ...]

Of each set and of 500 of its images, from random weights and from a base, one seed, one run under
the schedule 'anytime' that ends after each of the budgets. At the end of each: what
`hpt_jax.stopping` says, and what twice the steps did to the linear probe on test images. Prints two
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
from small_runs import SETS, arguments, results

from hpt_jax import run, stopping
from hpt_jax.report.claims import Results
from hpt_jax.report.tables import ResultRow, points
from hpt_jax.shapes import LINEAGE
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import read_json, stage_folder

BUDGETS = (50, 100, 200, 400, 800)
SUBSETS = (1.0, 500)
SAID = {"levelled off": "levelled off", "likely to help": "go on", "": "nothing yet"}


@dataclasses.dataclass(frozen=True)
class Case:
    """The end of one training.

    Attributes:
      place: the set.
      images: that it trained on.
      arm: T or B+T.
      steps: it took.
      passes: over the images.
      gain: of retrieval in the last two doublings before the rate fell; None: not known.
      said: 'levelled off', 'go on' or 'nothing yet'.
      brought: by twice the steps, to the linear probe on test; a difference of fractions.
    """

    place: str
    images: int
    arm: str
    steps: int
    passes: float
    gain: float | None
    said: str
    brought: float


def cases(place: str, config: ConfigDict, rows: list[ResultRow], workdir: Path) -> list[Case]:
    """Every budget of a set but the last."""
    probe, found = Results(rows, "linear"), []
    stages = {(one.arm, one.pretrain_steps): one.stage for one in run.make_plan(config).runs}
    for arm in STARTS.values():
        name = f"{arm}@anytime"
        for steps, twice in itertools.pairwise(BUDGETS):
            stage = stages[name, steps]
            folder = stage_folder(workdir, stage.id)
            images = read_json(folder.lineage, LINEAGE)["dataset"]["pretrained_on"]
            measures = [
                {column: float(cell) for column, cell in row.items()}
                for row in read_metrics(folder.measures)
            ]
            text = stopping.advice(stage, images, measures)
            case = Case(
                place,
                images,
                arm,
                steps,
                steps * stage.config.batch_size / images,
                stopping.gain([row for row in measures if row["step"] <= stage.branch_step]),
                next(word for part, word in SAID.items() if part in text),
                probe.mean((name, twice)) - probe.mean((name, steps)),
            )
            found.append(case)
    return found


def summary(every: Sequence[Case]) -> list[str]:
    """What twice the steps brought, by what was said."""
    lines = []
    for said in SAID.values():
        brought = [one.brought for one in every if one.said == said]
        if brought:
            mean, least, most = statistics.fmean(brought), min(brought), max(brought)
            span = f"{points(least)} to {points(most)}"
            lines.append(f"| {said} | {len(brought)} | {points(mean)} | {span} |")
    return lines


def main() -> None:
    """The command."""
    asked = arguments(__doc__, [place for place in SETS if place != "photographs"])
    print("| set | images | arm | steps | passes | gain | said | twice the steps brought |")
    print("|---|---|---|---|---|---|---|---|")
    every = []
    for place, subset in itertools.product(asked.sets, SUBSETS):
        config = study(place, asked.data_dir, asked.out, ("anytime",), BUDGETS, (0,), subset)
        config.name += f"_stopping_{subset}".removesuffix("_1.0")
        workdir = asked.out / "schedules"
        for one in cases(place, config, results(config, workdir), workdir):
            every.append(one)
            gain = "" if one.gain is None else points(one.gain)
            cells = f"{one.steps} | {one.passes:.0f} | {gain} | {one.said}"
            print(
                f"| {one.place} | {one.images:,} | {one.arm} | {cells} | {points(one.brought)} |",
                flush=True,
            )
    print("\n| said | trainings | twice the steps brought | from, to |\n|---|---|---|---|")
    print("\n".join(summary(every)))


if __name__ == "__main__":
    main()
