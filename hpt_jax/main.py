"""The command: `python -m hpt_jax.main --config configs/NAME.py --workdir DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hpt_jax.errors import UserError, nearest

FLAGS = ("--config", "--workdir", "--help")


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpt_jax.main",
        description="Hierarchical self-supervised pretraining. Running the same command again "
        "continues, and does nothing when all is done.",
        epilog="Any field of the config: --config.FIELD=VALUE, for example "
        "--config.dry_run=True or --config.stages.target.steps=50.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config file")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where results go")
    known, rest = parser.parse_known_args(arguments)
    try:
        overrides = parse_overrides(rest)
        # Imported here, so that --help answers at once.
        from hpt_jax import config, run

        run.run(config.load(known.config), known.workdir, overrides)
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--config.a.b=text` and `--config.a.b text` as (field, text) pairs.

    Raises:
      UserError: for anything else.
    """
    overrides, rest = [], list(arguments)
    while rest:
        flag, equals, text = rest.pop(0).partition("=")
        if not flag.startswith("--config."):
            raise UserError(flag, None, "a known flag", nearest(flag, FLAGS))
        if not equals:
            if not rest:
                raise UserError(flag, None, "a value", f"Write {flag}=VALUE.")
            text = rest.pop(0)
        overrides.append((flag.removeprefix("--config."), text))
    return overrides


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
