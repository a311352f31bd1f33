"""Cost as work grows: seconds, bytes and collectives of a step, beside the laws they should follow.

No row of the table: the question is whether a law holds. Prints, for each quantity, the law and the
largest relative deviation from it, and writes DIR/growth.csv and DIR/growth.png.

- Seconds against batch n, a + b n; image side n, a + b n^2; queue n, a + b n. Of one step of
  ResNet-10 of width 16, from u8 crops to the next state, on resident arrays: the median of calls
  in turns over all sizes. a and b, at least 0, are least squares of relative deviations.
- Collectives of the compiled step against devices n, at 16 images each: how many, constant; the
  bytes of the gathered keys, n times 16 (dim + 2) 4 (a key, its slot, its image); the bytes that
  are summed, constant: the parameters and both encoders' running statistics. The devices are fake,
  in another process: they share this machine's cores, so that their seconds would say nothing.
- Memory against queue n: what a step is given, a + 4 (dim + 1) n (a key and its image), and its
  peak, a + b n, whose b is more by some matrices of [batch, n].
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.optimize import nnls

from benchmarks.run import Asked
from benchmarks.step import Case, ours, settings_of
from benchmarks.table import Measured, Skipped
from hpt_jax import moco, parallel, training
from hpt_jax.forecast import hlo

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 15
DIM = 128
PLAIN = Case("resnet10", 16, "small", 2, size=32, batch=64, queue=1024)
GROWS = {
    "batch": (16, 32, 64, 128, 256, 512),
    "size": (16, 32, 64, 96, 128),
    "queue": (1024, 4096, 16384, 65536, 262144),
}
DEVICES, ROWS = (1, 2, 4, 8), 16  # images a device
COLUMNS = ("quantity", "x", "measured", "unit", "law")


@dataclasses.dataclass(frozen=True)
class Growth:
    """A quantity, measured at several sizes of something.

    Attributes:
      panel: of the picture, by what it shows.
      against: what grows.
      quantity: what is measured.
      unit: of it.
      x: the sizes.
      measured: at each.
      law: in words.
      terms: (a, b, p) of the law a + b x^p.
    """

    panel: str
    against: str
    quantity: str
    unit: str
    x: Sequence[int]
    measured: Sequence[float]
    law: str
    terms: tuple[float, float, int]

    def expected(self, x: Sequence[float] | np.ndarray) -> np.ndarray:
        """What the law says."""
        start, slope, power = self.terms
        return start + slope * np.asarray(x, float) ** power

    @property
    def name(self) -> str:
        """Of the panel and the quantity."""
        return f"{self.panel}: {self.quantity}"

    @property
    def deviation(self) -> float:
        """The largest, relative to the law."""
        return float(np.abs(np.divide(self.measured, self.expected(self.x)) - 1).max())


def rows(asked: Asked) -> Iterator[Measured | Skipped]:
    """Writes table and picture; no rows."""
    found = [*growths()]
    with (asked.out / "growth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in found:
            for x, measured, law in zip(one.x, one.measured, one.expected(one.x), strict=True):
                writer.writerow((one.name, x, f"{measured:.6g}", one.unit, f"{law:.6g}"))
    draw(found, asked.out / "growth.png")
    for one in found:
        print(f"  {one.name:49} {one.law:42} within {100 * one.deviation:5.1f} %", flush=True)
    yield from ()


def growths() -> Iterator[Growth]:
    """All quantities."""
    programs = {name: {x: compiled(at(name, x)) for x in sizes} for name, sizes in GROWS.items()}
    seconds = timed(programs)
    for name, power, against in (
        ("batch", 1, "images a batch"),
        ("size", 2, "side of an image, px"),
        ("queue", 1, "keys in the queue"),
    ):
        start, slope = fitted(GROWS[name], seconds[name], power)
        law = f"{1e3 * start:.3g} ms + {1e3 * slope:.3g} ms n{'^2' if power == 2 else ''}"
        yield Growth(
            f"a step against {name}", against, "seconds", "s",
            GROWS[name], seconds[name], law, (start, slope, power),
        )  # fmt: skip
    yield from memory(programs["queue"])
    yield from collectives()


def at(name: str, value: int) -> Case:
    """The plain case with one size changed."""
    return dataclasses.replace(PLAIN, **{name: value})


def compiled(case: Case, devices: int = 1) -> jax.stages.Compiled:
    """The step of a case."""
    axis = parallel.make_devices(devices)
    return training.traced_step(moco, settings_of(case, axis), axis, 3).lower().compile()


def timed(programs: dict[str, dict[int, Any]]) -> dict[str, list[float]]:
    """Seconds a step of each program, the median over rounds of one call of each."""
    runs: dict[tuple[str, int], Callable[[], None]] = {
        (name, x): ours(at(name, x), program)
        for name, sizes in programs.items()
        for x, program in sizes.items()
    }
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            run()  # once before the clock, since the last program's data is in the caches
            began = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - began)
    return {
        name: [statistics.median(seconds[name, x]) for x in sizes]
        for name, sizes in programs.items()
    }


def fitted(x: Sequence[int], y: Sequence[float], power: int) -> tuple[float, float]:
    """(a, b), at least 0, of y = a + b x^power, by least squares of relative deviations."""
    terms = np.stack([np.ones(len(x)), np.asarray(x, float) ** power], 1)
    (start, slope), _ = nnls(terms / np.asarray(y)[:, None], np.ones(len(x)))
    return float(start), float(slope)


def memory(programs: dict[int, jax.stages.Compiled]) -> Iterator[Growth]:
    """Bytes against the queue's length."""
    queues = [*programs]
    analyses: list[Any] = [program.memory_analysis() for program in programs.values()]
    given = [one.argument_size_in_bytes for one in analyses]
    each = 4 * (DIM + 1)
    start = given[0] - each * queues[0]
    panel, against = "memory of a step against queue", "keys in the queue"
    law = f"{start / 2**20:.3g} MiB + 4 (dim + 1) = {each} B n"
    yield Growth(panel, against, "state and batch", "bytes", queues, given, law, (start, each, 1))
    # On a CPU `peak_memory_in_bytes` leaves out what a program holds for itself.
    peak = [
        one.argument_size_in_bytes + one.output_size_in_bytes - one.alias_size_in_bytes
        + one.temp_size_in_bytes for one in analyses
    ]  # fmt: skip
    start, slope = fitted(queues, peak, 1)
    matrices = (slope - each) / (4 * PLAIN.batch)
    law = f"{start / 2**20:.3g} MiB + ({each} + {matrices:.1f} x 4 batch) B n"
    yield Growth(panel, against, "peak", "bytes", queues, peak, law, (start, slope, 1))


def collectives() -> Iterator[Growth]:
    """Of the compiled step, against devices."""
    flag = f"--xla_force_host_platform_device_count={max(DEVICES)}"
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
    command = [sys.executable, "-m", "benchmarks.growth"]
    told = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    against = "devices of 16 images"

    def growth(
        panel: str, quantity: str, unit: str, law: str, start: float, slope: float
    ) -> Growth:
        measured = found[quantity]
        return Growth(panel, against, quantity, unit, DEVICES, measured, law, (start, slope, 1))

    panel = "collectives of a step against devices"
    yield growth(panel, "number", "number", "constant", found["number"][0], 0)
    panel = "bytes of collectives against devices"
    each = ROWS * (DIM + 2) * 4
    yield growth(panel, "gathered", "bytes", f"16 (dim + 2) 4 = {each} B n", 0, each)
    summed = parameter_bytes()
    law = f"weights and statistics, {summed / 2**20:.2f} MiB"
    yield growth(panel, "summed", "bytes", law, summed, 0)


def parameter_bytes() -> int:
    """Of the parameters, and of both encoders' running statistics."""
    settings = settings_of(PLAIN, parallel.make_devices(1))
    state = training.abstract_carry(moco, settings, 3).state
    statistics_of_both = state.backbone.batch_stats, state.key_batch_stats
    leaves = jax.tree.leaves((state.backbone.params, state.head, statistics_of_both))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def count_collectives() -> dict[str, list[float]]:
    """Of the step on some of this process's devices, for each number of `DEVICES`."""
    texts = [
        compiled(dataclasses.replace(PLAIN, batch=n * ROWS, groups=n), n).as_text() for n in DEVICES
    ]
    kinds = r" (?:all-reduce|reduce-scatter|all-gather|all-to-all|collective-\w+)(?:-start)?\("
    traffic = [hlo.traffic_of(text) for text in texts]
    return {
        "number": [len(re.findall(kinds, text)) for text in texts],
        "gathered": [one.gathered_bytes for one in traffic],
        "summed": [one.reduced_bytes for one in traffic],
    }


def draw(found: Sequence[Growth], path: Path) -> None:
    """Small multiples: what was measured as marks, the law as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    panels = [*dict.fromkeys(one.panel for one in found)]
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        inside = [one for one in found if one.panel == panel]
        first = inside[0]
        unit, scale = {"bytes": ("MiB", 2**-20), "s": ("ms", 1e3), "number": ("", 1)}[first.unit]
        for one, color, mark in zip(inside, ("#0072B2", "#D55E00"), "os", strict=False):
            named = f"{one.quantity}: " if len(inside) > 1 else ""
            label = f"{named}{one.law}\nwithin {100 * one.deviation:.1f} %"
            between = np.geomspace(one.x[0], one.x[-1], 100)
            axes.plot(between, scale * one.expected(between), color=color, label=label)
            axes.plot(one.x, np.multiply(one.measured, scale), mark, color=color)
        axes.set_title(f"{panel}{unit and f', {unit}'}", loc="left", fontsize=11)
        axes.set_xlabel(first.against)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(first.x))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        most = scale * max(max(one.measured) for one in inside)
        if unit:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.set_ylim(top=most * 3 ** len(inside))  # room for the laws
        else:
            axes.set_ylim(0, 1.5 * most)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, frameon=False, loc="upper left", borderaxespad=0, handlelength=1)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    print(json.dumps(count_collectives()))
