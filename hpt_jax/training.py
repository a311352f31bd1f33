"""What the loop of a stage is made of: method, state, batches, and the compiled step."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from hpt_jax import bn_statistics, moco, plan
from hpt_jax import config as config_lib
from hpt_jax.data import loader
from hpt_jax.data.order import batch_indices
from hpt_jax.library import StageData
from hpt_jax.models.backbone import Backbone, abstract_backbone, jit_once
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import Devices

# A method is a module with METRICS and five functions as in `moco.py`: make_settings, init,
# plan_batch, train_step and, for pictures of its query and key views, distorted. A new one is a
# file, a line here, and its name in `config.METHODS`.
METHODS: dict[str, ModuleType] = {"moco": moco}


def method_of(config: config_lib.Stage) -> ModuleType:
    """What trains a stage."""
    return bn_statistics if config.trainable == "statistics" else METHODS[config.method]


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


@struct.dataclass
class Carry:
    """What goes from step to step.

    Attributes:
      state: of the method.
      totals: sums of the metrics since the last log, and their 'count'.
      first_bad: i32, the first step (from 0) whose metrics or backbone were not finite, or -1.
    """

    state: Any
    totals: dict[str, jax.Array]
    first_bad: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """What the loop of a stage is made of; the same every time, and so a step can be replayed.

    Attributes:
      stage: what to train.
      data: its images.
      devices: to map over; those of `data.feed`, and those of other processes.
    """

    stage: plan.Stage
    data: StageData
    devices: Devices

    @functools.cached_property
    def method(self) -> ModuleType:
        """What trains it."""
        return method_of(self.stage.config)

    @functools.cached_property
    def settings(self) -> Any:
        """Of the method."""
        model = make_model(self.stage.config.model, self.devices)
        return self.method.make_settings(self.stage.config, model, self.data.store.channels)

    @property
    def steps(self) -> int:
        """How many there are; without gradients, one pass over the images."""
        if self.stage.trains:
            return self.stage.steps
        return math.ceil(len(self.data.rows) / self.stage.config.batch_size)

    def initial(self, backbone: Backbone) -> Carry:
        """What the first step is given."""
        # Order and augmentation follow the seed; weights that a stage makes anew must not repeat
        # what another stage of the chain drew.
        rng = jax.random.fold_in(jax.random.key(self.stage.seed), len(self.stage.chain))
        return self.devices.spread(initial_carry(self.method, self.settings, rng, backbone))

    def saved_like(self) -> dict[str, Any]:
        """Shapes, dtypes and places, among this process's own devices, of what `saved` gives."""
        place = self.devices.own.replicated
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            saved(self._abstract_carry()),
        )

    def restored(self, tree: dict[str, Any]) -> Carry:
        """What a step is given after a checkpoint."""
        state = tree["state"].replace(backbone=tree["backbone"])
        first_bad = jnp.full((), -1, jnp.int32)
        if self.devices.own is self.devices:  # where all but this already is
            return Carry(state, tree["totals"], self.devices.replicate(first_bad))
        return self.devices.spread(Carry(state, tree["totals"], first_bad))

    def received(self) -> Carry:
        """What the first process gets by `initial` or `restored`, on another one."""
        return self.devices.spread(jax.tree.map(_zeros, self._abstract_carry()))

    def _abstract_carry(self) -> Carry:
        return abstract_carry(self.method, self.settings, self.data.store.channels)

    def counted_anew(self, carry: Carry) -> Carry:
        """The carry after its totals were read."""
        totals = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), carry.totals)
        return dataclasses.replace(carry, totals=self.devices.replicate(totals))

    def batches(self, start: int, stop: int) -> Generator[dict[str, Any], None, None]:
        """What the steps from `start` to before `stop` see."""
        dtype = jnp.promote_types(jnp.float32, self.stage.config.model.dtype)
        size = self.stage.config.image_size
        feed = self.data.feed.over(self.devices)
        return feed.batches(self.plan_batch, range(start, stop), size, dtype)

    def rows(self, step: int) -> np.ndarray:
        """The images of a step's batch, int64[batch_size], as rows of the store."""
        count = len(self.data.rows)
        places = batch_indices(self.stage.seed, step, self.stage.config.batch_size, count)
        return self.data.rows[places]

    def plan_batch(self, step: int) -> loader.Plan:
        """What a step's batch shows."""
        rows = self.rows(step)
        sizes = self.data.store.sizes[rows]
        return self.method.plan_batch(self.settings, self.stage.seed, step, rows, sizes)

    def take(
        self, carry: Carry, batch: dict[str, Any], step: int
    ) -> tuple[Carry, dict[str, jax.Array]]:
        """One step: the next carry, in the place of the one given, and the step's metrics."""
        rate = learning_rate(self.stage.config.optimizer, step, self.steps)
        program = _compiled_step(self.method, self.settings, self.devices)
        return program(carry, batch, np.asarray(rate, carry.totals["count"].dtype))


def initial_carry(method: ModuleType, settings: Any, rng: jax.Array, backbone: Backbone) -> Carry:
    """A method's fresh state around a backbone, and nothing counted yet."""
    state = _compiled_init(method, settings)(rng, backbone)
    return Carry(state, _no_totals(method, settings), jnp.full((), -1, jnp.int32))


def abstract_carry(method: ModuleType, settings: Any, channels: int) -> Carry:
    """Shapes and dtypes of what goes from step to step; computes nothing."""
    state = _abstract_state(method, settings, channels)
    totals = jax.eval_shape(lambda: _no_totals(method, settings))
    bad: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return Carry(state, totals, bad)


def traced_step(
    method: ModuleType, settings: Any, devices: Devices, channels: int
) -> jax.stages.Traced:
    """The program of a step, for devices that need not be here; computes nothing.

    Args:
      method: that trains.
      settings: of the method.
      devices: as `shard_map` maps over them; those of a topology will do.
      channels: of the images.
    """
    side = np.full((settings.batch_size, 2), settings.image_size)
    planned = method.plan_batch(settings, 0, 0, np.arange(settings.batch_size), side)
    view = (settings.batch_size, settings.image_size, settings.image_size, channels)

    def shaped(shape: tuple[int, ...], dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    batch = {
        name: shaped(view, jnp.uint8, devices.sharded)
        if isinstance(one, loader.Crops)
        else shaped(one.shape, one.dtype, devices.sharded)
        for name, one in planned.items()
    }
    carry = jax.tree.map(
        lambda x: shaped(x.shape, x.dtype, devices.replicated),
        abstract_carry(method, settings, channels),
    )
    rate = shaped((), carry.totals["count"].dtype, devices.replicated)
    program: Any = _compiled_step(method, settings, devices)
    return program.trace(carry, batch, rate)


@functools.cache
def _abstract_state(method: ModuleType, settings: Any, channels: int) -> Any:
    key = jax.eval_shape(jax.random.key, 0)
    backbone = abstract_backbone(settings.model, channels)
    return jax.eval_shape(_compiled_init(method, settings), key, backbone)


def _zeros(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _no_totals(method: ModuleType, settings: Any) -> dict[str, jax.Array]:
    dtype = jnp.promote_types(jnp.float32, settings.model.dtype)
    return {name: jnp.zeros((), dtype) for name in (*method.METRICS, "count")}


def saved(carry: Carry) -> dict[str, Any]:
    """The tree that is saved: the backbone under its own name, for the stages that follow."""
    state = carry.state
    backbone, rest = state.backbone, state.replace(backbone=None)
    return {"backbone": backbone, "state": rest, "totals": carry.totals}


def learning_rate(optimizer: config_lib.Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: warm-up, then as the schedule says.

    - 'cosine', the paper's without warm-up: rate / 2 * (1 + cos(pi * step / steps)).
    - 'constant'.
    - 'anytime': constant up to `plan.branch_step`, then in a straight line to 0. Up to there it
      does not depend on `steps`, so that stages of all lengths share their beginning.
    """
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return peak
    if optimizer.schedule == "anytime":
        start = plan.branch_step(optimizer, steps)
        return peak if step < start else peak * (steps - step) / (steps - start)
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


@functools.cache
def _compiled_init(method: ModuleType, settings: Any) -> Callable[..., Any]:
    return jit_once(functools.partial(method.init, settings))


@functools.cache
def _compiled_step(method: ModuleType, settings: Any, devices: Devices) -> Callable[..., Any]:
    """(carry, batch, learning rate) -> (carry, metrics), one program for all equal settings."""

    def step(
        carry: Carry, batch: dict[str, jax.Array], rate: jax.Array
    ) -> tuple[Carry, dict[str, jax.Array]]:
        state, metrics = method.train_step(settings, carry.state, batch, rate)
        counted = {**metrics, "count": 1}
        totals = {name: total + counted[name] for name, total in carry.totals.items()}
        # Kept on the devices, so that no step waits for its own numbers.
        bad = (carry.first_bad < 0) & ~all_finite((metrics, state.backbone))
        first_bad = jnp.where(bad, carry.state.step, carry.first_bad)
        return Carry(state, totals, first_bad), metrics

    return devices.map(step, (False, True, False), sharded_out=False, donate=True)


def all_finite(tree: Any) -> jax.Array:
    """Whether no number of a tree of arrays is infinite or none at all: bool[]."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
