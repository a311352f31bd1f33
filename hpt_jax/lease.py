"""Holding a folder alone where the file system has no locks: a lease, lost without signs of life.

`<folder>/lease/` has files that are numbered upwards; the highest one is its owner's, who changes
it now and then, and writes `FREE` there when done. One that has not changed for long is of a dead
owner. Taking over is to create the next number, which a file system lets one process do alone. No
clock is compared with another machine's, and nothing that another owner writes is ever written to.

A process that stops for longer than that, as of a suspended machine, finds out when it goes on:
`check` comes before everything it writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path

from hpt_jax.errors import UserError

BEAT_SECONDS = 10.0  # between two signs of life
EXPIRY_SECONDS = 60.0  # without one, that end a lease
FREE = "free"

# What this process holds, and what it has last seen of what others do: the text, and since when.
_held: set[Lease] = set()
_seen: dict[Path, tuple[str, float]] = {}


class Lease:
    """A folder that this process holds; made by `take`.

    Args:
      path: the file that says so, its own.
    """

    def __init__(self, path: Path):
        self._path = path
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        _held.add(self)

    @property
    def folder(self) -> Path:
        """What is held."""
        return self._path.parents[1]

    def check(self) -> None:
        """Checks that it is still held.

        Raises:
          UserError: another process has taken it over.
        """
        newest = max(_numbers(self._path.parent), default=0)
        if self._path.exists() and newest == int(self._path.name):
            return
        raise UserError(
            str(self.folder),
            None,
            f"this process to hold it, but {holder(self.folder) or 'another run'} took it over "
            f"after {EXPIRY_SECONDS:g} s without a sign of life (the machine was suspended, or its "
            "file system did not answer)",
            "Nothing that was saved is lost: leave it to that run, or start the same command "
            "again, which waits for it.",
        )

    def close(self) -> None:
        """Gives it back."""
        self._ended.set()
        self._beating.join()
        _held.discard(self)
        with contextlib.suppress(FileNotFoundError), open(self._path, "r+") as file:  # if lost
            file.truncate()
            file.write(FREE)

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT_SECONDS):
            count += 1
            # Not made anew where it is lost; where the file system does not answer, tried again.
            with contextlib.suppress(OSError), open(self._path, "r+") as file:
                file.write(_sign(count))


def take(folder: Path) -> Lease | None:
    """Takes a folder that nobody holds; None where somebody does.

    That an owner is dead shows only after `EXPIRY_SECONDS` of asking for its folder.
    """
    place = folder.absolute() / "lease"
    place.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(place), default=0)
    if number and not _is_over(place / str(number)):
        return None
    path = place / str(number + 1)
    try:
        with open(path, "x") as file:
            file.write(_sign(0))
    except FileExistsError:  # another process was quicker
        return None
    if max(_numbers(place)) > number + 1:  # many were, and this number has been and gone
        path.unlink(missing_ok=True)
        return None
    for old in _numbers(place):
        if old <= number:
            (place / str(old)).unlink(missing_ok=True)
    return Lease(path)


def holder(folder: Path) -> str:
    """Who holds a folder, in words; '' where nobody does by a lease."""
    place = folder.absolute() / "lease"
    try:
        text = (place / str(max(_numbers(place), default=0))).read_text(errors="replace")
    except OSError:
        return ""
    return "" if text == FREE else text.partition(",")[0]


def check(path: Path) -> None:
    """Checks that what this process holds by a lease, of what a file is below, is still held.

    Raises:
      UserError: another process has taken it over.
    """
    for lease in list(_held):
        if lease.folder in path.absolute().parents:
            lease.check()


def _is_over(path: Path) -> bool:
    """Whether the owner of a file has given it back, or has shown no sign of life for long."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:  # taken over this moment
        return False
    if text == FREE:
        return True
    now = time.monotonic()
    last, since = _seen.get(path, (None, now))
    if last != text:
        since = now
    _seen[path] = (text, since)
    return now - since >= EXPIRY_SECONDS


def _sign(count: int) -> str:
    """A sign of life; all of a process are of one length, so that one replaces another."""
    return f"process {os.getpid()} on {socket.gethostname()}, sign of life {count:012}"


def _numbers(place: Path) -> list[int]:
    """The numbers of all owners that are known of."""
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return []
    return [int(name) for name in names if re.fullmatch("[1-9][0-9]*", name)]
