"""Metrics to `metrics.csv`, which is exact under resume, and to TensorBoard."""

from __future__ import annotations

import csv
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from hpt_jax.errors import UserError
from hpt_jax.workdir import whole


class MetricsWriter:
    """Writes one row per log interval to `metrics.csv` and to TensorBoard.

    Args:
      csv_path: the stage's `metrics.csv`.
      start: the step that training goes on from; rows beyond it, of a run that was killed after
        its last save, are dropped.
      prefix: of the names in TensorBoard.

    Raises:
      UserError: the file is damaged.
    """

    def __init__(self, csv_path: Path, start: int, prefix: str = ""):
        self._path, self._start, self._prefix = csv_path, start, prefix
        # A stage that begins writes its row of step 0 again.
        self._rows = [row for row in read_metrics(csv_path) if start and int(row["step"]) <= start]
        self._events: EventsWriter | None = None
        if self._rows:
            self._rewrite()
        else:
            csv_path.unlink(missing_ok=True)

    def write(
        self, step: int, scalars: Mapping[str, float], passing: Mapping[str, float] | None = None
    ) -> None:
        """Adds the row of `step`.

        Args:
          step: that the row is of, or that its interval ends with.
          scalars: the columns.
          passing: what TensorBoard alone is told, since it is another number each time.
        """
        self._rows.append({"step": str(step), **{k: repr(float(v)) for k, v in scalars.items()}})
        if self._events is None:
            self._events = EventsWriter(self._path.parent, self._start)
        if len(self._rows) == 1:
            self._rewrite()
        else:
            with self._path.open("a", newline="") as file:
                self._csv(file).writerow(self._rows[-1])
        shown = {**scalars, **(passing or {})}
        named = {f"{self._prefix}{name}": value for name, value in shown.items()}
        self._events.write_scalars(step, named)

    @property
    def rows(self) -> list[dict[str, float]]:
        """All rows so far, oldest first."""
        return [{name: float(cell) for name, cell in row.items()} for row in self._rows]

    def _csv(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, list(self._rows[0]), lineterminator="\n")

    def _rewrite(self) -> None:
        with whole(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = self._csv(file)
            writer.writeheader()
            writer.writerows(self._rows)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._events is not None:
            self._events.close()


class EventsWriter:
    """Writes scalars to a new event file of TensorBoard.

    The methods are those of clu's `MetricWriter`, which itself cannot be had without seconds of
    importing TensorFlow.

    Args:
      folder: where the file is made.
      start: the step that training goes on from; what earlier files have beyond it is void.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        # TensorBoard reads a folder's files in the order of their names. Others write the time
        # there, but a clock may be set back.
        names = [path.name for path in folder.glob("events.out.tfevents.*")]
        numbers = [int(found[1]) for name in names if (found := re.search(r"\.(\d{1,19})\.", name))]
        number = max(numbers, default=-1) + 1
        name = f"events.out.tfevents.{number:019d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")
        self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one value to each of some curves; it is on disk at once."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for name, value in scalars.items():
            self._write(step=step, summary=scalar_pb(name, value))
        self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


def read_metrics(csv_path: Path) -> list[dict[str, str]]:
    """The whole rows of a `metrics.csv`; a last line cut short by a kill is left out.

    Raises:
      UserError: something in it is no row of numbers.
    """
    if not os.path.lexists(csv_path):
        return []
    try:
        text = csv_path.read_text()
        header, *rows = [*csv.reader(text[: text.rfind("\n") + 1].splitlines())] or [[]]
        for row in rows:
            int(row[header.index("step")])
            [float(cell) for cell in row]
        return [dict(zip(header, row, strict=True)) for row in rows]
    except (IsADirectoryError, ValueError, LookupError, csv.Error):  # of UTF-8, too
        expected = "rows of numbers as training writes them, but it is damaged"
        fix = "Delete it: training goes on without it, and its curves begin where that is."
        raise UserError(str(csv_path), None, expected, fix) from None


def copy_rows(source: Path, target: Path, last: int) -> None:
    """Copies the rows of a `metrics.csv` up to the step `last`, if it is there."""
    if not source.is_file():
        return
    text = "".join(
        line
        for place, line in enumerate(source.read_text().splitlines(keepends=True))
        if place == 0 or int(line.partition(",")[0]) <= last
    )
    with whole(target) as temporary:
        temporary.write_text(text)


def write_parameter_overview(params: object, path: Path) -> None:
    """Writes clu's table of every parameter's name, shape and size, as a text file."""
    from clu import parameter_overview

    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    with whole(path) as temporary:
        temporary.write_text(overview + "\n")
