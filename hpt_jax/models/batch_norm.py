"""Batch normalisation over groups of examples that do not depend on the hardware.

MoCo normalises over small groups (the reference: 4 GPUs x 64 images) and shows each key in another
group than its query ("shuffle BN", MoCo section 3.3). Here the groups belong to the model: slots
of the global batch are cut into `bn_groups` consecutive groups, however many devices there are.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class GroupLayout:
    """How one device's shard of the batch lies in the groups.

    Attributes:
      groups: number of whole groups on this device; 1 where a group spans several devices.
      axis_name: the mapped axis to reduce over where a group spans several devices, else None.
      axis_index_groups: for `axis_name`, which devices share a group; None where all of them do.
      in_turn: whether a train step runs the device's groups one after another, which changes how
        much memory is in use at once and no result.
    """

    groups: int = 1
    axis_name: str | None = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    in_turn: bool = False

    @property
    def turns(self) -> int:
        """How many parts of the shard, one after another, a train step runs."""
        return self.groups if self.in_turn else 1

    @property
    def of_a_turn(self) -> GroupLayout:
        """How such a part lies in its groups."""
        return dataclasses.replace(self, groups=self.groups // self.turns)

    @property
    def devices_per_group(self) -> int:
        """How many devices share a group, inside the mapped program."""
        if self.axis_name is None:
            return 1
        if self.axis_index_groups is None:
            return lax.axis_size(self.axis_name)
        return len(self.axis_index_groups[0])


class BatchNorm(nn.Module):
    """Batch norm with torch's conventions: `momentum` is the share of the new statistics.

    Statistics are computed in `promote_types(float32, x.dtype)`. The running variance is the mean
    over groups of each group's unbiased variance, as torch keeps it.

    Attributes:
      layout: how the shard lies in the groups (used when training).
      momentum: running = running + momentum * (batch - running); 1 yields the batch's own.
      epsilon: added to the variance.
    """

    layout: GroupLayout = GroupLayout()
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises [batch, height, width, channels]; returns the same shape and dtype."""
        dtype = jnp.promote_types(jnp.float32, x.dtype)
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), dtype)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            shift = bias - running_mean.value * factor
            return (x.astype(dtype) * factor + shift).astype(x.dtype)

        groups = self.layout.groups
        grouped = x.reshape(groups, x.shape[0] // groups, *x.shape[1:]).astype(dtype)
        axes = tuple(range(1, grouped.ndim - 1))
        mean = grouped.mean(axes)
        mean_of_squares = jnp.square(grouped).mean(axes)
        if self.layout.axis_name is not None:
            mean, mean_of_squares = lax.pmean(
                (mean, mean_of_squares),
                self.layout.axis_name,
                axis_index_groups=self.layout.axis_index_groups,
            )
        # One pass over the activations; rounding can push a constant channel just below zero.
        var = jnp.maximum(mean_of_squares - jnp.square(mean), 0)

        count = grouped.size // (groups * channels) * self.layout.devices_per_group
        unbiased = var * (count / (count - 1))
        for running, batch in ((running_mean, mean), (running_var, unbiased)):
            # The other groups' devices are averaged in by the train step's one pmean.
            # Not +=, which would write into the caller's own array where that is numpy's.
            running.value = running.value + self.momentum * (batch.mean(0) - running.value)

        factor = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        broadcast = (groups, *(1,) * len(axes), channels)
        out = grouped * factor.reshape(broadcast) + shift.reshape(broadcast)
        return out.reshape(x.shape).astype(x.dtype)
