"""The one exception for what a user, not the program, got wrong."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence

_MOST_LISTED = 40


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One thing to mend: which field, what it holds, what was expected, how to fix it."""

    field: str
    value: object
    expected: str
    fix: str

    def __str__(self) -> str:
        value = "" if self.value is None else f" = {self.value!r}"
        return printable(f"{self.field}{value}: expected {self.expected}. {self.fix}")


class UserError(Exception):
    """A user's mistake: `main.py` alone catches it, prints it without traceback and exits 2.

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


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor, turn the writing or is no text is escaped.

    Names of files and datasets may hold anything. Newlines stay.
    """
    return "".join(one if one == "\n" or one.isprintable() else _escaped(one) for one in text)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


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
