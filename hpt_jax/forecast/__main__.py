"""The command: `python -m hpt_jax.forecast --config FILE --topology v5e:16x16`, or `--here`.

Before anything is rented: the step of a stage is compiled for chips that are not here, and it is
told what it needs of them. With --here a few steps run on this machine, and it is told what bounds
them.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hpt_jax.errors import UserError

_CONFIG = "--config."


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    asked, rest = _parser().parse_known_args(arguments)
    # Else the process that compiles would outlive this one.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        forecast(asked, _overrides(rest))
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the rows that were told are in --out, where it was given", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m hpt_jax.forecast",
        description=__doc__,
        epilog="--config.FIELD=VALUE sets any field of the config, as with hpt_jax.main.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config file")
    parser.add_argument("--stage", metavar="NAME", help="default: the first that trains")
    parser.add_argument(
        "--topology",
        action="append",
        default=[],
        metavar="CHIPS",
        help="such as v5e:16x16, v5p:2x2x1 or h100:8; may be given several times",
    )
    parser.add_argument(
        "--images_per_chip", default="32", metavar="N,...", help="batches (default: %(default)s)"
    )
    parser.add_argument(
        "--largest", action="store_true", help="go on to the largest batch that fits"
    )
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="for each compile (default: %(default)g)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="keeps the rows, as JSON; begun anew it goes on"
    )
    parser.add_argument("--here", action="store_true", help="times a few steps on this machine")
    return parser


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """(field, text) for each `--config.field=text`."""
    pairs, words = [], list(rest)
    while words:
        flag, equals, text = words.pop(0).partition("=")
        if not flag.startswith(_CONFIG):
            raise UserError(flag, None, "a known flag", "See --help.")
        if not equals and not words:
            raise UserError(flag, None, "a value", f"Write {flag}=VALUE.")
        pairs.append((flag.removeprefix(_CONFIG), text if equals else words.pop(0)))
    return pairs


def forecast(asked: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> None:
    """Does what the flags ask for.

    Raises:
      UserError: a mistake in the flags or in the config.
    """
    images = _counts(asked.images_per_chip)
    if not asked.topology and not asked.here:
        raise UserError("--topology", None, "chips to compile for", "Or say --here.")
    if not asked.minutes > 0:
        raise UserError("--minutes", asked.minutes, "more than 0", "Leave it out.")

    from hpt_jax import config as config_lib
    from hpt_jax.forecast import here, measure, program, rows, run
    from hpt_jax.run import make_plan
    from hpt_jax.telemetry.display import Display

    for topology in asked.topology:
        program.check_name(topology)
        measure.check_compiler(topology)
    display = Display()
    config = config_lib.load(asked.config)
    stages = make_plan(config, overrides).stages
    stage = run.chosen_stage(stages, asked.stage)
    work = run.work_of(stage, stages)
    if asked.here:
        prepared = make_plan(config, overrides, display)  # a compile needs no data
        here.tell(run.chosen_stage(prepared.stages, asked.stage), prepared, work, display)
    if asked.topology:
        table = rows.Table(asked.out)
        with display.working("asking the compiler for the topologies"):
            chips = {name: measure.chips_of(name) for name in asked.topology}
        told = run.Forecast(stage, work, chips, table, asked.minutes, display)
        told.rows(images, asked.largest)


def _counts(text: str) -> list[int]:
    """The numbers of '32,64'."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        expected = "whole numbers above 0, with commas between them"
        raise UserError("--images_per_chip", text, expected, "Write it as 32,64,256.")
    return [int(word) for word in words]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
