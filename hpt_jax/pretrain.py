"""One stage: restore or initialise, step, log, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hpt_jax import bn_statistics, checkpoints, moco, pictures, plan
from hpt_jax import config as config_lib
from hpt_jax.data import loader
from hpt_jax.data.order import batch_indices
from hpt_jax.errors import UserError
from hpt_jax.library import StageData
from hpt_jax.models.backbone import Backbone, jit_once
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import Devices
from hpt_jax.telemetry import writers
from hpt_jax.telemetry.display import Display
from hpt_jax.workdir import StageFolder, write_json

# A method is a module with METRICS and five functions as in `moco.py`: make_settings, init,
# plan_batch, train_step and, for pictures of its query and key views, distorted. A new one is a
# file, a line here, and its name in `config.METHODS`.
METHODS: dict[str, ModuleType] = {"moco": moco}


def method_of(config: config_lib.Stage) -> ModuleType:
    """What trains a stage."""
    return bn_statistics if config.trainable == "statistics" else METHODS[config.method]


@dataclasses.dataclass(frozen=True)
class Saving:
    """When to log and to save; changes no result."""

    log_every_steps: int
    save_every_steps: int
    save_every_minutes: float


def make_model(model: config_lib.Model, devices: Devices) -> ResNet:
    """The backbone of a stage, its batch-norm groups laid over the devices."""
    return ResNet(
        arch=model.arch,
        width=model.width,
        stem=model.stem,
        stem_stride=model.stem_stride,
        dtype=jnp.dtype(model.dtype),
        layout=devices.group_layout(model.bn_groups),
    )


def run_stage(
    stage: plan.Stage,
    folder: StageFolder,
    data: StageData | None,
    initial: Backbone,
    devices: Devices,
    saving: Saving,
    display: Display,
) -> None:
    """Runs one stage to its end, from its own newest checkpoint where there is one.

    Args:
      stage: what to train.
      folder: where; it is done when this returns.
      data: its images, on the devices; None where it reads none.
      initial: the backbone it starts from.
      devices: to map over.
      saving: when to log and to save.
      display: where progress goes.
    """
    began, taken = time.monotonic(), 0
    # Closed whatever happens: a save under way is finished, not lost.
    with contextlib.closing(checkpoints.Checkpoints(folder.checkpoints)) as saver:
        if stage.config.trainable == "nothing":
            saver.save(0, {"backbone": initial})
        else:
            assert data is not None
            taken = train(stage, folder, data, initial, devices, saving, saver, display)
    seconds = time.monotonic() - began
    write_json(folder.done, {"steps": stage.steps, "steps_timed": taken, "seconds": seconds})


def train(
    stage: plan.Stage,
    folder: StageFolder,
    data: StageData,
    initial: Backbone,
    devices: Devices,
    saving: Saving,
    saver: checkpoints.Checkpoints,
    display: Display,
) -> int:
    """The loop of a stage, up to its last save; returns how many steps this process took."""
    config = stage.config
    method = method_of(config)
    model = make_model(config.model, devices)
    settings = method.make_settings(config, model, data.store.channels)
    take_step = _compiled_step(method, settings, devices)

    steps = stage.steps if stage.trains else math.ceil(len(data.rows) / config.batch_size)
    # Order and augmentation follow the seed; weights that a stage makes anew must not repeat
    # what another stage of the chain drew.
    rng = jax.random.fold_in(jax.random.key(stage.seed), len(stage.chain))
    carry = _initial_carry(method, settings, rng, initial)
    start = max(saver.steps(), default=0)
    if start:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated), carry
        )
        carry = _restored(saver.restore(start, _saved(like)))
        display.line(f"{stage.id}: continues after step {start}")
    else:
        writers.write_parameter_overview(initial.params, folder.path / "parameters.txt")
    carry = devices.replicate(carry)
    if stage.trains and not folder.views.is_file():
        pictures.write_views(folder.views, stage, data, method, settings, carry[0].rng)

    last_save, previous, note = time.monotonic(), None, ""

    def plan_batch(step: int) -> loader.Plan:
        rows = data.rows[batch_indices(stage.seed, step, config.batch_size, len(data.rows))]
        return method.plan_batch(settings, stage.seed, step, rows, data.store.sizes[rows])

    dtype = jnp.promote_types(jnp.float32, config.model.dtype)
    with (
        contextlib.closing(
            data.feed.batches(plan_batch, range(start, steps), config.image_size, dtype)
        ) as batches,
        contextlib.closing(writers.MetricsWriter(folder.metrics, start)) as writer,
        display.progress(stage.id, steps, start) as progress,
    ):
        for step, batch in zip(range(start, steps), batches, strict=True):
            rate = learning_rate(config.optimizer, step, steps)
            carry, metrics = take_step(carry, batch, np.asarray(rate, carry[1]["count"].dtype))
            # One step is always queued behind the one that runs; more would only delay a stop.
            jax.block_until_ready(previous)
            previous = metrics

            done = step + 1
            if stage.trains and (done % saving.log_every_steps == 0 or done == steps):
                means = _means(carry[1])
                writer.write(done, {**means, "learning_rate": rate})
                _check_finite(means, done, config.optimizer)
                carry = (carry[0], jax.tree.map(jnp.zeros_like, carry[1]))
                note = f"loss {means['loss']:.3f}"
            progress(done, note)
            minutes = (time.monotonic() - last_save) / 60
            by_step = saving.save_every_steps and done % saving.save_every_steps == 0
            if by_step or minutes >= saving.save_every_minutes or done == steps:
                saver.save(done, _saved(carry))
                last_save = time.monotonic()
    return steps - start


def learning_rate(optimizer: config_lib.Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: warm-up, then cosine to 0 or constant.

    Without warm-up the cosine is the paper's: rate / 2 * (1 + cos(pi * step / steps)).
    """
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return peak
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


# A carry is (state of the method, sums of the metrics since the last log).
Carry = tuple[Any, dict[str, jax.Array]]


def _initial_carry(method: ModuleType, settings: Any, rng: jax.Array, backbone: Backbone) -> Carry:
    dtype = jnp.promote_types(jnp.float32, settings.model.dtype)
    totals = {name: jnp.zeros((), dtype) for name in (*method.METRICS, "count")}
    return _compiled_init(method, settings)(rng, backbone), totals


def _saved(carry: Carry) -> dict[str, Any]:
    """The tree that is saved: the backbone under its own name, for the stages that follow."""
    state, totals = carry
    return {"backbone": state.backbone, "state": state.replace(backbone=None), "totals": totals}


def _restored(tree: dict[str, Any]) -> Carry:
    return tree["state"].replace(backbone=tree["backbone"]), tree["totals"]


def _means(totals: dict[str, jax.Array]) -> dict[str, float]:
    sums = {name: float(value) for name, value in jax.device_get(totals).items()}
    count = sums.pop("count")
    return {name: value / count for name, value in sums.items()}


def _check_finite(means: dict[str, float], step: int, optimizer: config_lib.Optimizer) -> None:
    if not all(math.isfinite(value) for value in means.values()):
        raise UserError(
            "optimizer.learning_rate",
            optimizer.learning_rate,
            f"a finite loss, but training diverged before step {step}",
            "Lower it; the last checkpoint is kept.",
        )


@functools.cache
def _compiled_init(method: ModuleType, settings: Any) -> Callable[..., Any]:
    return jit_once(functools.partial(method.init, settings))


@functools.cache
def _compiled_step(method: ModuleType, settings: Any, devices: Devices) -> Callable[..., Any]:
    """(carry, batch, learning rate) -> (carry, metrics), one program for all equal settings."""

    def step(
        carry: Carry, batch: dict[str, jax.Array], rate: jax.Array
    ) -> tuple[Carry, dict[str, jax.Array]]:
        state, metrics = method.train_step(settings, carry[0], batch, rate)
        counted = {**metrics, "count": 1}
        totals = {name: total + counted[name] for name, total in carry[1].items()}
        return (state, totals), metrics

    return devices.map(step, (False, True, False), sharded_out=False, donate=True)
