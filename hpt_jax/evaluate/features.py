"""Frozen features: the evaluation view through the backbone in evaluation mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hpt_jax.augment import geometric, photometric
from hpt_jax.models.backbone import Backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import Devices

BATCH = 256  # images a device and call; features do not depend on it


def extract(
    model: ResNet,
    backbone: Backbone,
    pixels: jax.Array,
    sizes: jax.Array,
    image_size: int,
    center_crop: float,
    devices: Devices,
) -> np.ndarray:
    """Features of all stored images, in their order.

    Args:
      model: the architecture.
      backbone: weights, running statistics and the pixel statistics to normalise with.
      pixels: u8[n, H, W, C], on the devices.
      sizes: i32[n, 2].
      image_size: side of the view, in pixels.
      center_crop: the view's share of the short side.
      devices: to map over.

    Returns:
      f32[n, features].
    """
    program = _compiled(model, image_size, center_crop, devices)
    count = len(pixels)
    batch = min(BATCH, -(-count // devices.count)) * devices.count
    backbone = devices.replicate(backbone)
    parts = []
    for first in range(0, count, batch):
        # The last batch is filled up with the last image, so that all have one shape.
        rows = np.minimum(np.arange(first, first + batch), count - 1).astype(np.int32)
        parts.append(program(backbone, pixels, sizes, devices.shard(rows)))
    return np.concatenate([devices.gather(part) for part in parts])[:count]


@functools.cache
def _compiled(
    model: ResNet, image_size: int, center_crop: float, devices: Devices
) -> Callable[..., Any]:
    dtype = jnp.promote_types(jnp.float32, model.dtype)

    def view(image: jax.Array, size: jax.Array, backbone: Backbone) -> jax.Array:
        box = geometric.center_crop_box(size[0], size[1], center_crop)
        image = geometric.crop_and_resize(image, box, image_size, dtype).astype(dtype) / 255
        return photometric.normalize(image, backbone.pixel_mean, backbone.pixel_std)

    def program(
        backbone: Backbone, pixels: jax.Array, sizes: jax.Array, rows: jax.Array
    ) -> jax.Array:
        images = jax.vmap(functools.partial(view, backbone=backbone))(pixels[rows], sizes[rows])
        features: Any = model.apply(backbone.variables, images, train=False)
        return features

    return devices.map(program, (False, False, False, True), sharded_out=True, donate=False)
