"""SIGTERM and SIGINT: nothing that is not saved is lost, and nothing that is delays the end.

Preemptible machines send SIGTERM some seconds before they vanish. A handler of Python's runs only
between two of its own instructions, and so not for the minutes that a compilation takes; a thread
that waits for the signal ends the process then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A signal asked to stop, and everything is saved.

    Attributes:
      number: of the signal; the process exits with 128 + this.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Whether a signal has asked to stop; as a plain object, outside `listening`, none ever does.

    A signal ends the process at once, with exit code 128 + its number, unless something is not
    saved: then the first one only asks, and the second ends it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unsaved = False
        self._asked: int | None = None

    @property
    def asked(self) -> bool:
        """Whether to save and to leave at the end of this step."""
        return self._asked is not None

    @property
    def number(self) -> int:
        """Of the signal that has asked; 0: none has."""
        return self._asked or 0

    def ask(self, number: int) -> None:
        """Asks to stop, as a signal of that number to another process of this run has."""
        with self._lock:
            self._asked = self._asked or number

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this `hold` may be called; when it is left, everything is saved.

        Raises:
          Interrupted: on leaving, if a signal has asked meanwhile.
        """
        try:
            yield
        finally:
            with self._lock:
                self._unsaved = False
        if self._asked is not None:
            raise Interrupted(self._asked)

    def hold(self) -> None:
        """Tells that something is not saved, so that signals wait for it."""
        with self._lock:
            self._unsaved = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over SIGTERM and SIGINT; in the main thread only."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # What the parent process has set to be ignored, as nohup and shells do, stays so.
        taken = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
        # The handlers do nothing themselves: that they are there makes Python write to the pipe
        # the moment a signal comes, whatever the main thread is in.
        before = {one: signal.signal(one, lambda number, frame: None) for one in taken}
        old_pipe = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_pipe)
            for one, handler in before.items():
                signal.signal(one, handler)
            os.close(writing)  # the watcher reads the end of the pipe
            watcher.join()
            os.close(reading)

    def _watch(self, pipe: int) -> None:
        while number := os.read(pipe, 1):
            if number[0] not in SIGNALS:
                continue
            with self._lock:
                if self._asked is not None or not self._unsaved:
                    _end(number[0])
                self._asked = number[0]
            _tell(f"{signal.Signals(number[0]).name}: saves after this step and stops; again to "
                  "stop at once")  # fmt: skip


def _end(number: int) -> None:
    """Ends the process without waiting for anything that it is in."""
    _tell(f"stopped by {signal.Signals(number).name}; the same command continues")
    if os.isatty(1):
        os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(128 + number)


def _tell(text: str) -> None:
    """To stderr, past buffers and locks that another thread may hold."""
    with contextlib.suppress(OSError):  # nobody may be listening any more
        os.write(2, f"\n{text}\n".encode())
