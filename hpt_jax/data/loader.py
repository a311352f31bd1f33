"""The host pipeline: decode each image once, crop its views, batches ahead of time in threads."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Mapping

import numpy as np
from PIL import Image

try:
    import cykooz_resizer as simd
except ModuleNotFoundError:  # there is no wheel of it for Linux on ARM
    simd = None

# Batches that are made at one time, at most; each thread makes a whole one.
_MAX_THREADS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Crops:
    """One view of a batch: what to cut out of which images.

    Attributes:
      rows: int64[n], the images, as rows of a `Store`.
      boxes: f32[n, 4]: top, left, height, width, in pixels.
    """

    rows: np.ndarray
    boxes: np.ndarray


# What a batch is made of: views to cut, and arrays that pass as they are.
Plan = Mapping[str, Crops | np.ndarray]


def threads() -> int:
    """How many batches are made at one time."""
    return min(os.cpu_count() or 1, _MAX_THREADS)


def batches(
    read: Callable[[int], np.ndarray],
    plan: Callable[[int], Plan],
    steps: range,
    image_size: int,
    share: tuple[int, int] = (0, 1),
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of some steps, made ahead of time in threads.

    Order and content depend on no thread.

    Args:
      read: row -> u8[h, w, c]; called from several threads.
      plan: step -> what the global batch is made of.
      steps: which, with step 1.
      image_size: side of a view, in pixels.
      share: (index, count) of this host: it makes the index-th of `count` equal parts of each
        batch, and reads the images of that part alone.

    Yields:
      For each step the host's part: u8[rows, image_size, image_size, c] for `Crops`, and rows of
      the arrays.
    """
    import grain  # two seconds that only sets on disk need

    def make(step: int) -> dict[str, np.ndarray]:
        return make_batch(read, part_of(plan(step), *share), image_size)

    ahead = threads()
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    made = grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(options)
    # Closed with this generator: threads that read on would outlive an interrupted run.
    with contextlib.closing(iter(made)) as results:
        yield from results


def part_of(plan: Plan, index: int, count: int) -> Plan:
    """The index-th of `count` equal parts of a batch."""

    def part(values: np.ndarray) -> np.ndarray:
        size = len(values) // count
        return values[index * size : (index + 1) * size]

    return {
        name: Crops(part(one.rows), part(one.boxes)) if isinstance(one, Crops) else part(one)
        for name, one in plan.items()
    }


def make_batch(
    read: Callable[[int], np.ndarray], plan: Plan, image_size: int
) -> dict[str, np.ndarray]:
    """Reads each image of a plan once and cuts all its views."""
    views = {name: one for name, one in plan.items() if isinstance(one, Crops)}
    places = collections.defaultdict(list)  # row -> where it is shown
    for name, crops in views.items():
        for slot, row in enumerate(crops.rows):
            places[int(row)].append((name, slot))
    made: dict[str, np.ndarray] = {}
    for row, shown in places.items():
        image = read(row)
        for name, slot in shown:
            view = crop_and_resize(image, views[name].boxes[slot], image_size)
            if name not in made:
                made[name] = np.empty((len(views[name].rows), *view.shape), np.uint8)
            made[name][slot] = view
    return {name: made[name] if isinstance(one, Crops) else one for name, one in plan.items()}


def crop_and_resize(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Cuts a box out of an image and resizes it to a square, bilinear with antialiasing.

    The same as `augment.geometric.crop_and_resize` within one grey level.

    Args:
      image: u8[h, w, c].
      box: f32[4]: top, left, height, width, inside the image; may be fractional.
      size: side of the result in pixels.

    Returns:
      u8[size, size, c].
    """
    top, left, height, width = (float(x) for x in box)
    # Whole pixels first: the filter would reach beyond its box, into the rest of the image.
    # A border that is whole but for rounding must not let in the pixel behind it.
    slack = 1e-3
    y0, x0 = int(np.floor(top + slack)), int(np.floor(left + slack))
    y1, x1 = int(np.ceil(top + height - slack)), int(np.ceil(left + width - slack))
    inner = (
        max(left - x0, 0.0),
        max(top - y0, 0.0),
        min(left + width - x0, x1 - x0),
        min(top + height - y0, y1 - y0),
    )
    part = image[y0:y1, x0:x1]
    return resize(part, size, size, inner) if simd is None else _simd_resize(part, size, inner)


def _simd_resize(
    image: np.ndarray, size: int, box: tuple[float, float, float, float]
) -> np.ndarray:
    """`resize` to a square within one grey level, in a third of the time."""
    (height, width), channels = image.shape[:2], image.shape[2]
    if channels > 4:
        planes = [_simd_resize(image[:, :, [i]], size, box) for i in range(channels)]
        return np.concatenate(planes, axis=-1)
    left, top, right, bottom = box
    kind = simd.PixelType[f"U8x{channels}" if channels > 1 else "U8"]
    options = simd.ResizeOptions(
        simd.ResizeAlg.convolution(simd.FilterType.bilinear),
        use_alpha=False,  # whatever the second or fourth channel is
        crop_box=simd.CropBox(left, top, right - left, bottom - top),
    )
    resized = simd.ImageData(size, size, kind)
    # Each its own: a resizer lets one thread in at a time.
    simd.Resizer().resize(simd.ImageData(width, height, kind, image.tobytes()), resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size, size, channels)


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Antialiased bilinear resize of u8[h, w, c] to u8[height, width, c], as Pillow defines it.

    Args:
      image: the pixels.
      height: of the result, in pixels.
      width: of the result, in pixels.
      box: left, top, right, bottom of the part to see; None: all.
    """
    if image.shape[-1] == 3:
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))
    planes = [
        Image.fromarray(np.ascontiguousarray(image[:, :, channel])).resize(
            (width, height), Image.Resampling.BILINEAR, box
        )
        for channel in range(image.shape[-1])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
