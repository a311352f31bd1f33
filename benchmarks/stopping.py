"""How far wrong the recommendation when to stop is, which knows no labels.

    python benchmarks/stopping.py --data_dir DATA --out DIR [SET ...]

Of each set, from random weights and from a base, one seed, one run under the schedule 'anytime'
that ends after each of the budgets; the linear probe on test images after each.
"""

from __future__ import annotations

from schedules import study
from small_runs import SETS, arguments, results

BUDGETS = (50, 100, 200, 400, 800)


def main() -> None:
    """The command."""
    asked = arguments(__doc__, [place for place in SETS if place != "photographs"])
    for place in asked.sets:
        config = study(place, asked.data_dir, asked.out, ("anytime",), BUDGETS, (0,))
        config.name += "_stopping"
        rows = results(config, asked.out / "schedules")
        print(place, len(rows), flush=True)


if __name__ == "__main__":
    main()
