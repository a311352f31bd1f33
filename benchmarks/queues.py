"""What length of queue suits a small set, and whether an image's own old keys should be masked.

    python benchmarks/queues.py --data_dir DATA --out DIR [SET ...]

Of each set 500 of its images are pretrained on, 300 steps from a base, three seeds, by queues of a
quarter to 32 times as many keys, with and without the mask; the linear probe and nearest neighbours
on all test images. Prints a table in Markdown, which docs/small-sets.md holds. The same command
continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from broken_runs import RATES, SETS, base, make_config
from ml_collections import ConfigDict

from hpt_jax import run
from hpt_jax.report.claims import Claim, Results
from hpt_jax.report.tables import ResultRow, points, spread, summarize
from hpt_jax.telemetry.display import Display

IMAGES, STEPS, SEEDS = 500, 300, (0, 1, 2)
QUEUES = (128, 256, 512, 1024, 2048, 16384)
ALIKE = 512  # about one key an image: what the others are compared with


def name_of(queue: int, masked: bool) -> str:
    """Of the arm."""
    return f"B+T@{queue}{'_masked' if masked else ''}"


def study(place: str, data_dir: str, out: Path) -> ConfigDict:
    """All queues on one set."""
    config = make_config(SETS[place], "random", data_dir, out)
    config.name = place.replace(" ", "_").replace("'", "")
    config.seeds = SEEDS
    config.target = SETS[place]
    config.optimizer.learning_rate = RATES["base"]
    config.stages.base = dict(init=str(base(data_dir, out)), trainable="nothing")
    config.stages.statistics = dict(dataset=SETS[place], trainable="statistics", subset=IMAGES)
    del config.stages["target"], config.arms["T"]
    config.arms["B"] = ("base", "statistics")
    for queue in QUEUES:
        for masked in (False, True):
            arm = name_of(queue, masked)
            stage = arm.replace("B+T@", "queue_")
            moco = dict(queue_size=queue, mask_own_keys=masked)
            config.stages[stage] = dict(dataset=SETS[place], steps=STEPS, subset=IMAGES, moco=moco)
            config.arms[arm] = ("base", stage)
    return config


def lines(rows: list[ResultRow], place: str) -> list[str]:
    """A row for each queue: test accuracy without and with the mask, and their difference."""
    found = []
    for evaluation in ("linear", "knn"):
        mine = [row for row in rows if row.evaluation == evaluation]
        test = {one.arm: one for one in summarize(mine)}
        results = Results(rows, evaluation)

        def less(one: str, other: str, results: Results = results) -> str:
            verdict = results.verdict(Claim("", ((one, STEPS),), ((other, STEPS),)))
            low, high = verdict.interval or (0.0, 0.0)
            return f"{points(verdict.mean)} ({points(low)} to {points(high)})"

        found.append(f"| {place} | {evaluation} | none (B) | {spread(test['B'])} | | | |")
        for queue in QUEUES:
            plain, masked = name_of(queue, masked=False), name_of(queue, masked=True)
            against = less(plain, name_of(ALIKE, masked=False)) if queue != ALIKE else ""
            cells = (f"{queue:,}", spread(test[plain]), against, spread(test[masked]))
            found.append(
                f"| {place} | {evaluation} | {' | '.join(cells)} | {less(masked, plain)} |"
            )
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("sets", nargs="*", default=["sketch", "aerial", "x-ray"])
    arguments = parser.parse_args()
    print(f"| images | evaluation | queue | plain | less {ALIKE:,} | masked | masked less plain |")
    print("|---|---|---|---|---|---|---|")
    for place in arguments.sets:
        config = study(place, arguments.data_dir, arguments.out)
        rows = run.run(config, arguments.out / "queues", display=Display(quiet=True))
        mine = [row for row in rows if row.study == config.name]
        print("\n".join(lines(mine, place)), flush=True)


if __name__ == "__main__":
    main()
