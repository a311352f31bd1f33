"""What was chosen on validation, and on what grounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Selection:
    """One choice; `dataclasses.asdict` suits JSON.

    Attributes:
      chosen: the settings that were chosen, by name.
      metric: the validation metric that decided.
      value: that metric at what was chosen, a fraction in [0, 1].
      candidates: every candidate's settings and its metric, under 'value'.
      curve: (step, metric) of the chosen candidate while it was trained; empty where it has none.
    """

    chosen: Mapping[str, float]
    metric: str
    value: float
    candidates: tuple[Mapping[str, float], ...]
    curve: tuple[tuple[int, float], ...] = ()


class Best:
    """The best moment of one candidate's training, by validation.

    It is looked for in the second half of the steps, as in the authors' code; of equally good
    moments the earliest wins.

    Args:
      steps: of the whole training.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self.curve: list[tuple[int, float]] = []
        self.step, self.value = 0, -1.0  # a metric is never below 0

    def is_better(self, step: int, value: float) -> bool:
        """Notes a score; whether it is the best so far, and the weights are to be kept."""
        self.curve.append((step, value))
        if 2 * step < self.steps or value <= self.value:
            return False
        self.step, self.value = step, value
        return True
