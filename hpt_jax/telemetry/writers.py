"""Metrics to `metrics.csv`, which is exact under resume, and through clu to TensorBoard."""

from __future__ import annotations

import csv
import os
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
        self._tensorboard: Any = None
        if self._rows:
            self._rewrite()
        else:
            csv_path.unlink(missing_ok=True)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the row of the interval that ends with `step`."""
        self._rows.append({"step": str(step), **{k: repr(float(v)) for k, v in scalars.items()}})
        if self._tensorboard is None:
            # clu's writers import TensorFlow, which takes seconds: only a stage with metrics pays.
            from clu import metric_writers

            self._tensorboard = metric_writers.create_default_writer(str(self._path.parent))
        if len(self._rows) == 1:
            self._rewrite()
        else:
            with self._path.open("a", newline="") as file:
                self._csv(file).writerow(self._rows[-1])
        self._tensorboard.write_scalars(step, dict(scalars))

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
        """Flushes TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()


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
