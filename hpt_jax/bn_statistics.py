"""Re-estimation of batch-norm running statistics alone: arm B of the paper, made fair.

One pass over the images in the evaluation view, no gradient; the statistics are the cumulative
average over batches. The same functions as `moco.py`, so that the same loop runs it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from hpt_jax import config as config_lib
from hpt_jax.augment import geometric, photometric
from hpt_jax.data.loader import Crops
from hpt_jax.models.backbone import Backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import AXIS

METRICS = ()


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the compiled step depends on: backbone, evaluation view and global batch."""

    model: ResNet
    image_size: int
    center_crop: float
    batch_size: int


@struct.dataclass
class State:
    """Steps taken, the stage's key, and the backbone whose statistics are re-estimated."""

    step: jax.Array
    rng: jax.Array
    backbone: Backbone


def make_settings(stage: config_lib.Stage, model: ResNet, channels: int) -> Settings:
    """The settings of a stage."""
    return Settings(model, stage.image_size, stage.input.center_crop, stage.batch_size)


def init(settings: Settings, rng: jax.Array, backbone: Backbone) -> State:
    """Starts a pass."""
    return State(jnp.zeros((), jnp.int32), rng, backbone)


def plan_batch(
    settings: Settings, seed: int, step: int, rows: np.ndarray, sizes: np.ndarray
) -> dict[str, Crops | np.ndarray]:
    """The evaluation view of each image; nothing in it is random."""
    return {"image": Crops(rows, geometric.center_crop_boxes(sizes, settings.center_crop))}


def train_step(
    settings: Settings, state: State, batch: dict[str, jax.Array], learning_rate: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Averages one more batch's statistics in; parameters stay as they are.

    `batch['image']` is u8[rows, size, size, channels]; `learning_rate` has no use here.
    """
    backbone = state.backbone
    dtype = jnp.promote_types(jnp.float32, settings.model.dtype)
    images = photometric.normalize(
        batch["image"].astype(dtype) / 255, backbone.pixel_mean, backbone.pixel_std
    )
    model = settings.model.clone(bn_momentum=1.0)  # the batch's own statistics
    _, updates = model.apply(backbone.variables, images, train=True, mutable=["batch_stats"])
    batch_stats = lax.pmean(updates["batch_stats"], AXIS)
    share = 1 / (state.step + 1).astype(dtype)
    average = jax.tree.map(
        lambda old, new: (1 - share) * old + share * new, backbone.batch_stats, batch_stats
    )
    backbone = dataclasses.replace(backbone, batch_stats=average)
    return dataclasses.replace(state, step=state.step + 1, backbone=backbone), {}
