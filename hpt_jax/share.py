"""Several runs at once in one workdir, on any machines: each takes what no other holds."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hpt_jax import workdir


@dataclasses.dataclass(frozen=True)
class Task:
    """A piece of work that one run does while all others leave it alone.

    Attributes:
      key: its name among tasks.
      before: the keys of tasks that come first.
      folder: held while it is done.
      is_done: whether nothing is left to do.
      do: does it.
    """

    key: str
    before: frozenset[str]
    folder: Path
    is_done: Callable[[], bool]
    do: Callable[[], None]


def share(tasks: Iterable[Task], line: Callable[[str], None]) -> None:
    """Returns when all tasks are done, by this run or by others that do the same.

    A run that is alone does them in order. What another one holds is put off as long as there is
    something else to do, and done here should the other one die.

    Args:
      tasks: each after those that come before it.
      line: told whom this run waits for, once.

    Raises:
      UserError: see `workdir.take`.
    """
    left = {task.key: task for task in tasks}
    told = ""
    while left:
        count, held = len(left), None
        for key, task in list(left.items()):
            if task.is_done():
                del left[key]
            elif left.keys().isdisjoint(task.before):
                lock = workdir.take(task.folder)
                if lock is None:
                    held = held or task.folder
                    continue
                with contextlib.closing(lock):
                    if not task.is_done():  # by another run, a moment ago
                        task.do()
                del left[key]
        if held and len(left) == count:
            text = f"{held.name} is held by {workdir.holder(held)}: waiting"
            if text != told:
                line(text)
                told = text
            time.sleep(workdir.POLL_SECONDS)
