"""A few steps on this machine: compute alone, input alone, both; and which of them bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from hpt_jax import parallel, plan
from hpt_jax.estimate import duration
from hpt_jax.forecast.rows import Work
from hpt_jax.library import Library
from hpt_jax.models.backbone import init_backbone
from hpt_jax.telemetry.display import Display
from hpt_jax.training import Training

STEPS = 5  # that are timed, after one that compiles


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds a step.

    Attributes:
      compute: the same batch again and again.
      input: batches that no step waits for.
      both: as in training.
    """

    compute: float
    input: float
    both: float

    @property
    def bound(self) -> str:
        """What takes longer alone."""
        return "compute" if self.compute >= self.input else "input"


def tell(stage: plan.Stage, planned: plan.Plan, work: Work, display: Display) -> None:
    """Times steps of a stage, from random weights, and tells what bounds them.

    Raises:
      UserError: its images are absent, or are not what the config says.
    """
    options = planned.config.parallel
    devices = parallel.make_devices(options.devices, options.map, options.deterministic)
    data = Library(planned.config.data_dir, devices, display).of_stage(stage)
    assert data is not None  # a stage that trains reads a dataset
    with display.working(f"{stage.name}: compiling, and timing {STEPS} steps"):
        times = timed(Training(stage, data, devices))
    batch = stage.config.batch_size
    kind = jax.devices()[0].device_kind
    seconds = work.images / batch * times.both
    display.outcome(
        f"here, {devices.count} x {kind}: {stage.name}, {stage.config.model.dtype}, batch {batch}"
    )
    display.outcome(
        f"  a step takes {1e3 * times.both:.1f} ms, bound by {times.bound} (compute alone "
        f"{1e3 * times.compute:.1f}, input alone {1e3 * times.input:.1f}): "
        f"{batch / times.both:,.0f} images/s"
    )
    every = duration(work.ratio * seconds)
    display.outcome(f"  {stage.name} and all {work.stages} stages: {duration(seconds)} and {every}")


def timed(training: Training) -> Times:
    """Takes `STEPS` steps each way."""
    data, model = training.data, training.settings.model
    rng = jax.random.key(training.stage.seed)
    carry = training.initial(init_backbone(model, rng, data.pixel_mean, data.pixel_std))

    def steps(batches: Iterable[Any]) -> None:
        nonlocal carry
        for step, batch in enumerate(batches):
            carry, _ = training.take(carry, batch, step)
        jax.block_until_ready(carry)

    with contextlib.closing(training.batches(0, 1)) as batches:
        first = next(batches)
    steps([first])
    compute = _seconds_each(lambda: steps(itertools.repeat(first, STEPS)))
    with contextlib.closing(training.batches(0, STEPS)) as batches:
        alone = _seconds_each(lambda: jax.block_until_ready(list(batches)))
    with contextlib.closing(training.batches(0, STEPS)) as batches:
        both = _seconds_each(lambda: steps(batches))
    return Times(compute, alone, both)


def _seconds_each(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return (time.monotonic() - began) / STEPS
