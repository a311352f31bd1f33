"""The benchmarks' goals are read as they are meant, and their table says what it says."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from benchmarks import run, table


def test_goals_are_all_bounds_and_thirteen_or_more_are_short() -> None:
    goals = table.goals()
    assert sum(goal.suite == "short" for goal in goals.values()) >= 13
    assert {goal.suite for goal in goals.values()} == {"short", "long"}
    assert all(goal.limit[:2] in ("<=", ">=") for goal in goals.values())


@pytest.mark.parametrize(
    ("name", "ours", "reference", "met"),
    [
        ("step_resnet50_64px_b16", 0.9, 1.0, True),
        ("step_resnet50_64px_b16", 0.91, 1.0, False),
        ("input_against_pillow", 2.9, 1.0, False),
        ("input_against_pillow", 6.0, 2.0, True),
        ("input_crops", 519.0, None, False),
        ("import_hpt_jax", 0.02, None, True),
    ],
)
def test_a_goal_is_met_by_its_direction(
    name: str, ours: float, reference: float | None, met: bool, tmp_path: Path
) -> None:
    found, goal = table.Measured(name, ours, reference), table.goals()[name]
    assert goal.met_by(found) is met
    table.write(tmp_path / "benchmarks.csv", [(found, goal, "a command, with a comma")])
    with (tmp_path / "benchmarks.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == table.COLUMNS
    assert row["met"] == str(met).lower()
    assert row["command"] == "a command, with a comma"
    assert table.line(found, goal).endswith(goal.limit)


def test_what_cannot_be_measured_says_why_and_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is absent
    run.main(["--out", str(tmp_path), "--only", "step"])
    assert "step_aerial" in (told := capsys.readouterr().out)
    assert told.count("skipped: needs the extra torch") == 5
    assert not (tmp_path / "benchmarks.csv").exists()
