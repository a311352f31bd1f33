"""Metrics to `metrics.csv`, which is exact under resume, and to TensorBoard."""

from __future__ import annotations

import csv
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class MetricsWriter:
    """Writes one row per log interval to `metrics.csv` and to TensorBoard.

    Args:
      csv_path: the stage's `metrics.csv`.
      start: the step that training goes on from; rows beyond it, of a run that was killed after
        its last save, are dropped.
    """

    def __init__(self, csv_path: Path, start: int):
        self._path = csv_path
        self._rows = [row for row in read_metrics(csv_path) if int(row["step"]) <= start]
        self._events: EventsWriter | None = None
        if self._rows:
            self._rewrite()
        else:
            csv_path.unlink(missing_ok=True)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the row of the interval that ends with `step`."""
        self._rows.append({"step": str(step), **{k: repr(float(v)) for k, v in scalars.items()}})
        if self._events is None:
            self._events = EventsWriter(self._path.parent)
        if len(self._rows) == 1:
            self._rewrite()
        else:
            with self._path.open("a", newline="") as file:
                self._csv(file).writerow(self._rows[-1])
        self._events.write_scalars(step, scalars)

    def _csv(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, list(self._rows[0]), lineterminator="\n")

    def _rewrite(self) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = self._csv(file)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self._path)

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
    """

    def __init__(self, folder: Path):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        # TensorBoard reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")

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
    """The whole rows of a `metrics.csv`; a last line cut short by a kill is left out."""
    if not csv_path.is_file():
        return []
    text = csv_path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return list(csv.DictReader(lines))


def write_parameter_overview(params: object, path: Path) -> None:
    """Writes clu's table of every parameter's name, shape and size, as a text file."""
    from clu import parameter_overview

    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    path.write_text(overview + "\n")
