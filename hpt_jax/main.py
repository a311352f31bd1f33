"""The command: `python -m hpt_jax.main --config configs/NAME.py --workdir DIR`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence

from hpt_jax.errors import Mistake, UserError, nearest
from hpt_jax.signals import Interrupted, Stop

HELP = """usage: python -m hpt_jax.main --config FILE --workdir DIR [--config.FIELD=VALUE ...]

Hierarchical self-supervised pretraining. Running the same command again continues, and does
nothing when all is done.

  --config FILE           a config file, such as configs/quickstart.py
  --workdir DIR           where results go; made if it is not there
  --config.FIELD=VALUE    sets any field of the config, for example
                          --config.dry_run=True or --config.stages.target.steps=50
  --only ID[,ID...]       trains and evaluates these stages alone, and what they start from; all
                          of a study, over several machines: python -m hpt_jax.jobs --help
  --quiet, -q             tells nothing but warnings, the results and where they are
  --help                  prints this"""

NEEDED = {"--config": "FILE", "--workdir": "DIR"}
OPTIONAL = {"--only": "ID[,ID...]"}
QUIET = ("--quiet", "-q")


# What is wrong with a disk and not with the program; with a file of the workdir, these too.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_FILE = (errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    stop = Stop()
    try:
        flags, overrides = parse(arguments)
        with stop.listening():
            run_command(flags, overrides, stop)
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"stopped by {error}; the same command continues", file=sys.stderr)
        return 128 + error.number
    return 0


def run_command(flags: dict[str, str], overrides: list[tuple[str, str]], stop: Stop) -> None:
    """Runs what the flags ask for.

    Raises:
      UserError: also if the workdir's disk is full or may not be written to, or memory is full.
      Interrupted: as asked by a signal.
    """
    # Imported here, so that --help and a wrong flag are answered at once.
    from hpt_jax.telemetry.display import Display

    display = Display(quiet=QUIET[0] in flags)
    with display.working("starting"):
        import jax

        from hpt_jax import config, run

    asked = config.load(flags["--config"])
    workdir = flags["--workdir"]
    only = flags["--only"].split(",") if "--only" in flags else []
    try:
        run.run(
            asked, workdir, overrides, display, config_path=flags["--config"], stop=stop, only=only
        )
    except OSError as error:
        below = os.path.join(os.path.abspath(workdir), "")
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
