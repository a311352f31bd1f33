"""The verdicts on real trainings: healthy ones, and those that were broken on purpose.

tests/health_runs/ holds the curves that `python benchmarks/broken_runs.py` kept.
"""

from __future__ import annotations

import json
from pathlib import Path

import broken_runs
import pytest

from hpt_jax import health

RUNS = Path(__file__).parent / "health_runs"
DOCS = Path(__file__).parents[1] / "docs" / "health.md"
HEALTHY = [name for name in broken_runs.cases() if name.startswith("healthy")]


def kept(name: str) -> dict:
    return json.loads((RUNS / broken_runs.curves_of(name, Path()).name).read_text())


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_raises_no_alarm_at_any_step(name):
    assert {one.level for one in broken_runs.verdicts(kept(name))} == {health.LEVELS[0]}


@pytest.mark.parametrize("steps", [50, 150])
def test_the_quickstart_raises_no_alarm_where_its_embeddings_are_closest(steps):
    """Digits from random weights, seed 1: the lowest spread of all its trainings."""
    curves = json.loads((RUNS / f"quickstart-scratch-{steps}.json").read_text())
    assert "alarm" not in {one.level for one in broken_runs.verdicts(curves)}


def test_a_collapse_that_passes_is_no_alarm():
    """The tutorial's base, a wide ResNet-18 from random weights: its rank falls from 84 to 5."""
    curves = json.loads((RUNS / "tutorial-base.json").read_text())
    known = health.Facts(**curves["facts"])
    said = health.history(known, curves["metrics"], curves["measures"])
    assert [one.level for one in said] == ["healthy", "healthy", *["watch"] * 5]


def test_the_documented_verdicts_are_those_of_the_kept_curves():
    documented = DOCS.read_text().splitlines()
    rows = [broken_runs.table_row(name, kept(name)) for name in broken_runs.cases()]
    assert [line for line in documented if line in rows] == rows
