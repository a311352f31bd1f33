"""Metrics to `metrics.csv`, which is exact under resume, and to TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from hpt_jax import lease
from hpt_jax.errors import UserError
from hpt_jax.workdir import whole


class MetricsWriter:
    """Writes rows of a step's numbers to a CSV file and to TensorBoard.

    Args:
      csv_path: the stage's `metrics.csv`, or another one beside it.
      start: the step that training goes on from; rows beyond it, of a run that was killed after
        its last save, are dropped.
      events: of the stage's folder, which all its writers share: a second file of one run would
        void what is in the first. None: its own.
      prefix: of the names in TensorBoard.

    Attributes:
      events: what it writes to TensorBoard with.
      rows: all so far, oldest first.

    Raises:
      UserError: the file is damaged.
    """

    def __init__(
        self,
        csv_path: Path,
        start: int,
        events: EventsWriter | None = None,
        prefix: str = "",
    ):
        self._path, self._prefix = csv_path, prefix
        # A stage that begins writes its row of step 0 again.
        self.rows = [row for row in read_metrics(csv_path) if start and row["step"] <= start]
        self.events = events or EventsWriter(csv_path.parent, start)
        if self.rows:
            self._rewrite()
        else:
            csv_path.unlink(missing_ok=True)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the row of a step, or of the interval that ends with it.

        Raises:
          UserError: another process has taken over the stage.
        """
        self.rows.append({"step": step, **{name: float(one) for name, one in scalars.items()}})
        if len(self.rows) == 1:
            self._rewrite()
        else:
            lease.check(self._path)
            with self._path.open("a", newline="") as file:
                self._csv(file).writerow(_cells(self.rows[-1]))
        named = {f"{self._prefix}{name}": value for name, value in scalars.items()}
        self.events.write_scalars(step, named)

    def _csv(self, file: TextIO) -> csv.DictWriter[str]:
        # A stage that goes on in another study may have a column more or less: that of labels.
        return csv.DictWriter(
            file, list(self.rows[0]), "nan", extrasaction="ignore", lineterminator="\n"
        )

    def _rewrite(self) -> None:
        with whole(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = self._csv(file)
            writer.writeheader()
            writer.writerows(map(_cells, self.rows))

    def close(self) -> None:
        """Closes TensorBoard's file."""
        self.events.close()


def _cells(row: Mapping[str, float]) -> dict[str, str]:
    """Every digit of a row's numbers."""
    return {name: str(int(one)) if name == "step" else repr(one) for name, one in row.items()}


class EventsWriter:
    """Writes curves and pictures to a new event file of TensorBoard, made when it is needed.

    The methods are like those of clu's `MetricWriter`, which itself cannot be had without seconds
    of importing TensorFlow.

    Args:
      folder: where the file is made.
      start: the step that training goes on from; what earlier files have beyond it is void.
    """

    def __init__(self, folder: Path, start: int):
        self._folder, self._start = folder, start
        self._records: Any = None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one value to each of some curves; it is on disk at once."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for name, value in scalars.items():
            self._write(step=step, summary=scalar_pb(name, value))
        self._records.flush()

    def write_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture u8[height, width, 3]; it is on disk at once."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.image.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        coded = io.BytesIO()
        Image.fromarray(pixels).save(coded, "png")
        # As `tf.summary.image` has it, which takes TensorFlow: the size, then PNGs.
        height, width = (str(side).encode() for side in pixels.shape[:2])
        tensor = make_tensor_proto([width, height, coded.getvalue()])
        metadata = create_summary_metadata(display_name=None, description=None)
        value = Summary.Value(tag=name, metadata=metadata, tensor=tensor)
        self._write(step=step, summary=Summary(value=[value]))
        self._records.flush()

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._records is not None:
            self._records.close()

    def _write(self, **content: Any) -> None:
        if self._records is None:
            self._open()
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        # TensorBoard reads a folder's files in the order of their names. Others write the time
        # there, but a clock may be set back.
        names = [path.name for path in self._folder.glob("events.out.tfevents.*")]
        numbers = [int(found[1]) for name in names if (found := re.search(r"\.(\d{1,19})\.", name))]
        number = max(numbers, default=-1) + 1
        name = f"events.out.tfevents.{number:019d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((self._folder / name).open("xb"))
        self._write(file_version="brain.Event:2")
        self._write(step=self._start + 1, session_log=SessionLog(status=SessionLog.START))


def read_metrics(csv_path: Path) -> list[dict[str, float]]:
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
        return [dict(zip(header, map(float, row), strict=True)) for row in rows]
    except (IsADirectoryError, ValueError, LookupError, csv.Error):  # of UTF-8, too
        expected = "rows of numbers as training writes them, but it is damaged"
        fix = "Delete it: training goes on without it, and its curves begin where that is."
        raise UserError(str(csv_path), None, expected, fix) from None


def copy_rows(source: Path, target: Path, last: int) -> None:
    """Copies the rows of a `metrics.csv` up to the step `last`, if it is there.

    Raises:
      UserError: the file is damaged.
    """
    if not read_metrics(source):
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
