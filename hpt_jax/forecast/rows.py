"""A compiled step against what its chips can do, as numbers and as words."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpt_jax.errors import UserError
from hpt_jax.estimate import duration
from hpt_jax.forecast.chips import GIB, Chip, chip_of
from hpt_jax.shapes import FORECAST
from hpt_jax.workdir import make_folder, read_json, write_json

# Of the best possible speed; what a run may reach. A guess, no step was timed on these chips.
EFFICIENCY = 0.4
_TOO_LARGE = "RESOURCE_EXHAUSTED"  # in what XLA says where the memory is too small
_BOUNDS = ("compute", "HBM", "the links between chips")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a config asks for, as steps of the stage that was compiled.

    Attributes:
      images: that this stage sees.
      ratio: of the FLOPs of all stages to its own.
      stages: how many train.
    """

    images: int
    ratio: float
    stages: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A step of a stage on a topology: of one chip, whatever is said in bytes or FLOPs.

    Attributes:
      stage: its name.
      topology: such as 'v5e:2x2'.
      images_per_chip: of a batch.
      chips: of the topology.
      bn_groups: of the global batch.
      dtype: of the arithmetic.
      key: of the program and what compiles it; '' where it was not compiled.
      problem: why there are no numbers; '' where there are.
      flops: of the model.
      memory_bytes: the peak.
      hbm_bytes: moved to and from it.
      reduced_bytes: summed over chips.
      gathered_bytes: from all chips.
      compile_seconds: on the machine that compiled it.
    """

    stage: str
    topology: str
    images_per_chip: int
    chips: int
    bn_groups: int
    dtype: str
    key: str = ""
    problem: str = ""
    flops: float = 0.0
    memory_bytes: float = 0.0
    hbm_bytes: float = 0.0
    reduced_bytes: float = 0.0
    gathered_bytes: float = 0.0
    compile_seconds: float = 0.0

    @property
    def chip(self) -> Chip:
        """What it is compiled for."""
        return chip_of(self.topology)

    @property
    def batch_size(self) -> int:
        """Of all chips."""
        return self.images_per_chip * self.chips

    @property
    def fits(self) -> bool:
        """Whether the compiler says so, and the chip has the memory: compiling proves nothing."""
        return not self.problem and self.memory_bytes <= self.chip.memory

    @property
    def seconds(self) -> tuple[float, float, float]:
        """What a step takes at least: to compute, of HBM, between chips (in a ring)."""
        sent = (2 * self.reduced_bytes + self.gathered_bytes) * (self.chips - 1) / self.chips
        chip = self.chip
        return self.flops / chip.flops, self.hbm_bytes / chip.memory_rate, sent / chip.link_rate

    @property
    def step_seconds(self) -> float:
        """What a step takes at least."""
        return max(self.seconds)

    @property
    def bound(self) -> str:
        """By what."""
        return _BOUNDS[self.seconds.index(self.step_seconds)]

    def hours(self, images: float) -> float:
        """What so many images take at least."""
        return images / self.batch_size * self.step_seconds / 3600

    @property
    def place(self) -> str:
        """What a table has one row for."""
        return f"{self.stage} {self.dtype} {self.topology} {self.images_per_chip}"


def as_json(row: Row, work: Work) -> dict[str, Any]:
    """All of a row, and what follows from it."""
    content = {"batch_size": row.batch_size, **dataclasses.asdict(row), "fits": row.fits}
    if row.problem:
        return content
    return content | {
        "chip_memory_bytes": row.chip.memory,
        "compute_ms": 1e3 * row.seconds[0],
        "hbm_ms": 1e3 * row.seconds[1],
        "links_ms": 1e3 * row.seconds[2],
        "step_ms": 1e3 * row.step_seconds,
        "bound": row.bound,
        "images_per_second": row.batch_size / row.step_seconds,
        "hours_of_stage": row.hours(work.images),
        "hours_of_all_stages": row.hours(work.ratio * work.images),
    }


def sentences(row: Row, work: Work) -> list[str]:
    """A row in words: what it is, memory, traffic, time of a step, hours."""
    group = row.batch_size // row.bn_groups
    head = (
        f"{row.topology}, {row.images_per_chip} images a chip: {row.stage}, {row.dtype}, "
        f"batch {row.batch_size} in {row.bn_groups} groups of {group}"
    )
    if row.problem:
        return [head, f"  {row.problem}"]
    memory, there = row.memory_bytes / GIB, row.chip.memory / GIB
    compute, hbm, links = (1e3 * each for each in row.seconds)
    times = [3600 * row.hours(images) for images in (work.images, work.ratio * work.images)]
    least, likely = (" and ".join(duration(t / at) for t in times) for at in (1, EFFICIENCY))
    speed = f"at {100 * EFFICIENCY:.0f} % of that speed"
    return [
        head,
        f"  memory {memory:.2f} GiB of {there:.0f}: {'fits' if row.fits else 'does not fit'}",
        f"  {row.flops / 1e12:.3g} TFLOP, {row.hbm_bytes / 1e9:.3g} GB of HBM, "
        f"{row.reduced_bytes / 1e6:.3g} MB reduced, {row.gathered_bytes / 1e6:.2g} MB gathered",
        f"  a step takes {1e3 * row.step_seconds:.1f} ms at least, bound by {row.bound} (compute "
        f"{compute:.1f}, HBM {hbm:.1f}, links {links:.1f}): "
        f"{row.batch_size / row.step_seconds:,.0f} images/s at most",
        f"  {row.stage} and all {work.stages} stages: {least} at least, {likely} {speed}",
    ]


def largest(rows: Sequence[Row]) -> list[str]:
    """For each topology the largest batch that fits, of those compiled."""
    lines = []
    for topology in dict.fromkeys(row.topology for row in rows):
        own = [row for row in rows if row.topology == topology]
        fitting = [row.images_per_chip for row in own if row.fits]
        # A compiler may say it itself; one that crashed or took too long says nothing.
        tried = [row for row in own if not row.problem or _TOO_LARGE in row.problem]
        larger = sorted(row.images_per_chip for row in tried if not row.fits)
        text = f"{max(fitting)} images a chip" if fitting else "none"
        if larger:
            text += f" ({larger[0]} do not)"
        lines.append(f"{topology}: the most that fits, of those compiled: {text}")
    return lines


class Table:
    """A file of rows, whole at any moment; what it holds is not compiled again.

    Args:
      path: of the file; None keeps the rows in memory.

    Raises:
      UserError: there is another file, or none can be written.
    """

    def __init__(self, path: Path | None):
        self._path = path
        if path:
            make_folder(path.absolute().parent)
            if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
                expected = "a file in a folder that can be written to"
                raise UserError("--out", str(path), expected, "Choose another.")
        content = read_json(path, FORECAST) if path else None
        if path and content is None and os.path.lexists(path):
            expected = "a file that a forecast wrote, or one that is not there yet"
            raise UserError("--out", str(path), expected, "Choose another name.")
        self._rows = {_read(one).place: one for one in (content or {"rows": []})["rows"]}

    @property
    def measured(self) -> dict[str, Row]:
        """The rows that have numbers, by their key."""
        rows = map(_read, self._rows.values())
        return {row.key: row for row in rows if not row.problem}

    def add(self, row: Row, work: Work) -> None:
        """Puts a row in the place of the one that was there, and writes the file."""
        self._rows[row.place] = as_json(row, work)
        if self._path:
            write_json(self._path, {"rows": list(self._rows.values())})


def _read(content: dict[str, Any]) -> Row:
    """What `as_json` wrote."""
    return Row(**{field.name: content[field.name] for field in dataclasses.fields(Row)})
