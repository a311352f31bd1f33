"""What a person sees on the terminal: lines, progress bars, and that work goes on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hpt_jax.errors import printable

# Where there is no terminal a line goes out this often, so that a log file stays readable.
SECONDS_BETWEEN_LINES = 15.0
# What is done sooner shows nothing: it would only flicker.
SECONDS_UNSEEN = 2.0
# What lines begin with that are told in quiet mode too.
WARNINGS = ("note:", "alarm:", "skipped ")

Update = Callable[[int, str], None]
# (name, total) -> a context that yields `update(done, note)`, as of `Display.progress`.
Watch = Callable[[str, int], AbstractContextManager[Update]]


@contextlib.contextmanager
def unwatched(name: str, total: int) -> Iterator[Update]:
    """A `Watch` that shows nothing."""
    yield lambda done, note: None


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(_speed(task.speed) if task.speed else "", style="cyan")


def _speed(rate: float) -> str:
    return f"{rate:.1f}/s" if rate >= 0.95 else f"{1 / rate:.1f} s each"


class _Either(ProgressColumn):
    """One column for work of a known amount, another where it is not known."""

    def __init__(self, known: ProgressColumn, unknown: ProgressColumn):
        self._known, self._unknown = known, unknown
        super().__init__()

    def render(self, task: Task) -> RenderableType:
        return (self._unknown if task.total is None else self._known).render(task)


class _Timer(threading.Timer):
    """One that keeps no process alive."""

    def __init__(self, seconds: float, then: Callable[[], None]):
        super().__init__(seconds, then)
        self.daemon = True


class Display:
    """Prints to a console; bars on a terminal, a line now and then where there is none.

    Args:
      console: where to; standard output by default.
      quiet: whether to show warnings, results and their paths alone.
      now: seconds, monotonic.
      timer: as `threading.Timer`.
    """

    def __init__(
        self,
        console: Console | None = None,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
        timer: Callable[[float, Callable[[], None]], threading.Timer] = _Timer,
    ):
        self.console = console or Console(highlight=False)
        self._quiet, self._now, self._timer = quiet, now, timer
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._tasks: set[TaskID] = set()

    def line(self, text: str) -> None:
        """One line, as `printable`; in quiet mode only if it begins like a warning."""
        if not self._quiet or text.startswith(WARNINGS):
            self.outcome(text)

    def outcome(self, text: str) -> None:
        """One line that is told in quiet mode too."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Tells of work of unknown length: how long it has taken, once that is seconds."""
        if self._quiet:
            yield
        elif self.console.is_terminal:
            with self._task(name, None, 0):
                yield
        else:
            with self._later(lambda: self.line(f"{name} ...")):
                yield

    @contextlib.contextmanager
    def progress(self, name: str, total: int, start: int = 0, first: str = "") -> Iterator[Update]:
        """Yields `update(done, note)`; shows name, bar, rate, time left and the note.

        Args:
          name: of the work.
          total: its amount; 0: not known.
          start: how much of it is done.
          first: what happens before the first update, where that is something else.
        """
        before = f"{name}: {first}" if first else name
        if self._quiet:
            with unwatched(name, total) as update:
                yield update
        elif not self.console.is_terminal:
            with self._later(lambda: self.line(f"{before} ...")) as timer:
                yield self._lines(name, total, timer)
        else:
            amount = None if first else total or None
            with self._task(before, amount, start) as (bars, task):
                waits = bool(first)

                def advance(done: int, note: str) -> None:
                    nonlocal waits
                    if waits:  # time and rate begin where that has ended
                        waits = False
                        told = printable(name)
                        bars.reset(task, total=total or None, completed=done, description=told)
                    bars.update(task, completed=done, note=note)

                yield advance

    @contextlib.contextmanager
    def _later(self, then: Callable[[], None]) -> Iterator[threading.Timer]:
        """Does something when this has lasted long enough to be told of."""
        timer = self._timer(SECONDS_UNSEEN, then)
        timer.start()
        try:
            yield timer
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def _task(self, name: str, total: int | None, start: int) -> Iterator[tuple[Progress, TaskID]]:
        """A line of the display, seen after a while; all that go on at once share one display."""
        with self._lock:
            self._bars = bars = self._bars or self._new_bars()
            task = bars.add_task(
                printable(name), total=total, completed=start, visible=False, note=""
            )
            self._tasks.add(task)

        def show() -> None:
            with self._lock:
                if task in self._tasks:
                    bars.update(task, visible=True)
                    bars.start()
                    bars.refresh()

        try:
            with self._later(show):
                yield bars, task
        finally:
            with self._lock:
                self._tasks.remove(task)
                bars.remove_task(task)
                if not self._tasks:
                    bars.stop()
                    self._bars = None

    def _new_bars(self) -> Progress:
        nothing = TextColumn("")
        return Progress(
            TextColumn("{task.description}", markup=False),
            _Either(BarColumn(), SpinnerColumn()),
            _Either(MofNCompleteColumn(), TimeElapsedColumn()),
            _Rate(),
            _Either(TimeRemainingColumn(), nothing),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            transient=True,
            get_time=self._now,
        )

    def _lines(self, name: str, total: int, timer: threading.Timer) -> Update:
        began: float | None = None
        last, start = 0.0, 0

        def update(done: int, note: str) -> None:
            nonlocal began, last, start
            now = self._now()
            if began is None:  # what comes before the end of the first step is compiling
                timer.cancel()
                began = last = now
                start = done
            if now - last < SECONDS_BETWEEN_LINES:
                return
            last = now
            rate = (done - start) / (now - began)
            told = f"{_speed(rate)}  {(total - done) / rate:.0f} s left  " if rate else ""
            self.line(f"{name}: {done}/{total}  {told}{note}")

        return update
