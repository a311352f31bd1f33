"""All images of a stage decoded once and held as one array of uint8 pixels."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence

import numpy as np
from PIL import Image

from hpt_jax.data.images import Dataset, Unreadable
from hpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """Decoded pixels, one row for each readable image.

    Attributes:
      pixels: u8[n, H, W, C], zeros below and to the right of each image.
      sizes: i32[n, 2], each image's true (height, width).
      index: int64[n], each row's index into the dataset, in the order asked for.
      unreadable: (path, reason) of every image that was skipped.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    index: np.ndarray
    unreadable: tuple[tuple[str, str], ...]


def load(
    dataset: Dataset,
    indices: np.ndarray | Sequence[int],
    store_px: int,
    channels: int,
    max_unreadable: float,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Decodes images in threads, shrinks them and packs them into one padded array.

    Args:
      dataset: where the images are.
      indices: int[n], which of them, in the order of the rows.
      store_px: the longest that a short side may be, in pixels; longer ones are brought down to
        it with the aspect kept, shorter ones are never enlarged; 0 is no limit.
      channels: 0 as stored, 1 luma, 3 with grey repeated.
      max_unreadable: the share of unreadable images, in [0, 1], that is skipped without an error.
      progress: called as progress(done, total) after each image, in the calling thread.

    Returns:
      The store of all readable images.

    Raises:
      UserError: too many unreadable images, none readable, or channels that do not fit.
    """
    wanted = [int(index) for index in indices]
    readable: list[np.ndarray] = []
    rows: list[int] = []
    unreadable: list[tuple[str, str]] = []
    named: dict[int, str] = {}  # channel count -> one image that has it
    with contextlib.closing(_decoded(dataset, wanted, store_px, channels)) as results:
        for index, result in zip(wanted, results, strict=True):
            if isinstance(result, Unreadable):
                unreadable.append((result.path, result.reason))
            else:
                named.setdefault(result.shape[-1], dataset.images.name_of(index))
                _check_one_kind(named)
                readable.append(result)
                rows.append(index)
            if progress is not None:
                progress(len(rows) + len(unreadable), len(wanted))
    _check_unreadable(dataset.name, unreadable, len(wanted), max_unreadable)
    pixels, sizes = _packed(readable)
    return Store(pixels, sizes, np.array(rows, np.int64), tuple(unreadable))


def _decoded(
    dataset: Dataset, wanted: list[int], store_px: int, channels: int
) -> Generator[np.ndarray | Unreadable, None, None]:
    """Each wanted image as the store holds it, or why it cannot be read, in order."""

    def prepare(index: int) -> np.ndarray | Unreadable:
        try:
            pixels = dataset.images[index]
        except Unreadable as error:
            return error
        return _stored(pixels, store_px, channels, dataset.images.name_of(index))

    pool = concurrent.futures.ThreadPoolExecutor()
    try:
        yield from pool.map(prepare, wanted)
    finally:
        # After a mistake or an interrupt nobody wants the rest decoded.
        pool.shutdown(cancel_futures=True)


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


def _stored(pixels: np.ndarray, store_px: int, channels: int, name: str) -> np.ndarray:
    """One decoded image u8[h, w, c] as it goes into the store."""
    has = pixels.shape[-1]
    if channels == 1 and has == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    elif channels not in (0, has) and (channels, has) != (3, 1):
        raise UserError(
            "input.channels",
            channels,
            f"a channel count that {name} with its {has} can be turned into",
            "0 keeps channels as stored; 1 (luma) and 3 (grey repeated) take grey or RGB images.",
        )
    pixels = _resized(pixels, *shrunk_size(pixels.shape[0], pixels.shape[1], store_px))
    # Repeating after the resize gives the same values for a third of the work.
    return np.repeat(pixels, 3, axis=-1) if (channels, has) == (3, 1) else pixels


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bilinear resize of u8[h, w, c] to u8[height, width, c], as Pillow defines it."""
    if pixels.shape[:2] == (height, width):
        return pixels
    planes = [
        Image.fromarray(np.ascontiguousarray(pixels[:, :, channel])).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for channel in range(pixels.shape[-1])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _packed(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One padded u8[n, H, W, C] and the i32[n, 2] sizes; empties `images` on the way."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    height, width = sizes.max(axis=0)
    pixels = np.zeros((len(images), height, width, images[0].shape[-1]), np.uint8)
    # From the end, letting go of each image once copied: the set is held about once, not twice.
    for row in reversed(range(len(images))):
        image = images.pop()
        pixels[row, : image.shape[0], : image.shape[1]] = image
    return pixels, sizes


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
