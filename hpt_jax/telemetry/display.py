"""What a person sees on the terminal: lines and progress bars."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hpt_jax.errors import printable

# Where there is no terminal a line goes out this often, so that a log file stays readable.
SECONDS_BETWEEN_LINES = 15.0


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="cyan")


class Display:
    """Prints to a console; a bar on a terminal, a line now and then where there is none."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)

    def line(self, text: str) -> None:
        """One line, as `printable`."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(
        self, name: str, total: int, start: int = 0
    ) -> Iterator[Callable[[int, str], None]]:
        """Yields `update(done, note)`; shows name, bar, rate, time left and the note."""
        if not self.console.is_terminal:
            yield self._lines(name, total)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(printable(name), total=total, completed=start, note="")
            yield lambda done, note: bars.update(task, completed=done, note=note)

    def _lines(self, name: str, total: int) -> Callable[[int, str], None]:
        began: float | None = None
        last, start = 0.0, 0

        def update(done: int, note: str) -> None:
            nonlocal began, last, start
            now = time.monotonic()
            if began is None:  # what comes before the end of the first step is compiling
                began = last = now
                start = done
            if now - last < SECONDS_BETWEEN_LINES:
                return
            last = now
            rate = (done - start) / (now - began)
            left = (total - done) / rate if rate else float("inf")
            self.line(f"{name}: {done}/{total}  {rate:.1f}/s  {left:.0f} s left  {note}")

        return update
