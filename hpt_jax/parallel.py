"""The only file that knows how many devices there are.

A step is written for one device's shard with the named axis `AXIS` and mapped over all devices,
by `jax.shard_map` or by `jax.pmap`: the body is the same, and so are its results. The devices may
be those of several processes, which then run the same programs in the same order.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hpt_jax.errors import UserError
from hpt_jax.models.batch_norm import GroupLayout

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run and how a step is mapped over them.

    Attributes:
      mesh: one-axis mesh named `AXIS`.
      mapping: 'shard_map' or 'pmap'.
    """

    mesh: Mesh
    mapping: str = "shard_map"

    @property
    def count(self) -> int:
        """Number of devices."""
        return self.mesh.size

    def map(
        self, fn: Callable[..., Any], sharded: tuple[bool, ...], sharded_out: bool, donate: bool
    ) -> Callable[..., Any]:
        """Maps `fn` over the devices and compiles it.

        Args:
          fn: the program of one device; may use the axis `AXIS`.
          sharded: for each argument, whether its leading axis is cut over devices (a batch) or it
            is the same on all of them (state, keys).
          sharded_out: the same for all outputs.
          donate: whether the first argument's buffers are given up.

        Returns:
          A function of the same arguments. Sharded arguments and outputs are as `shard` makes them
          and `gather` reads them.
        """
        donated = (0,) if donate else ()
        if self.mapping == "pmap":
            in_axes = tuple(0 if s else None for s in sharded)
            out_axes = 0 if sharded_out else None
            return jax.pmap(
                fn,
                AXIS,
                in_axes=in_axes,
                out_axes=out_axes,
                devices=list(self.mesh.devices.flat),
                donate_argnums=donated,
            )
        in_specs = tuple(P(AXIS) if s else P() for s in sharded)
        out_specs = P(AXIS) if sharded_out else P()
        # check_vma=False keeps pmap's semantics: gradients inside are per device, one pmean joins
        # them. With the check on they would arrive already summed.
        mapped = jax.shard_map(
            fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        options = _cpu_options() if self.mesh.devices.flat[0].platform == "cpu" else None
        return jax.jit(mapped, donate_argnums=donated, compiler_options=options)

    def memory(self) -> float | None:
        """Bytes of one device's own memory; None where it shares the host's."""
        stats = self.own.mesh.devices.flat[0].memory_stats()
        return float(stats["bytes_limit"]) if stats else None

    @functools.cached_property
    def processes(self) -> list[int]:
        """The processes whose devices they are."""
        return sorted({device.process_index for device in self.mesh.devices.flat})

    @functools.cached_property
    def own(self) -> Devices:
        """Those of this process alone, for what the others take no part in."""
        if len(self.processes) == 1:
            return self
        mine = [one for one in self.mesh.devices.flat if one.process_index == jax.process_index()]
        return Devices(_axis(mine), self.mapping)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of state: the same on every device."""
        return NamedSharding(self.mesh, P())

    @property
    def sharded(self) -> NamedSharding:
        """The sharding of a batch: its leading axis is cut over the devices."""
        return NamedSharding(self.mesh, P(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Puts a tree of arrays on every device; each process has the same to give."""
        if len(self.processes) == 1:
            return jax.device_put(tree, self.replicated)
        # device_put would first compare the arrays of all processes, and with one device each it
        # returns a broken one.
        return _on_data(
            lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x)), tree
        )

    def spread(self, tree: Any) -> Any:
        """Puts a tree on every device as the first process has it.

        Args:
          tree: of arrays; of the other processes any of the same shapes, which they give up.
        """
        if len(self.processes) == 1:
            return self.replicate(tree)
        host = _on_data(np.asarray, tree)
        return self.replicate(_on_data(multihost_utils.broadcast_one_to_all, host))

    def widened(self, tree: Any) -> Any:
        """Arrays that every process has on its `own` devices, as arrays on all devices.

        What comes out of pmap is of the first kind, where shard_map gives the second.
        """
        return _placed_again(tree, self.replicated)

    def narrowed(self, tree: Any) -> Any:
        """Arrays on all devices as the process's `own`, without a copy: the others do nothing."""
        return _placed_again(tree, self.own.replicated)

    @property
    def share(self) -> tuple[int, int]:
        """(index, count) of this process: which of a batch's equal parts its devices take."""
        return self.processes.index(jax.process_index()), len(self.processes)

    def shard(self, batch: Any) -> Any:
        """Cuts the leading axis of this process's part over its devices (which must divide it)."""
        if self.mapping == "pmap":
            local = self.count // len(self.processes)
            batch = jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.sharded, x), batch
        )

    def gather(self, batch: Any) -> Any:
        """The host arrays of a sharded output, the inverse of `shard`; of one process's devices."""
        batch = jax.tree.map(np.asarray, batch)
        if self.mapping == "pmap":
            batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        return batch

    def group_layout(self, bn_groups: int, field: str = "model.bn_groups") -> GroupLayout:
        """How `bn_groups` consecutive groups of the global batch lie on the devices.

        Args:
          bn_groups: how many.
          field: of the config, for a message.

        Raises:
          UserError: unless the number of devices divides `bn_groups` or is a multiple of it.
        """
        if bn_groups % self.count == 0:
            # On a TPU a group's activations then stay on the chip; a CPU takes several times as
            # long for convolutions in a loop.
            in_turn = self.mesh.devices.flat[0].platform == "tpu"
            return GroupLayout(groups=bn_groups // self.count, in_turn=in_turn)
        if self.count % bn_groups == 0:
            span = self.count // bn_groups
            ids = range(self.count)
            members = tuple(tuple(ids[g * span : (g + 1) * span]) for g in range(bn_groups))
            return GroupLayout(1, AXIS, None if bn_groups == 1 else members)
        raise UserError(
            field,
            bn_groups,
            f"a multiple or a divisor of the {self.count} devices",
            f"Change --config.{field}, or use fewer devices with --config.parallel.devices.",
        )


class Votes:
    """What processes that take the same steps agree on, without one more wait.

    Args:
      devices: of all of them.
    """

    def __init__(self, devices: Devices):
        self._devices, self._last = devices, None
        self._program = devices.map(
            lambda number: lax.pmax(number.max(), AXIS), (True,), sharded_out=False, donate=False
        )

    def cast(self, number: int) -> int:
        """Gives a number, at least 0, to each step; the largest that any gave to the one before.

        A process alone is told its own at once.
        """
        if len(self._devices.processes) == 1:
            return number
        mine = np.full(self._devices.count // len(self._devices.processes), number, np.int32)
        last, self._last = self._last, self._program(self._devices.shard(mine))
        return 0 if last is None else int(last.addressable_data(0))


def make_devices(
    count: int = 0, mapping: str = "shard_map", deterministic: bool = False
) -> Devices:
    """The first `count` devices (0: all) as one axis, those of a process side by side.

    Args:
      count: how many; of several processes each gives an equal part.
      mapping: 'shard_map' or 'pmap'.
      deterministic: whether a GPU has to compute the same bits every time; it has an effect only
        in a process that has not asked for its devices yet.

    Raises:
      UserError: if there are fewer, or it is too late to compute the same bits.
    """
    _keep_freed_memory()
    flags, own = os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true"
    late = deterministic and own not in flags
    if late:
        # XLA then also leaves out autotuning, which may choose other kernels in another process.
        os.environ["XLA_FLAGS"] = f"{flags} {own}"
    available = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    processes = jax.process_count()
    if late and processes > 1:
        expected = "one process: several have asked for their devices when they read it"
        fix = f"Set XLA_FLAGS={own} in the environment of each."
        raise UserError("parallel.deterministic", True, expected, fix)
    if count > len(available) or count % processes:
        several = f", and a multiple of the {processes} processes" if processes > 1 else ""
        where = "all processes" if processes > 1 else "this machine"
        raise UserError(
            "parallel.devices",
            count,
            f"at most {len(available)}, the devices of {where}{several}",
            "Lower it, or set it to 0 to use all.",
        )
    part = (count or len(available)) // processes
    chosen = [
        device
        for process in range(processes)
        for device in [one for one in available if one.process_index == process][:part]
    ]
    return Devices(_axis(chosen), mapping)


@functools.cache
def _cpu_options() -> dict[str, bool | str] | None:
    """Leaves convolutions to XLA, since YNNPACK computes them by one thread."""
    kinds = ("REDUCE", "INDIVIDUAL_DOT")
    names = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
    options: dict[str, bool | str] = {"xla_cpu_experimental_ynn_fusion_type": names}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # experimental: another XLA may not know it
        return None
    return options


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed: a step on a CPU else asks the system for all of it anew.

    That is a tenth of the step (benchmarks/NOTES.md). It takes effect for threads that have not
    allocated yet, and so before JAX makes its own.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        arena_max, mmap_threshold, trim_threshold = -8, -3, -1
        mallopt(arena_max, 1)  # others than the first end at 64 MiB
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def _axis(devices: list[jax.Device]) -> Mesh:
    # Not jax.make_mesh, which may change their order, and with it whose rows are whose.
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _placed_again(tree: Any, sharding: NamedSharding) -> Any:
    def one(array: jax.Array) -> jax.Array:
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)

    return jax.tree.map(one, tree)


def _on_data(function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` of each array, of random keys by their data."""

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(function(jax.random.key_data(leaf)))
        return function(leaf)

    return jax.tree.map(one, tree)
