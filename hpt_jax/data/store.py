"""All images of a dataset as a stage sees them: in memory where they fit, else read when asked for.

Both ways give the same pixels: uint8, short side at most `store_px`, true aspect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpt_jax.data import loader, window
from hpt_jax.data.images import Dataset, Unreadable
from hpt_jax.errors import UserError
from hpt_jax.workdir import whole


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
      store_px: the longest that a short side may be, in pixels; longer ones are brought down to it
        with the aspect kept, shorter ones are never enlarged; 0 is no limit.
      channels: 0 as stored, 1 luma, 3 with grey repeated.
      window: (low, high), the 16-bit values that become 0 and 255; None: as the training images
        have it. 8-bit images have no use for it.
    """

    store_px: int
    channels: int
    window: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """The readable images of a dataset, one row each.

    Attributes:
      dataset: where they come from.
      reading: how they are read, with the window of 16-bit images filled in.
      index: int64[n], each row's index into the dataset, ascending.
      sizes: i32[n, 2], each row's (height, width).
      moments: f64[n, 2, C], means of x and of x^2 over each image, with x in [0, 1].
      unreadable: (path, reason) of every image that was skipped.
      pixels: u8[n, H, W, C], zeros below and to the right of each image; None where they take more
        memory than there is.
    """

    dataset: Dataset
    reading: Reading
    index: np.ndarray
    sizes: np.ndarray
    moments: np.ndarray
    unreadable: tuple[tuple[str, str], ...]
    pixels: np.ndarray | None

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.index)

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.moments.shape[-1]

    @property
    def padded_bytes(self) -> int:
        """Bytes of all images, each padded to the largest height and width."""
        return padded_bytes(len(self), self.sizes.max(axis=0), self.channels)

    def read(self, row: int) -> np.ndarray:
        """One image, u8[h, w, C]; from any thread.

        Raises:
          UserError: the file has changed since the store was made.
        """
        height, width = self.sizes[row]
        if self.pixels is not None:
            return self.pixels[row, :height, :width]
        index = int(self.index[row])
        try:
            found = _stored(self.dataset, index, self.reading)
        except Unreadable as error:
            raise _changed(self.dataset.name, error.path, error.reason) from error
        if found.shape != (height, width, self.channels):
            name = self.dataset.images.name_of(index)
            raise _changed(self.dataset.name, name, f"it is now {found.shape}")
        return found


def padded_bytes(count: int, largest: np.ndarray, channels: int) -> int:
    """Bytes of `count` images padded to the `largest` (height, width)."""
    return count * int(largest[0]) * int(largest[1]) * channels


def load(
    dataset: Dataset,
    reading: Reading,
    max_unreadable: float,
    max_bytes: float,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Reads every image once, in threads, and keeps the pixels as long as they fit.

    Args:
      dataset: where the images are.
      reading: how they are read.
      max_unreadable: the share of unreadable images, in [0, 1], that is skipped without an error.
      max_bytes: of all pixels, each image padded to the largest; beyond it none are kept, and at
        no time more than that.
      progress: called as progress(done, total) after each image, in the calling thread.

    Returns:
      The store of all readable images.

    Raises:
      UserError: too many unreadable images, none readable, or channels or depths that do not fit.
    """
    total = len(dataset.images)
    reading = dataclasses.replace(reading, window=_window(dataset, reading))
    kept: list[np.ndarray] | None = []
    index, sizes, moments = [], [], []
    unreadable: list[tuple[str, str]] = []
    largest = np.zeros(2, np.int64)
    named: dict[int, str] = {}  # channel count -> one image that has it

    def prepare(i: int) -> tuple[np.ndarray, np.ndarray] | Unreadable:
        try:
            pixels = _stored(dataset, i, reading)
        except Unreadable as error:
            return error
        return pixels, _moments(pixels)

    with contextlib.closing(_in_threads(prepare, range(total))) as results:
        for i, result in enumerate(results):
            if isinstance(result, Unreadable):
                unreadable.append((result.path, result.reason))
            else:
                pixels, of_image = result
                named.setdefault(pixels.shape[-1], dataset.images.name_of(i))
                _check_one_kind(named)
                index.append(i)
                sizes.append(pixels.shape[:2])
                moments.append(of_image)
                largest = np.maximum(largest, pixels.shape[:2])
                # Known early, since all the images that are to come count too.
                if padded_bytes(total - len(unreadable), largest, pixels.shape[-1]) > max_bytes:
                    kept = None
                if kept is not None:
                    kept.append(pixels)
            if progress is not None:
                progress(i + 1, total)
    _check_unreadable(dataset.name, unreadable, total, max_unreadable)
    return Store(
        dataset,
        reading,
        np.array(index, np.int64),
        np.array(sizes, np.int32),
        np.array(moments),
        tuple(unreadable),
        None if kept is None else _packed(kept),
    )


_SCANNED = ("window", "index", "sizes", "moments", "unreadable")
# What zipfile and NumPy raise on files that are no zip, or cut short or changed.
_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, OverflowError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip


def save_scan(store: Store, path: Path) -> None:
    """Writes all but the pixels, so that a large set need not be read whole again."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            window=np.array(store.reading.window or (), np.int64),
            index=store.index,
            sizes=store.sizes,
            moments=store.moments,
            unreadable=np.array(store.unreadable, np.str_).reshape(-1, 2),
        )


def load_scan(
    dataset: Dataset, reading: Reading, max_unreadable: float, path: Path
) -> Store | None:
    """The store, without pixels, that `save_scan` wrote for this dataset and reading.

    Returns:
      None where there is no such file, or it is damaged.

    Raises:
      UserError: too many unreadable images.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # by checksums, before a header is believed
                return None
        with np.load(path) as saved:
            limits, index, sizes, moments, skipped = (saved[name] for name in _SCANNED)
    except _DAMAGED:
        return None
    rows, left_out = index.size, len(dataset.images) - index.size
    shapes = [(rows,), (rows, 2), (rows, 2, *moments.shape[2:3]), (left_out, 2)]
    if [part.shape for part in (index, sizes, moments, skipped)] != shapes:
        return None
    if limits.shape not in ((0,), (2,)):
        return None
    unreadable = [(str(path), str(reason)) for path, reason in skipped]
    _check_unreadable(dataset.name, unreadable, len(dataset.images), max_unreadable)
    low_high = (int(limits[0]), int(limits[1])) if len(limits) else None
    seen = dataclasses.replace(reading, window=low_high)
    return Store(dataset, seen, index, sizes, moments, tuple(unreadable), None)


def _in_threads(prepare: Callable[[int], object], items: range) -> Generator[Any, None, None]:
    """`prepare` of each item, in order, with few results waiting at any time."""
    import grain  # late, as in the loader

    ahead = loader.threads()
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=4 * ahead)
    made = grain.MapDataset.range(items.start, items.stop).map(prepare).to_iter_dataset(options)
    with contextlib.closing(iter(made)) as results:
        yield from results


def shrunk_size(height: int, width: int, store_px: int) -> tuple[int, int]:
    """The (height, width) that an image is stored at: its short side at most `store_px`."""
    short = min(height, width)
    if store_px == 0 or short <= store_px:
        return height, width
    # Rounded to the nearest pixel in integers, so that it is the same on every machine.
    return (
        (2 * height * store_px + short) // (2 * short),
        (2 * width * store_px + short) // (2 * short),
    )


def _stored(dataset: Dataset, index: int, reading: Reading) -> np.ndarray:
    """One image of a dataset as the store has it, u8[h, w, c]; raises `Unreadable`."""
    pixels = dataset.images.read(index, reading.store_px)
    if (pixels.dtype == np.uint16) != (reading.window is not None):
        raise UserError(
            "dataset",
            dataset.name,
            f"images that are all of 8 bits or all of 16, but {dataset.images.name_of(index)} has "
            f"{8 * pixels.itemsize} and an earlier one has not",
            "Convert them to one depth.",
        )
    if reading.window is not None:
        pixels = window.apply(pixels, reading.window)
    has, channels = pixels.shape[-1], reading.channels
    if channels == 1 and has == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    elif channels not in (0, has) and (channels, has) != (3, 1):
        raise UserError(
            "input.channels",
            channels,
            f"a channel count that {dataset.images.name_of(index)} with its {has} can be turned "
            "into",
            "0 keeps channels as stored; 1 (luma) and 3 (grey repeated) take grey or RGB images.",
        )
    height, width = shrunk_size(pixels.shape[0], pixels.shape[1], reading.store_px)
    if (height, width) != pixels.shape[:2]:
        pixels = loader.resize(pixels, height, width)
    # Repeating after the resize gives the same values for a third of the work.
    return np.repeat(pixels, 3, axis=-1) if (channels, has) == (3, 1) else pixels


def is_deep(dataset: Dataset) -> bool:
    """Whether the images have 16 bits, by the first that can be read."""
    for index in range(len(dataset.images)):
        with contextlib.suppress(Unreadable):  # counted and named when all images are read
            return dataset.images.read(index, 1).dtype == np.uint16
    return False


def _window(dataset: Dataset, reading: Reading) -> tuple[int, int] | None:
    """The window of a 16-bit set, as given or from its training images; None for an 8-bit set."""
    if not is_deep(dataset):
        return None
    if reading.window is not None:
        return reading.window

    def count(place: int) -> np.ndarray | None:
        try:
            return window.histogram(dataset.images.read(int(train[place]), reading.store_px))
        except Unreadable:
            return None

    train = dataset.splits["train"]
    total = np.zeros(2**16, np.int64)
    for counts in _in_threads(count, range(len(train))):  # which passes over None
        total += counts
    return window.window_of(total)


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Means of x and x^2, f64[2, c], exact: from whole numbers."""
    flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.int64)
    sums = np.stack([flat.sum(axis=0), np.square(flat).sum(axis=0)])
    return sums / len(flat) / np.array([[255.0], [255.0**2]])


def _packed(images: list[np.ndarray]) -> np.ndarray:
    """One padded u8[n, H, W, C]; empties `images` on the way."""
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    pixels = np.zeros((len(images), height, width, images[0].shape[-1]), np.uint8)
    # From the end, letting go of each image once copied: the set is held about once, not twice.
    for row in reversed(range(len(images))):
        image = images.pop()
        pixels[row, : image.shape[0], : image.shape[1]] = image
    return pixels


def _check_one_kind(named: dict[int, str]) -> None:
    if len(named) > 1:
        kinds = " and ".join(f"{name} has {count}" for count, name in sorted(named.items()))
        raise UserError(
            "input.channels",
            0,
            f"images that all have as many channels, but {kinds}",
            "Set --config.input.channels=3 (grey is repeated) or 1 (luma of all).",
        )


def _check_unreadable(
    name: str, unreadable: list[tuple[str, str]], total: int, max_unreadable: float
) -> None:
    if total == 0:
        raise UserError(name, None, "at least one image, but none were asked for", "Add images.")
    if len(unreadable) < total and len(unreadable) / total <= max_unreadable:
        return
    listed = "; ".join(f"{path}: {reason}" for path, reason in unreadable[:5])
    more = "; ..." if len(unreadable) > 5 else ""
    raise UserError(
        name,
        None,
        f"readable images (at most a share of {max_unreadable:g} may be skipped), but "
        f"{len(unreadable)} of {total} cannot be read ({listed}{more})",
        "Mend or remove these files, or raise input.max_unreadable.",
    )


def _changed(name: str, image: str, how: str) -> UserError:
    return UserError(
        "dataset",
        name,
        f"images that stay as they are during a run, but {image} has changed: {how}",
        "Restore it, and run again.",
    )
