"""The one exception for what a user, not the program, got wrong."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence

_MOST_LISTED = 40
_LONGEST = 300  # letters of one value or one word that a message shows


def printable(text: str) -> str:
    """Text of others, such as a file's name, on one line of a terminal.

    What would break the line, move the cursor or cannot be encoded is escaped as Python does it,
    bytes of a name that is no UTF-8 as bytes.
    """
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(letter: str) -> str:
    byte = ord(letter) - 0xDC00  # where Python puts a byte that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(letter)[1:-1]


def _shortened(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}...{text[-half:]}"


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One thing to mend: which field, what it holds, what was expected, how to fix it."""

    field: str
    value: object
    expected: str
    fix: str

    def __str__(self) -> str:
        value = "" if self.value is None else f" = {_shortened(repr(self.value))}"
        # A history of steps is told on lines of its own.
        fix = "\n".join(printable(line) for line in self.fix.split("\n"))
        text = printable(f"{self.field}{value}: expected {self.expected}.")
        return re.sub(rf"\S{{{_LONGEST},}}", lambda word: _shortened(word[0]), f"{text} {fix}")


class UserError(Exception):
    """A user's mistake: a command prints it without traceback and exits 2.

    Args:
      field: the config field, flag or file that is wrong, as the user wrote it.
      value: what it holds; None leaves it out of the message.
      expected: what would have been right.
      fix: one sentence that says what to do.
    """

    def __init__(self, field: str, value: object, expected: str, fix: str):
        self.mistakes: tuple[Mistake, ...] = (Mistake(field, value, expected, fix),)
        super().__init__(str(self))

    @classmethod
    def of(cls, mistakes: Sequence[Mistake]) -> UserError:
        """One error for several mistakes, so that all are reported in one go."""
        first = mistakes[0]
        error = cls(first.field, first.value, first.expected, first.fix)
        error.mistakes = tuple(mistakes)
        return error

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known name, or lists them all where they are few."""
    known = sorted(known)
    if not known:
        return "There are none."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    if len(known) > _MOST_LISTED:
        return f"None of the {len(known)} known ones is like it."
    return f"Known: {', '.join(known)}."
