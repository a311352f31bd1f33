"""The command: `python -m hpt_jax.main --config configs/NAME.py --workdir DIR`."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hpt_jax.errors import Mistake, UserError, nearest
from hpt_jax.signals import Interrupted, Stop

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from hpt_jax.processes import Team
    from hpt_jax.telemetry.display import Display

HELP = """usage: python -m hpt_jax.main --config FILE --workdir DIR [--config.FIELD=VALUE ...]

Hierarchical self-supervised pretraining. Running the same command again continues, and does
nothing when all is done.

  --config FILE           a config file, such as configs/quickstart.py
  --workdir DIR           where results go; made if it is not there; also gs://BUCKET/DIR, s3://...
  --config.FIELD=VALUE    sets any field of the config, for example
                          --config.dry_run=True or --config.stages.target.steps=50
  --only ID[,ID...]       trains and evaluates these stages alone, and what they start from; all
                          of a study, over several machines: python -m hpt_jax.jobs --help
  --quiet, -q             tells nothing but warnings, the results and where they are
  --help                  prints this

Several processes train together where each runs the same command. On a TPU pod, under Slurm, Open
MPI and Kubernetes they find each other; elsewhere each is told:

  --coordinator HOST:PORT where process 0 listens
  --processes N           how many there are
  --process I             which one this is, from 0
  --wait_minutes M        how long to wait for one that makes no progress (30)"""

NEEDED = {"--config": "FILE", "--workdir": "DIR"}
PLACE = {"--coordinator": "HOST:PORT", "--processes": "N", "--process": "I"}
WAIT = {"--wait_minutes": "M"}
OPTIONAL = {"--only": "ID[,ID...]", **PLACE, **WAIT}
QUIET = ("--quiet", "-q")


# What is wrong with a disk and not with the program; with a file of the workdir, these too.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_FILE = (errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code, where no other process takes part in the run."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    stop, team, code = Stop(), None, 0
    try:
        flags, overrides = parse(arguments)
        with stop.listening():
            asked, team, display = start(flags, overrides)
            with explained(flags["--workdir"]):
                run_command(asked, flags, overrides, display, stop, team)
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        code = 2
    except Interrupted as error:
        print(f"stopped by {error}; the same command continues", file=sys.stderr)
        code = 128 + error.number
    except BaseException:
        if team:
            team.fail()
        raise
    if team:
        team.end(code)
    return code


def start(
    flags: dict[str, str], overrides: list[tuple[str, str]]
) -> tuple[ConfigDict, Team, Display]:
    """Reads the config, and starts JAX in all processes of the run; a dry run needs no others.

    Raises:
      UserError: there is no such config, or the processes do not come together.
    """
    # Imported here, so that --help and a wrong flag are answered at once.
    from hpt_jax.telemetry.display import Display

    display = Display(quiet=QUIET[0] in flags)
    with display.working("starting"):
        from hpt_jax import config, processes, resolve, run  # noqa: F401, which takes a while

    place, wait = processes.asked_for(flags)
    asked = config.load(flags["--config"])
    if resolve.value_of("dry_run", asked, overrides):
        return asked, processes.Leader(), display
    place = place or processes.detected()
    if place is None:
        return asked, processes.Leader(), display
    command = [f"{field}={text}" for field, text in overrides]
    return asked, processes.join(place, command, wait, display.line), display


def run_command(
    asked: ConfigDict,
    flags: dict[str, str],
    overrides: list[tuple[str, str]],
    display: Display,
    stop: Stop,
    team: Team,
) -> None:
    """Runs what the flags ask for, or takes part in it.

    Raises:
      UserError: a user's mistake.
      Interrupted: as asked by a signal.
    """
    from hpt_jax import follow, run
    from hpt_jax.processes import Follower

    if isinstance(team, Follower):
        follow.follow(asked, overrides, stop, team)
    run.run(
        asked,
        flags["--workdir"],
        overrides,
        display,
        config_path=flags["--config"],
        stop=stop,
        leader=team,
        only=flags["--only"].split(",") if "--only" in flags else (),
    )


@contextlib.contextmanager
def explained(workdir: str) -> Iterator[None]:
    """What is wrong with the machine, as a user's mistake.

    Raises:
      UserError: the workdir's disk is full or may not be written to, or memory is full.
    """
    import jax

    from hpt_jax import mirror, remote

    root = mirror.home_of(workdir) if remote.is_address(workdir) else os.path.abspath(workdir)
    try:
        yield
    except OSError as error:
        below = os.path.join(root, "")
        ours = error.errno in _FILE and os.path.abspath(str(error.filename)).startswith(below)
        if error.errno not in _DISK and not ours:
            raise
        where = f" ({error.filename})" if error.filename else ""
        expected = f"a disk that can be written to, but: {error.strerror}{where}"
        fix = "Mend that, and start the same command again: it continues."
        raise UserError("--workdir", workdir, expected, fix) from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in reason:
            raise
        expected = f"sizes that fit into memory, but: {reason}"
        fix = "Lower batch_size, image_size, model.width, moco.queue_size or input.memory_gib."
        raise UserError("memory", None, expected, fix) from error


def parse(
    arguments: Sequence[str],
    optional: Mapping[str, str] = OPTIONAL,
    groups: tuple[str, ...] = (),
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Takes the command line apart; `--flag=value` and `--flag value` are the same.

    Not by argparse, which reports one mistake at a time, with a page on usage.

    Args:
      arguments: as the shell gives them.
      optional: flags beside `--config` and `--workdir`, and what their values are.
      groups: what further flags with a value begin with, such as '--slurm.'.

    Returns:
      flag -> value, and `--quiet` -> '' where it is given; (field, text) for each `--config.field`.

    Raises:
      UserError: for unknown, missing and empty flags, all at once.
    """
    flags: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    mistakes: list[Mistake] = []
    rest, plain = list(arguments), {**NEEDED, **optional}
    while rest:
        flag, equals, text = rest.pop(0).partition("=")
        if flag in QUIET and not equals:
            flags[QUIET[0]] = ""
        elif flag not in plain and not flag.startswith(("--config.", *groups)):
            known = nearest(flag, (*plain, "--config.FIELD", "--quiet", "--help"))
            mistakes.append(Mistake(flag, None, "a known flag", known))
            if not equals and flag.startswith("--") and rest and not rest[0].startswith("--"):
                rest.pop(0)  # its value
        elif not equals and (not rest or rest[0].startswith("--")):
            mistakes.append(Mistake(flag, None, "a value", f"Write {flag}=VALUE."))
            flags.setdefault(flag, "?")
        else:
            text = text if equals else rest.pop(0)
            if flag.startswith("--config."):
                overrides.append((flag.removeprefix("--config."), text))
            else:
                flags[flag] = text
    for flag, value in plain.items():
        if (flag in NEEDED or flag in flags) and not flags.get(flag):
            mistakes.append(Mistake(flag, flags.get(flag), "a value", f"Write {flag} {value}."))
    if mistakes:
        raise UserError.of(mistakes)
    return flags, overrides


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
