"""The schedule 'anytime' against separate cosine runs: accuracy, and steps taken.

    python benchmarks/schedules.py --data_dir DATA --out DIR [SET ...]

Of each set, from random weights and from a base, three seeds, the same budgets under both
schedules; the linear probe and nearest neighbours on test images. Prints two tables in Markdown,
which docs/anytime.md holds. The same command continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from small_runs import RATES, SETS, arguments, make_study, results

from hpt_jax import run
from hpt_jax.estimate import shared_steps
from hpt_jax.report.claims import Claim, Results
from hpt_jax.report.tables import ResultRow, points

BUDGETS = (50, 100, 200, 400)
SEEDS = (0, 1, 2)
SCHEDULES = ("cosine", "anytime")
STARTS = {"random": "T", "base": "B+T"}


def study(
    place: str,
    data_dir: str,
    out: Path,
    schedules: Sequence[str] = SCHEDULES,
    budgets: Sequence[int] = BUDGETS,
    seeds: Sequence[int] = SEEDS,
    subset: int | float = 1.0,
) -> ConfigDict:
    """All budgets of one set, or of some of its images, under each schedule."""
    config = make_study(place, seeds, data_dir, out)
    for start, arm in STARTS.items():
        for schedule in schedules:
            name = f"{start}_{schedule}"
            optimizer = dict(schedule=schedule, learning_rate=RATES[start])
            config.stages[name] = dict(
                dataset=SETS[place], subset=subset, steps=tuple(budgets), optimizer=optimizer
            )
            before = ("base",) if start == "base" else ()
            config.arms[f"{arm}@{schedule}"] = (*before, name)
    return config


def differences(rows: list[ResultRow], place: str) -> list[str]:
    """Anytime less cosine at each budget, seed by seed."""
    lines = []
    for evaluation in ("linear", "knn"):
        of_seeds = Results(rows, evaluation)
        for arm in STARTS.values():
            cells = []
            for steps in BUDGETS:
                places = [((f"{arm}@{schedule}", steps),) for schedule in reversed(SCHEDULES)]
                found = of_seeds.verdict(Claim("", *places))
                low, high = found.interval or (0.0, 0.0)
                cells.append(f"{points(found.mean)} ({points(low)} to {points(high)})")
            lines.append(f"| {place} | {arm} | {evaluation} | {' | '.join(cells)} |")
    return lines


def steps_taken(config: ConfigDict) -> dict[str, int]:
    """Schedule -> the steps that all its stages took."""
    taken = dict.fromkeys(SCHEDULES, 0)
    stages = run.make_plan(config).stages
    for stage in stages:
        if stage.trains:
            steps = stage.steps - shared_steps(stage, stages)
            taken[stage.config.optimizer.schedule] += steps
    return taken


def main() -> None:
    """The command."""
    asked = arguments(__doc__, ["sketch", "aerial", "x-ray"])
    heads = " | ".join(f"{steps} steps" for steps in BUDGETS)
    print(f"| images | arm | evaluation | {heads} |\n|---|---|---|{'---|' * len(BUDGETS)}")
    counted = []
    for place in asked.sets:
        config = study(place, asked.data_dir, asked.out)
        rows = results(config, asked.out / "schedules")
        print("\n".join(differences(rows, place)), flush=True)
        counted.append((place, steps_taken(config)))
    print("\n| images | steps, cosine | steps, anytime |\n|---|---|---|")
    for place, taken in counted:
        print(f"| {place} | {taken['cosine']:,} | {taken['anytime']:,} |")


if __name__ == "__main__":
    main()
