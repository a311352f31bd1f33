"""A run that is killed at any moment, and started again, ends as one that nobody disturbed.

`pytest -m slow tests/promises/test_kills.py` is the long version. HPT_JAX_KILLS_LOG=FILE keeps its
log: the phase and step of every kill, and how many fell into each phase.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kills import Harness, differences, kill_until

# What one run is killed in.
OFTEN = (
    *(("start", "resume") * 2),
    *(("compile", "step", "save", "between", "evaluation") * 3),
    *(("report",) * 2),
)


@pytest.mark.slow
def test_a_run_that_is_killed_equals_an_undisturbed_one(images: Path, tmp_path: Path) -> None:
    harness = Harness(tmp_path, images, more=False, seed=0)
    got = kill_until(harness, ["resident"], ("step", "save"), kills=2, least=0)
    print(harness.table())
    # What was compared holds every kind of result, and a changed bit is seen.
    kinds = ("metrics.csv", "measures.csv", "health", "results.csv", "knn", "neighbours", "queue")
    for kind in (*kinds, "export", "trace"):
        name = next(name for name in got if kind in name)
        changed = got[name][:-1] + bytes([got[name][-1] ^ 1])
        assert differences(got, {**got, name: changed}) == [name]


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(images: Path, tmp_path: Path) -> None:
    harness = Harness(tmp_path, images, more=True, seed=0)
    try:
        kill_until(harness, ["resident", "host"], OFTEN, kills=200, least=10)
    finally:
        print(harness.table())
        if log := os.environ.get("HPT_JAX_KILLS_LOG"):
            Path(log).write_text(harness.table() + "\n")
    assert len(harness.kills) >= 200
    assert min(harness.counts.values()) >= 10
