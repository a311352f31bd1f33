"""The report page while a run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from hpt_jax import plan
from hpt_jax.report import page, results
from hpt_jax.telemetry.display import Display
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import stage_folder

# At most this share of a run's time goes into its page, and no page follows another within seconds.
SHARE = 0.01
SECONDS = 10.0


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


class Live:
    """Makes `report/index.html` again now and then.

    Args:
      root: the workdir.
      study: the one that runs, with which the page begins.
      display: told once where the page is.
      now: seconds, monotonic.
    """

    def __init__(
        self,
        root: Path,
        study: str,
        display: Display,
        now: Callable[[], float] = time.monotonic,
    ):
        self._root, self._study, self._display, self._now = root, study, display, now
        self._started = ""
        self._wait, self._due = SECONDS, -math.inf

    def refresh(self, stage: plan.Stage, evaluation: str = "") -> None:
        """Makes the page if it is due; the first time it is.

        Args:
          stage: that is being trained, or evaluated.
          evaluation: which one; '': it is being trained.

        Raises:
          OSError: as of a disk that is full.
        """
        began = self._now()
        if began < self._due:
            return
        first, updated = not self._started, _clock()
        self._started = self._started or updated
        # Loading it more often would show the same page.
        seconds = math.ceil(self._wait)
        running = page.Running(self._doing(stage, evaluation), self._started, updated, seconds)
        with self._display.working("drawing the report"):
            rows = results.collect(self._root, lambda text: None)
            path = page.write(self._root, rows, self._study, running=running)
        if first:
            self._display.line(f"report: {path}, made again while this runs")
        ended = self._now()
        self._wait = max(SECONDS, (ended - began) / SHARE)
        self._due = ended + self._wait

    def _doing(self, stage: plan.Stage, evaluation: str) -> str:
        if evaluation:
            return f"{stage.id}, {evaluation}"
        if not stage.trains:
            return stage.id
        rows = read_metrics(stage_folder(self._root, stage.id).metrics)
        done = int(rows[-1]["step"]) if rows else 0
        return f"{stage.id}, step {done:,} of {stage.steps:,}"
