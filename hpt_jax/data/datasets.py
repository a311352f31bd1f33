"""A dataset's name -> its images, labels and splits.

`folder:PATH` reads a folder of image files in place; `package:NAME` takes the images that an
installed Python package ships; `tfds:NAME` is a set of the TensorFlow Datasets catalog.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hpt_jax.data import SCHEMES, survey
from hpt_jax.data.catalog import fingerprint_of_catalog, open_catalog
from hpt_jax.data.catalog import prepare as prepare_catalog
from hpt_jax.data.folders import fingerprint_of_folder, open_folder
from hpt_jax.data.images import Dataset
from hpt_jax.data.packages import PACKAGES, fingerprint_of_package, open_package
from hpt_jax.errors import UserError


def open_dataset(
    name: str, data_dir: str = "", val_fraction: float = 0.1, test_fraction: float = 0.2
) -> Dataset:
    """Opens a dataset; no pixel of a folder is read yet.

    Args:
      name: `folder:PATH`, `package:NAME` or `tfds:NAME`.
      data_dir: where relative folders and prepared TFDS sets are looked for.
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
        return open_package(name, place, fractions)
    if scheme == "tfds":
        return open_catalog(name, place, data_dir, fractions)
    return open_folder(name, _root(place, data_dir), fractions)


def fingerprint_of(name: str, data_dir: str = "") -> str | None:
    """The fingerprint that `open_dataset` would give, or None where the data is absent.

    Reads no pixels of a folder, only paths and sizes.

    Raises:
      UserError: the name itself is wrong.
    """
    scheme, place = _parse(name)
    if scheme == "package":
        return fingerprint_of_package(place)
    if scheme == "tfds":
        return fingerprint_of_catalog(place, data_dir)
    return fingerprint_of_folder(name, _root(place, data_dir))


def prepare(name: str, data_dir: str, line: Callable[[str], None]) -> None:
    """Fetches a dataset of a catalog, unless it is there; all others are what they are.

    Args:
      name: of the dataset.
      data_dir: as in `open_dataset`.
      line: where it is told.

    Raises:
      UserError: it cannot be had.
    """
    scheme, place = _parse(name)
    if scheme == "tfds":
        prepare_catalog(place, data_dir, line)


def how_labelled(name: str) -> tuple[str, str]:
    """What would make an unlabelled dataset a labelled one, and how: no full stop at the end."""
    if _parse(name)[0] == "tfds":
        return "a set with labels", "Say where they are, with the option label= of its name"
    return (
        "labelled images, <class>/<image> or <split>/<class>/<image> and nothing else, or a table "
        "of labels at the top, labels.csv",
        "Sort the images into class folders, or write the table",
    )


def _parse(name: str) -> tuple[str, str]:
    """`scheme:place` taken apart."""
    scheme, _, place = name.partition(":")
    if scheme in SCHEMES and place:
        return scheme, place
    raise UserError(
        "dataset",
        name,
        "folder:PATH, package:NAME or tfds:NAME",
        f"Write folder:PATH for a folder of images, package:NAME ({', '.join(PACKAGES)}), or "
        "tfds:NAME for a set of the TensorFlow Datasets catalog.",
    )


def _root(place: str, data_dir: str) -> str:
    return os.path.join(os.path.expanduser(data_dir), os.path.expanduser(place))


def inspect(name: str, data_dir: str = "") -> dict[str, object] | None:
    """Facts of a dataset that templates choose by; None where it is not there.

    Returns:
      See `survey.facts`; those of pixels by a sample of the images.
    """
    if fingerprint_of(name, data_dir) is None:
        return None
    return survey.facts(survey.survey(open_dataset(name, data_dir), most=survey.SAMPLE))
