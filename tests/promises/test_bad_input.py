"""Whatever a user feeds in either works or ends with one clear message and exit code 2."""

from __future__ import annotations

import os
from pathlib import Path

import bad_input
import pytest
from bad_input import CASES, Case

RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"


def check(case: Case, root: Path) -> None:
    if "not be read" in case.name and os.geteuid() == 0:
        pytest.skip("root may read everything")
    outcome = bad_input.run_case(case, root)
    told = outcome.err if case.exit else outcome.out
    assert outcome.exit == case.exit, outcome
    assert case.says in told
    assert "Traceback" not in outcome.out + outcome.err
    if case.exit:
        assert "expected" in outcome.err
        assert len(outcome.err) < 10_000
    else:
        assert outcome.err == ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_works_or_is_one_clear_message(
    case: Case, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not case.whole:  # images that were read are like any others: `pytest -m slow` goes on
        request.getfixturevalue("no_training")
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_works_to_the_end_or_is_one_clear_message(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_every_case_stands_in_the_table_of_the_documentation() -> None:
    section = RELIABILITY.read_text().partition("## Bad input")[2]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [line for line in lines if line.rstrip(" |")[-1] in "02"]
    expected = [(case.name, str(case.exit)) for case in CASES]
    assert [
        (row.split(" | ")[0][2:], row.rstrip(" |").split(" | ")[-1]) for row in rows
    ] == expected
