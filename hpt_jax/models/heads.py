"""The projection head of MoCo-v2."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hpt_jax.models.resnet import kaiming_normal


class ProjectionHead(nn.Module):
    """MLP of MoCo-v2 (Chen et al. 2020, section 3): features -> features -> ReLU -> dim.

    Attributes:
      dim: size of the embedding (128 in the paper).
      dtype: compute dtype.
    """

    dim: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, features] -> [batch, dim], not yet normalised."""
        param_dtype = jnp.promote_types(jnp.float32, self.dtype)
        options = dict(dtype=self.dtype, param_dtype=param_dtype, kernel_init=kaiming_normal)
        x = nn.relu(nn.Dense(x.shape[-1], name="fc1", **options)(x))
        return nn.Dense(self.dim, name="fc2", **options)(x)
