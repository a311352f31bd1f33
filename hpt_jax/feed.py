"""From a plan of crops to batches on the devices: out of pixels they hold, or through the host."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hpt_jax.augment import geometric
from hpt_jax.data import loader
from hpt_jax.data.loader import Crops, Plan
from hpt_jax.data.store import Store
from hpt_jax.parallel import Devices


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """A store's images, on their way to the devices.

    Attributes:
      store: the images.
      devices: where the batches go.
      placed: the store's pixels on every device, or None where they are not held.
    """

    store: Store
    devices: Devices
    placed: jax.Array | None

    def over(self, devices: Devices) -> Feed:
        """The same images on their way to devices of which this feed's are the process's own."""
        if devices == self.devices:
            return self
        placed = None if self.placed is None else devices.widened(self.placed)
        return Feed(self.store, devices, placed)

    def batches(
        self, plan: Callable[[int], Plan], steps: range, image_size: int, dtype: Any = jnp.float32
    ) -> Generator[dict[str, Any], None, None]:
        """The batches of some steps.

        Both ways give the same images within one grey level, in the same order.

        Args:
          plan: step -> what the global batch is made of.
          steps: which, with step 1.
          image_size: side of a view, in pixels.
          dtype: floating dtype of the arithmetic on devices.

        Yields:
          For each step what `plan` names, cut over the devices: u8[rows, image_size, image_size, C]
          for `Crops`; arrays as they are. Each process makes the rows of its own devices.
        """
        share = self.devices.share
        if self.placed is None:
            for batch in loader.batches(self.store.read, plan, steps, image_size, share):
                yield self.devices.shard(batch)
            return
        crop = _compiled_crop(image_size, jnp.dtype(dtype), self.devices)
        for step in steps:
            yield {
                name: crop(
                    self.placed, self.devices.shard(one.rows.astype(np.int32)),
                    self.devices.shard(one.boxes),
                ) if isinstance(one, Crops) else self.devices.shard(one)
                for name, one in loader.part_of(plan(step), *share).items()
            }  # fmt: skip


@functools.cache
def _compiled_crop(image_size: int, dtype: Any, devices: Devices) -> Callable[..., Any]:
    """(pixels on every device, rows, boxes) -> views; all but the pixels cut over the devices."""

    def crop(pixels: jax.Array, rows: jax.Array, boxes: jax.Array) -> jax.Array:
        return jax.vmap(
            lambda row, box: geometric.crop_and_resize(pixels[row], box, image_size, dtype)
        )(rows, boxes)

    return devices.map(crop, (False, True, True), sharded_out=True, donate=False)
