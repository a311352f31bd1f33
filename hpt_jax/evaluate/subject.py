"""What is evaluated: a backbone, and the labelled images that it is judged on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from hpt_jax.evaluate import features
from hpt_jax.feed import Feed
from hpt_jax.models.backbone import Backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.telemetry.display import Watch, unwatched


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A backbone and labelled images.

    Attributes:
      model: the architecture.
      backbone: weights and the pixel statistics to normalise with.
      feed: the images.
      splits: 'train', 'val', 'test' -> rows int64[n] of the feed's store.
      labels: of all rows: i32[n], or u8[n, classes] zeros and ones.
      classes: names.
      metric: 'top1' or 'macro_auroc'.
      image_size: side of a view, in pixels.
      center_crop: the evaluation view's share of the short side.
      seed: of the pretraining.
      watch: where the progress of `features` goes.
    """

    model: ResNet
    backbone: Backbone
    feed: Feed
    splits: Mapping[str, np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]
    metric: str
    image_size: int
    center_crop: float
    seed: int
    watch: Watch = unwatched

    @functools.cached_property
    def features(self) -> np.ndarray:
        """f32[rows, d] of the evaluation view of all rows, computed when first asked for."""
        every = np.arange(len(self.feed.store))
        return self.features_of(self.backbone, every, self.watch)

    def features_of(
        self, backbone: Backbone, rows: np.ndarray, watch: Watch = unwatched
    ) -> np.ndarray:
        """f32[n, d] of the evaluation view of `rows`, by a backbone of the same architecture."""
        return features.extract(
            self.model, backbone, self.feed, rows, self.image_size, self.center_crop, watch
        )
