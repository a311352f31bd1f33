"""Frozen features: views of images through the backbone in evaluation mode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hpt_jax import config as config_lib
from hpt_jax.augment import geometric, photometric
from hpt_jax.data import order
from hpt_jax.data.loader import Crops, Plan
from hpt_jax.feed import Feed
from hpt_jax.models.backbone import Backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.telemetry.display import Watch, unwatched

BATCH = 256  # images a device and call; features do not depend on it
# Torchvision's RandomResizedCrop, as in the paper's probe.
_CROP_RATIO = (3 / 4, 4 / 3)
# Streams of a step's random numbers on the host; pretraining has the first ones.
_CROP, _FLIP = 11, 12


def extract(
    model: ResNet,
    backbone: Backbone,
    feed: Feed,
    rows: np.ndarray,
    image_size: int,
    center_crop: float,
    watch: Watch = unwatched,
) -> np.ndarray:
    """Features of the evaluation view of some images.

    Args:
      model: the architecture.
      backbone: weights, running statistics and the pixel statistics to normalise with.
      feed: the images.
      rows: int64[n], which, as rows of the store.
      image_size: side of the view, in pixels.
      center_crop: the view's share of the short side.
      watch: where progress goes, in batches.

    Returns:
      f32[n, features].
    """
    devices, sizes = feed.devices, feed.store.sizes
    count = len(rows)
    batch = min(BATCH, -(-count // devices.count)) * devices.count

    def plan_batch(number: int) -> Plan:
        # The last batch is filled up with the last image, so that all have one shape.
        places = np.minimum(np.arange(number * batch, (number + 1) * batch), count - 1)
        shown = rows[places]
        boxes = geometric.center_crop_boxes(sizes[shown], center_crop)
        return {"image": Crops(shown, boxes), "flip": np.zeros(batch, bool)}

    steps = range(-(-count // batch))
    parts = []
    with watch("features", len(steps)) as update:
        for part in _features(model, backbone, feed, plan_batch, steps, image_size):
            parts.append(devices.gather(part))
            update(len(parts), "")
    return np.concatenate(parts)[:count]


def augmented(
    model: ResNet,
    backbone: Backbone,
    feed: Feed,
    rows: np.ndarray,
    image_size: int,
    probe: config_lib.LinearSGD,
    seed: int,
) -> Generator[tuple[Any, np.ndarray], None, None]:
    """Features of randomly cropped and flipped views: the batches of the paper's probe.

    Args:
      model: the architecture.
      backbone: as in `extract`.
      feed: the images.
      rows: int64[n], the images to train on, as rows of the store.
      image_size: side of the view, in pixels.
      probe: steps, batch, crops and flips.
      seed: of order, crops and flips.

    Yields:
      For each step (f32[batch_size, features], the rows int64[batch_size] that they show).
    """

    def plan_batch(step: int) -> Plan:
        return plan_views(probe, seed, step, rows, feed)

    steps = range(probe.steps)
    parts = _features(model, backbone, feed, plan_batch, steps, image_size)
    for step, part in zip(steps, parts, strict=True):
        shown = shown_rows(probe, seed, step, rows)
        yield feed.devices.gather(part)[: probe.batch_size], shown


def shown_rows(
    probe: config_lib.LinearSGD | config_lib.Finetune, seed: int, step: int, rows: np.ndarray
) -> np.ndarray:
    """The images of a step: int64[batch_size] of `rows`."""
    return rows[order.batch_indices(seed, step, probe.batch_size, len(rows))]


def plan_views(
    probe: config_lib.LinearSGD | config_lib.Finetune,
    seed: int,
    step: int,
    rows: np.ndarray,
    feed: Feed,
) -> Plan:
    """What a supervised step shows: 'image', a random crop of each, and 'flip', whether mirrored.

    Args:
      probe: batch, crops and flips.
      seed: of order, crops and flips.
      step: from 0.
      rows: int64[n], the images to train on, as rows of the store.
      feed: the images; a batch that its devices do not divide is filled up with the last image.
    """
    shown = shown_rows(probe, seed, step, rows)
    size = -(-len(shown) // feed.devices.count) * feed.devices.count
    shown = np.concatenate([shown, np.repeat(shown[-1:], size - len(shown))])
    draws = order.uniforms(seed, step, _CROP, (size, geometric.BOX_DRAWS))
    boxes = geometric.random_resized_crop_boxes(
        draws, feed.store.sizes[shown], probe.crop_scale, _CROP_RATIO
    )
    flip = order.uniforms(seed, step, _FLIP, (size,)) < probe.flip_probability
    return {"image": Crops(shown, boxes), "flip": flip}


def _features(
    model: ResNet,
    backbone: Backbone,
    feed: Feed,
    plan_batch: Callable[[int], Plan],
    steps: range,
    image_size: int,
) -> Generator[Any, None, None]:
    """Features of each planned batch of 'image' and 'flip', cut over the devices."""
    dtype = jnp.promote_types(jnp.float32, model.dtype)
    program = _compiled(model, feed.devices)
    backbone = feed.devices.replicate(backbone)
    for batch in feed.batches(plan_batch, steps, image_size, dtype):
        yield program(backbone, batch["image"], batch["flip"])


def prepare(images: jax.Array, flips: jax.Array, backbone: Backbone, dtype: Any) -> jax.Array:
    """Mirrors and normalises crops u8[n, S, S, C]: dtype of the same shape."""

    def one(image: jax.Array, flip: jax.Array) -> jax.Array:
        image = geometric.flip(image.astype(dtype) / 255, flip)
        return photometric.normalize(image, backbone.pixel_mean, backbone.pixel_std)

    return jax.vmap(one)(images, flips)


@functools.cache
def _compiled(model: ResNet, devices: Any) -> Callable[..., Any]:
    dtype = jnp.promote_types(jnp.float32, model.dtype)

    def program(backbone: Backbone, images: jax.Array, flips: jax.Array) -> jax.Array:
        images = prepare(images, flips, backbone, dtype)
        features: Any = model.apply(backbone.variables, images, train=False)
        return features

    return devices.map(program, (False, True, True), sharded_out=True, donate=False)
