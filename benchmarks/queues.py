"""What length of queue suits a small set, and whether an image's own old keys should be masked.

    python benchmarks/queues.py --data_dir DATA --out DIR [SET ...]

Of each set 500 of its images are pretrained on, 200 steps from a base, three seeds, by queues of a
quarter to 8 times as many keys, with and without the mask; the linear probe and nearest neighbours
on all test images. Prints a table in Markdown, which docs/small-sets.md holds. The same command
continues.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict
from small_runs import RATES, SETS, arguments, make_study, results

from hpt_jax.report.claims import Claim, Results
from hpt_jax.report.tables import ResultRow, points, spread, summarize

IMAGES, STEPS, SEEDS = 500, 200, (0, 1, 2)
QUEUES = (128, 512, 4096)
ALIKE = 512  # about one key an image: what the others are compared with


def name_of(queue: int, masked: bool) -> str:
    """Of the arm."""
    return f"B+T@{queue}{'_masked' if masked else ''}"


def study(place: str, data_dir: str, out: Path) -> ConfigDict:
    """All queues on one set."""
    config = make_study(place, SEEDS, data_dir, out)
    config.optimizer.learning_rate = RATES["base"]
    config.stages.statistics = dict(dataset=SETS[place], trainable="statistics", subset=IMAGES)
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
        of_seeds = Results(rows, evaluation)

        def less(one: str, other: str, of_seeds: Results = of_seeds) -> str:
            verdict = of_seeds.verdict(Claim("", ((one, STEPS),), ((other, STEPS),)))
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
    asked = arguments(__doc__, ["sketch", "aerial"])
    print(f"| images | evaluation | queue | plain | less {ALIKE:,} | masked | masked less plain |")
    print("|---|---|---|---|---|---|---|")
    for place in asked.sets:
        config = study(place, asked.data_dir, asked.out)
        rows = results(config, asked.out / "queues")
        print("\n".join(lines(rows, place)), flush=True)


if __name__ == "__main__":
    main()
