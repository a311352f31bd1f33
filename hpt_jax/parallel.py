"""The only file that knows how many devices there are.

A step is written for one device's shard with the named axis `AXIS` and mapped over all devices,
by `jax.shard_map` or by `jax.pmap`: the body is the same, and so are its results.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
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
        return jax.jit(mapped, donate_argnums=donated)

    def memory(self) -> float | None:
        """Bytes of one device's own memory; None where it shares the host's."""
        stats = self.mesh.devices.flat[0].memory_stats()
        return float(stats["bytes_limit"]) if stats else None

    def least(self, value: float) -> float:
        """The smallest of what all hosts say, so that they decide alike."""
        return float(np.min(multihost_utils.process_allgather(np.float32(value))))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of state: the same on every device."""
        return NamedSharding(self.mesh, P())

    def replicate(self, tree: Any) -> Any:
        """Puts a tree of arrays on every device."""
        return jax.device_put(tree, self.replicated)

    @property
    def share(self) -> tuple[int, int]:
        """(index, count) of this host: which of a batch's equal parts its own devices take."""
        return jax.process_index(), jax.process_count()

    def shard(self, batch: Any) -> Any:
        """Cuts the leading axis of this host's part over its devices (which must divide it)."""
        sharding = NamedSharding(self.mesh, P(AXIS))
        if self.mapping == "pmap":
            local = self.count // jax.process_count()
            batch = jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def gather(self, batch: Any) -> Any:
        """The host arrays of a sharded output, the inverse of `shard`."""
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
            return GroupLayout(groups=bn_groups // self.count)
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


def make_devices(
    count: int = 0, mapping: str = "shard_map", deterministic: bool = False
) -> Devices:
    """The first `count` devices (0: all) as one axis, those of a host side by side.

    Args:
      count: how many.
      mapping: 'shard_map' or 'pmap'.
      deterministic: whether a GPU has to compute the same bits every time; it has an effect only
        in a process that has not asked for its devices yet.

    Raises:
      UserError: if there are fewer.
    """
    if deterministic:
        # XLA then also leaves out autotuning, which may choose other kernels in another process.
        flags, own = os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true"
        if own not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {own}"
    available = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if count > len(available):
        raise UserError(
            "parallel.devices",
            count,
            f"at most {len(available)}, the devices of this machine",
            "Lower it, or set it to 0 to use all.",
        )
    chosen = available[: count or len(available)]
    # Not jax.make_mesh, which may change their order, and with it whose rows are whose.
    return Devices(Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,)), mapping)
