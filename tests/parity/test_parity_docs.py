"""docs/fidelity.md names tests that exist (not more than that), and the mistakes that are tried."""

from __future__ import annotations

import re
from pathlib import Path

import mutations

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fidelity.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(?:[\w/]+/)?(test_\w+\.py)::(test_\w+)", PAGE)
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    gone = [f"{file}::{test}" for file, test in named if f"def {test}(" not in files.get(file, "")]
    assert len(named) > 30
    assert not gone


def test_the_page_lists_the_mistakes_that_are_tried() -> None:
    assert mutations.table() in PAGE
