"""Every mistake of mutations.py makes the tests fail that are said to see it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS, PACKAGE, Mutation

EVERY_TEST = tuple(dict.fromkeys(test for one in MUTATIONS for test in one.caught_by))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.what)
def test_the_text_that_a_mistake_replaces_is_there(mutation: Mutation) -> None:
    text = (PACKAGE / mutation.file).read_text()
    assert mutation.applied(text) != text


def outcome(package: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Runs tests on a copy of the package; returns pytest's exit code and output."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n0", "-rf", "-p", "no:cacheprovider"),
            *("-o", "pythonpath=", "-m", "", *tests),
        ],
        cwd=PACKAGE.parent,
        # Safe: the current folder, which has the package too, is not looked into, nor is it by
        # pytest's option. Wide: pytest would leave out why a test failed.
        env={
            **os.environ,
            "PYTHONPATH": str(package.parent),
            "PYTHONSAFEPATH": "1",
            "COLUMNS": "400",
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.what)
def test_every_mistake_is_seen(mutation: Mutation, tmp_path: Path) -> None:
    copy = tmp_path / "hpt_jax"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    mistaken = copy / mutation.file
    mistaken.write_text(mutation.applied(mistaken.read_text()))
    code, output = outcome(copy, mutation.caught_by)
    assert code == 1, output
    for test in mutation.caught_by:
        # Seen by what the test asserts, not by a mutation that does not run.
        [line] = [line for line in output.splitlines() if line.startswith(f"FAILED {test} - ")]
        assert line.removeprefix(f"FAILED {test} - ").startswith(("AssertionError", "assert ")), (
            line
        )


@pytest.mark.slow
def test_without_a_mistake_nothing_is_seen(tmp_path: Path) -> None:
    copy = shutil.copytree(PACKAGE, tmp_path / "hpt_jax")
    code, output = outcome(copy, EVERY_TEST)
    assert code == 0, output
