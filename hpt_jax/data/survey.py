"""What a dataset holds, found by looking at its images before anything is trained on them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from hpt_jax.data import loader, window
from hpt_jax.data.images import Dataset, Unreadable
from hpt_jax.data.order import permutation
from hpt_jax.data.splits import SPLITS
from hpt_jax.data.statistics import pixel_statistics
from hpt_jax.errors import UserError
from hpt_jax.shapes import SURVEY
from hpt_jax.workdir import read_json, write_json

MOST = 50_000  # images that are looked at; of larger sets a sample
SAMPLE = 64  # the same where there is no time, as in a dry run
# Pixels of a short side that are enough to judge an image by.
_SIDE = 256
_SAMPLE_KEY = 0x737572766579  # away from the keys of splits, subsets and batches
# Standard deviation below which an image is of one colour, as a share of the range of values.
_BLANK = 0.01
_MOST_NAMED = 3
_DECODERS = (
    "pillow", "imagecodecs", "tifffile", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg", "gdcm", "python-gdcm",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found. Fields of images that were looked at leave unreadable ones out.

    Attributes:
      dataset: its name.
      fingerprint: of the dataset.
      images: how many there are.
      looked_at: how many of them were looked at; what follows is of these, but for the splits.
      decoders: versions of what has decoded them.
      splits: split -> images, as they came: what is cut from train counts under train.
      cut: the splits that are cut from train.
      pretrained_on: images that are not of test, less the unreadable ones among them.
      classes: class -> images, of all splits; empty for an unlabelled set.
      multi_label: whether an image may have any number of classes.
      heights: smallest, median and largest, in pixels.
      widths: the same.
      short_sides: the same of the shorter side of each.
      channels: channels -> images.
      depths: bits of a value, '8' or '16' -> images.
      grey: images of one channel, or of three that are equal everywhere.
      copies: images that equal an earlier one pixel by pixel.
      copies_in_test: those of test that equal one that is trained on.
      copies_named: a few of them, each with the image that it equals.
      blank: images of nearly one colour.
      blank_named: a few of them.
      unreadable: how many cannot be decoded.
      unreadable_named: a few of them, each with the reason.
      pixel_mean: of each channel of the images that have the most usual count of channels, as
        shares of the largest value (255 or 65535).
      pixel_std: the same.
      window: of 16-bit images, the values between which nearly all lie; empty for others.
    """

    dataset: str
    fingerprint: str
    images: int
    looked_at: int
    decoders: str
    splits: dict[str, int]
    cut: tuple[str, ...]
    pretrained_on: int
    classes: dict[str, int]
    multi_label: bool
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    short_sides: tuple[int, int, int]
    channels: dict[str, int]
    depths: dict[str, int]
    grey: int
    copies: int
    copies_in_test: int
    copies_named: tuple[tuple[str, str], ...]
    blank: int
    blank_named: tuple[str, ...]
    unreadable: int
    unreadable_named: tuple[tuple[str, str], ...]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    window: tuple[int, ...]

    @property
    def readable(self) -> int:
        """Images that were looked at and could be decoded."""
        return self.looked_at - self.unreadable

    @property
    def is_grey(self) -> bool:
        """Whether no image has colours."""
        return self.grey == self.readable

    @property
    def all_alike(self) -> bool:
        """Whether all images are the same one."""
        return self.copies == self.readable - 1 > 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Look:
    """One image: what its pixels were looked at for."""

    size: tuple[int, int]
    channels: int
    deep: bool
    digest: bytes
    grey: bool
    moments: np.ndarray  # f64[2, c], E[x] and E[x^2], x in [0, 1]


def survey(
    dataset: Dataset, progress: Callable[[int], None] | None = None, most: int = MOST
) -> Survey:
    """Looks at a dataset's images, in threads, each once and not larger than need be.

    Args:
      dataset: where they are.
      progress: called with the count of images looked at, after each, in the calling thread.
      most: how many are looked at; of a set of more, a sample that is the same every time.

    Raises:
      UserError: none can be read.
    """
    total = len(dataset.images)
    indices = np.arange(total)
    if total > most:
        indices = np.sort(permutation((_SAMPLE_KEY, 0), total)[:most])
    looks: dict[int, _Look] = {}
    unreadable: dict[int, Unreadable] = {}
    values = np.zeros(2**16, np.int64)

    def look(index: int) -> tuple[_Look, np.ndarray | None] | Unreadable:
        try:
            return _look(dataset, index)
        except Unreadable as error:
            return error

    with contextlib.closing(_in_threads(look, indices.tolist())) as results:
        for done, (index, found) in enumerate(results, 1):
            if isinstance(found, Unreadable):
                unreadable[index] = found
            else:
                looks[index], counts = found
                values += 0 if counts is None else counts
            if progress is not None:
                progress(done)
    if not looks:
        raise _nothing_readable(dataset, list(unreadable.values()))
    return Survey(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        images=total,
        looked_at=len(indices),
        decoders=_decoders(),
        **_of_splits(dataset, unreadable.keys()),
        **_of_sizes(np.array([one.size for one in looks.values()])),
        channels=_counted(one.channels for one in looks.values()),
        depths=_counted(16 if one.deep else 8 for one in looks.values()),
        grey=sum(one.grey for one in looks.values()),
        **_of_copies(dataset, looks),
        **_of_pixels(dataset, looks, window.window_of(values) if values.any() else ()),
        unreadable=len(unreadable),
        unreadable_named=tuple(
            (error.path, error.reason) for error in list(unreadable.values())[:_MOST_NAMED]
        ),
    )


def path_of(folder: Path, fingerprint: str) -> Path:
    """Where the survey of a dataset is kept below a workdir's folder of surveys."""
    return folder / f"{fingerprint}.json"


def save(found: Survey, folder: Path) -> None:
    """Keeps a survey, so that the images need not be looked at again."""
    write_json(path_of(folder, found.fingerprint), dataclasses.asdict(found))


def load(folder: Path, name: str, fingerprint: str) -> Survey | None:
    """What `save` kept of a dataset; None where there is nothing, or it is damaged.

    Also where other decoders are installed by now, which may read what could not be read.

    Args:
      folder: a workdir's folder of surveys.
      name: of the dataset, as it is called now: one folder may be named in many ways.
      fingerprint: of the dataset.
    """
    content = read_json(path_of(folder, fingerprint), SURVEY)
    if content is None or content["fingerprint"] != fingerprint:
        return None
    if content["unreadable"] and content["decoders"] != _decoders():
        return None
    values = {field.name: _frozen(content[field.name]) for field in dataclasses.fields(Survey)}
    return Survey(**values | {"dataset": name})


def facts(found: Survey) -> dict[str, object]:
    """What templates choose by.

    Returns:
      'images' (count, without test), 'labelled' (bool), 'classes' (count), 'multi_label' (bool),
      'short_side' (median, pixels), 'channels' (the most that an image has), 'grey' (bool: no image
      has colours).
    """
    return {
        "images": found.pretrained_on,
        "labelled": bool(found.classes),
        "classes": len(found.classes),
        "multi_label": found.multi_label,
        "short_side": found.short_sides[1],
        "channels": max(map(int, found.channels)),
        "grey": found.is_grey,
    }


def lines(found: Survey) -> list[str]:
    """A survey in words, for a terminal."""
    told = [f"{found.dataset}: looked at {looked_at(found)}"]
    told += [f"  {name:<12}{text}" for name, text in rows(found)]
    if found.all_alike:
        told.append("note: all images are the same one: there is nothing to learn from them")
    return told


def looked_at(found: Survey) -> str:
    """How many of how many images were looked at, in words."""
    part = "all" if found.looked_at == found.images else f"{found.looked_at:,} of the"
    return f"{part} {found.images:,} images"


def rows(found: Survey) -> list[tuple[str, str]]:
    """A survey as (name, text) pairs; what there is nothing of is left out."""
    told = [("images", _images(found)), ("sizes", _sizes(found)), ("pixels", _pixels(found))]

    def short(path: str) -> str:
        """A file's path below the folder that the dataset's name tells."""
        return path.rpartition(f"{found.dataset.partition(':')[2].rstrip('/')}/")[2]

    def named(count: int, names: Sequence[str]) -> str:
        return f"{'; '.join(names)}{'; ...' if count > len(names) else ''}"

    if found.copies:
        pairs = [f"{short(one)} = {short(other)}" for one, other in found.copies_named]
        leaked = found.copies_in_test
        leaks = f" ({leaked:,} of test also in train, and kept)" if leaked else ""
        told.append(("duplicates", f"{found.copies:,}{leaks}: {named(found.copies, pairs)}"))
    if found.blank:
        names = [short(path) for path in found.blank_named]
        told.append(("one colour", f"{found.blank:,}: {named(found.blank, names)}"))
    if found.unreadable:
        names = [f"{short(path)}: {reason}" for path, reason in found.unreadable_named]
        told.append(("unreadable", f"{found.unreadable:,}: {named(found.unreadable, names)}"))
    return told


def _images(found: Survey) -> str:
    splits = [split for split in SPLITS if split in found.splits]
    parts = ", ".join(f"{found.splits[split]:,} {split}" for split in splits)
    cut = f" ({' and '.join(found.cut)} cut from train)" if found.cut else ""
    if not found.classes:
        count = f"{found.splits['train']:,}" if splits == ["train"] else parts
        return f"{count}, without labels"
    counts = sorted((count, name) for name, count in found.classes.items())
    (fewest, rarest), (most, commonest) = counts[0], counts[-1]
    sizes = f"{most:,} each"
    if fewest < most:
        sizes = f"{fewest:,} ({rarest}) to {most:,} ({commonest})"
    kind = "labels, any number an image," if found.multi_label else "classes"
    return f"{parts}{cut}; {len(counts):,} {kind} of {sizes}"


def _sizes(found: Survey) -> str:
    (low, middle, high), (left, centre, right) = found.heights, found.widths
    if (low, left) == (high, right):
        return f"all {high}x{right} px (height x width)"
    return f"{low}x{left} to {high}x{right} px (height x width), median {middle}x{centre}"


def _pixels(found: Survey) -> str:
    names = {"1": "grey", "3": "RGB"}
    kinds = [
        f"{names.get(channels, f'{channels} channels')}"
        + (f" ({count:,})" if len(found.channels) > 1 else "")
        for channels, count in found.channels.items()
    ]
    grey = " without colours" if found.is_grey and "3" in found.channels else ""
    bits = " and ".join(f"{depth} bit" for depth in found.depths)
    span = f", values {found.window[0]:,} to {found.window[1]:,}" if found.window else ""
    mean, std = (" ".join(f"{x:.2f}" for x in v) for v in (found.pixel_mean, found.pixel_std))
    return f"{' and '.join(kinds)}{grey}, {bits}{span}; mean {mean}, deviation {std}"


def _look(dataset: Dataset, index: int) -> tuple[_Look, np.ndarray | None]:
    """One image, and how often it has each value if it has 16 bits; raises `Unreadable`."""
    pixels = dataset.images.read(index, _SIDE)
    size = dataset.images.whole_size(index) or pixels.shape[:2]
    digest = hashlib.blake2b(repr((size, pixels.shape, pixels.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    deep, channels = pixels.dtype == np.uint16, pixels.shape[2]
    stride = max(1, min(pixels.shape[:2]) // _SIDE)
    seen = pixels[::stride, ::stride]
    shares = seen.reshape(-1, channels) / (65535.0 if deep else 255.0)
    look = _Look(
        size=(int(size[0]), int(size[1])),
        channels=channels,
        deep=deep,
        digest=digest.digest(),
        grey=channels == 1 or (channels == 3 and bool((seen == seen[:, :, :1]).all())),
        moments=np.stack([shares.mean(axis=0), np.square(shares).mean(axis=0)]),
    )
    return look, window.histogram(seen) if deep else None


def _in_threads(
    make: Callable[[int], Any], items: Sequence[int]
) -> Generator[tuple[int, Any], None, None]:
    """(item, `make` of it), in order, with few results waiting at any time."""
    ahead = loader.threads()
    waiting: collections.deque[tuple[int, Future[Any]]] = collections.deque()
    with ThreadPoolExecutor(ahead) as pool:
        for item in items:
            waiting.append((item, pool.submit(make, item)))
            if len(waiting) > 4 * ahead:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _decoders() -> str:
    found = []
    for name in _DECODERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def _counted(kinds: Iterable[int]) -> dict[str, int]:
    return {str(kind): count for kind, count in sorted(collections.Counter(kinds).items())}


def _of_splits(dataset: Dataset, unreadable: Collection[int]) -> dict[str, Any]:
    splits = {split: len(ids) for split, ids in dataset.splits.items()}
    given = {split: count for split, count in splits.items() if split not in dataset.cut}
    given["train"] += sum(splits[split] for split in dataset.cut)
    trained = np.concatenate([ids for split, ids in dataset.splits.items() if split != "test"])
    classes: dict[str, int] = {}
    if dataset.labelled:
        labels = dataset.labels[np.concatenate(list(dataset.splits.values()))]
        sizes = (
            labels.sum(axis=0, dtype=np.int64)
            if dataset.multi_label
            else np.bincount(labels[labels >= 0], minlength=len(dataset.class_names))
        )
        classes = dict(zip(dataset.class_names, map(int, sizes), strict=True))
    return {
        "splits": given,
        "cut": dataset.cut,
        "pretrained_on": len(trained) - len(set(trained.tolist()) & set(unreadable)),
        "classes": classes,
        "multi_label": dataset.multi_label,
    }


def _of_sizes(sizes: np.ndarray) -> dict[str, Any]:
    """From i64[n, 2], (height, width) of each."""

    def spread(values: np.ndarray) -> tuple[int, int, int]:
        return int(values.min()), int(np.median(values)), int(values.max())

    return {
        "heights": spread(sizes[:, 0]),
        "widths": spread(sizes[:, 1]),
        "short_sides": spread(sizes.min(axis=1)),
    }


def _of_copies(dataset: Dataset, looks: Mapping[int, _Look]) -> dict[str, Any]:
    alike: dict[bytes, list[int]] = {}
    for index, look in looks.items():
        alike.setdefault(look.digest, []).append(index)
    test = set(dataset.splits.get("test", np.zeros(0)).tolist())
    groups = [group for group in alike.values() if len(group) > 1]
    tested = [[index for index in group if index in test] for group in groups]
    return {
        "copies": sum(len(group) - 1 for group in groups),
        "copies_in_test": sum(
            len(here) for group, here in zip(groups, tested, strict=True) if len(here) < len(group)
        ),
        "copies_named": tuple(
            (dataset.images.name_of(group[1]), dataset.images.name_of(group[0]))
            for group in groups[:_MOST_NAMED]
        ),
    }


def _of_pixels(
    dataset: Dataset, looks: Mapping[int, _Look], seen: tuple[int, ...]
) -> dict[str, Any]:
    """Statistics, with the images of nearly one colour; `seen` is the window of 16-bit ones."""
    span = (seen[1] - seen[0]) / 65535 if seen else 1.0
    blank = []
    for index, look in looks.items():
        first, second = look.moments
        deviation = np.sqrt(np.maximum(second - np.square(first), 0)).max()
        if deviation < _BLANK * (span if look.deep else 1.0):
            blank.append(index)
    usual = collections.Counter(look.channels for look in looks.values()).most_common(1)[0][0]
    mean, std = pixel_statistics(
        np.array([look.moments for look in looks.values() if look.channels == usual])
    )
    return {
        "blank": len(blank),
        "blank_named": tuple(dataset.images.name_of(index) for index in blank[:_MOST_NAMED]),
        "pixel_mean": tuple(round(float(value), 6) for value in mean),
        "pixel_std": tuple(round(float(value), 6) for value in std),
        "window": seen,
    }


def _nothing_readable(dataset: Dataset, errors: Sequence[Unreadable]) -> UserError:
    named = "; ".join(f"{error.path}: {error.reason}" for error in errors[:_MOST_NAMED])
    more = "; ..." if len(errors) > _MOST_NAMED else ""
    expected = f"readable images, but none of {len(errors)} can be read ({named}{more})"
    return UserError("dataset", dataset.name, expected, "Mend or replace these files.")


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
