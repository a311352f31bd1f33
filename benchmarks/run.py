"""All benchmarks, as ratios against something real, beside their goals.

    python -m benchmarks.run --out DIR [--long --data_dir DATA] [--only PART,...]

Prints a table with the limit in the last column, and writes DIR/benchmarks.csv. The short parts
take under 20 minutes on two quiet cores; `--long` adds the compiler of a TPU, the cost as work
grows, and the time to a representation. Each part is a file beside this one, and can be run alone.
A goal that is missed is a result, and no error. `NOTES.md` tells what was predicted and what came.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
import time
from pathlib import Path

from benchmarks import table

SHORT = ("step", "host_input", "around", "evaluation")
LONG = ("tpu", "growth", "representation")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a part may need: a folder for its files, and where the image sets are, if anywhere."""

    out: Path
    data_dir: Path | None


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--long", action="store_true", help="also what takes hours")
    parser.add_argument(
        "--data_dir", type=Path, metavar="DATA", help="the folders of the image sets"
    )
    parser.add_argument("--only", metavar="PART,...", help=", ".join((*SHORT, *LONG)))
    given = parser.parse_args(arguments)
    parts = given.only.split(",") if given.only else [*SHORT, *(LONG if given.long else ())]
    if unknown := set(parts) - {*SHORT, *LONG}:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}: {', '.join((*SHORT, *LONG))}")
    # Before PyTorch is imported: its threads would spin on the cores that JAX is measured on.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    given.out.mkdir(parents=True, exist_ok=True)

    asked, goals, kept, began = (
        Asked(given.out, given.data_dir),
        table.goals(),
        [],
        time.monotonic(),
    )
    print(table.HEAD, flush=True)
    for part in parts:
        data = " --data_dir DATA" if part in LONG else ""
        command = f"python -m benchmarks.run --out DIR --only {part}{data}"
        for found in importlib.import_module(f"benchmarks.{part}").rows(asked):
            goal = goals[found.name]
            print(table.line(found, goal), flush=True)
            if isinstance(found, table.Measured):
                kept.append((found, goal, command))
                table.write(given.out / "benchmarks.csv", kept)
    met = sum(goal.met_by(found) for found, goal, _ in kept)
    minutes = (time.monotonic() - began) / 60
    print(f"{met} of {len(kept)} goals met, in {minutes:.1f} minutes on {os.cpu_count()} cores")


if __name__ == "__main__":
    main(sys.argv[1:])
