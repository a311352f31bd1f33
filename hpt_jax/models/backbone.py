"""What one stage hands over to the next: the backbone and the pixel statistics it was fed with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from hpt_jax.models.resnet import ResNet


@struct.dataclass
class Backbone:
    """A query encoder's backbone, all of what passes from stage to stage.

    Attributes:
      params: convolutions and batch-norm scale and bias.
      batch_stats: batch-norm running statistics.
      pixel_mean: f32[channels], of pixels in [0, 1].
      pixel_std: f32[channels].
      pixel_window: i32[2], the 16-bit values that became 0 and 255; (0, 0) where it was trained on
        8-bit images.
    """

    params: Any
    batch_stats: Any
    pixel_mean: Any
    pixel_std: Any
    pixel_window: Any = dataclasses.field(default_factory=lambda: np.zeros(2, np.int32))

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that `ResNet.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_backbone(
    model: ResNet,
    rng: jax.Array,
    pixel_mean: np.ndarray,
    pixel_std: np.ndarray,
    pixel_window: ArrayLike = (0, 0),
) -> Backbone:
    """A random backbone for images with `len(pixel_mean)` channels."""
    variables = _init(model, len(pixel_mean))(rng)
    return Backbone(
        variables["params"],
        variables["batch_stats"],
        jnp.asarray(pixel_mean, jnp.float32),
        jnp.asarray(pixel_std, jnp.float32),
        jnp.asarray(pixel_window, jnp.int32),
    )


def abstract_backbone(model: ResNet, channels: int) -> Backbone:
    """The shapes and dtypes of a backbone; computes nothing."""
    variables = jax.eval_shape(_init(model, channels), jax.eval_shape(jax.random.key, 0))
    pixel = jax.ShapeDtypeStruct((channels,), jnp.float32)
    window = jax.ShapeDtypeStruct((2,), jnp.int32)
    return Backbone(variables["params"], variables["batch_stats"], pixel, pixel, window)


@functools.cache
def _init(model: ResNet, channels: int) -> Callable[[jax.Array], Any]:
    # Parameters do not depend on the size of the image, so a small one will do.
    shape = (2, 32, 32, channels)
    return jit_once(lambda rng: model.init(rng, jnp.zeros(shape, model.dtype), train=False))


def jit_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for a program that runs once: on a CPU it compiles six times faster unoptimised."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(fn, compiler_options=options)
