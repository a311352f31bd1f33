"""What a benchmark gives: rows that are held against `goals.csv`, printed, and kept as CSV."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path

GOALS = Path(__file__).with_name("goals.csv")
COLUMNS = ("name", "command", "ours", "reference", "unit", "ratio", "goal", "met")
_AT_MOST, _AT_LEAST = ", at most", ", at least"


@dataclasses.dataclass(frozen=True)
class Measured:
    """One number.

    Attributes:
      name: as in `goals.csv`.
      ours: what hpt_jax took or gave.
      reference: what something real beside it took or gave, in the same run; None where the goal
        is about `ours` itself.
    """

    name: str
    ours: float
    reference: float | None = None

    @property
    def ratio(self) -> float | None:
        """Of ours to the reference."""
        return None if self.reference is None else self.ours / self.reference


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A number that could not be measured, and why: an extra or data are absent."""

    name: str
    why: str


@dataclasses.dataclass(frozen=True)
class Goal:
    """A line of `goals.csv`.

    Attributes:
      name: of the number.
      suite: 'short' or 'long'.
      goal: for the ratio where there is a reference, else for the number itself.
      unit: ends in ', at most' or ', at least'.
    """

    name: str
    suite: str
    goal: float
    unit: str

    @property
    def limit(self) -> str:
        """The goal as a table shows it."""
        return f"{'>=' if self.unit.endswith(_AT_LEAST) else '<='} {self.goal:g}"

    def met_by(self, found: Measured) -> bool:
        """Whether a number reaches it."""
        value = found.ours if found.ratio is None else found.ratio
        return value >= self.goal if self.unit.endswith(_AT_LEAST) else value <= self.goal


def goals() -> dict[str, Goal]:
    """Name -> goal, in the order of the file."""
    with GOALS.open(newline="") as file:
        rows = [
            Goal(r["name"], r["suite"], float(r["goal"]), r["unit"]) for r in csv.DictReader(file)
        ]
    assert all(goal.unit.endswith((_AT_MOST, _AT_LEAST)) for goal in rows)
    return {goal.name: goal for goal in rows}


def line(found: Measured | Skipped, goal: Goal) -> str:
    """A line of the printed table, the limit last."""
    if isinstance(found, Skipped):
        return f"{found.name:36} skipped: {found.why}"
    of = "" if found.reference is None else f"{found.reference:.4g}"
    ratio = "" if found.ratio is None else f"{found.ratio:.3g}"
    met = "met" if goal.met_by(found) else "MISSED"
    what = goal.unit.removesuffix(_AT_MOST).removesuffix(_AT_LEAST)
    return f"{found.name:36} {found.ours:10.4g} {of:>10} {ratio:>8}  {what:40} {met:6} {goal.limit}"


HEAD = f"{'name':36} {'ours':>10} {'reference':>10} {'ratio':>8}  {'of':40} {'':6} limit"


def write(path: Path, found: Iterable[tuple[Measured, Goal, str]]) -> None:
    """Writes the rows (number, goal, command that repeats it) as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one, goal, command in found:
            reference = "" if one.reference is None else f"{one.reference:.6g}"
            ratio = "" if one.ratio is None else f"{one.ratio:.4g}"
            met = str(goal.met_by(one)).lower()
            row = (
                one.name,
                command,
                f"{one.ours:.6g}",
                reference,
                goal.unit,
                ratio,
                f"{goal.goal:g}",
            )
            writer.writerow((*row, met))
