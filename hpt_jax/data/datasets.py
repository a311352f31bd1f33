"""A dataset's name -> its images, labels and splits.

`folder:PATH` reads a folder of image files in place; `package:NAME` takes the images that an
installed Python package ships; `tfds:NAME` is a set of the TensorFlow Datasets catalog. A folder
and prepared sets may lie at an address, as `folder:gs://BUCKET/PATH`: a copy of them is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hpt_jax import remote
from hpt_jax.data import SCHEMES, labels_csv, survey
from hpt_jax.data.catalog import fingerprint_of_catalog, open_catalog
from hpt_jax.data.catalog import prepare as prepare_catalog
from hpt_jax.data.folders import (
    fingerprint_of_folder,
    fingerprint_of_listing,
    may_read,
    open_folder,
)
from hpt_jax.data.images import Dataset
from hpt_jax.data.packages import PACKAGES, fingerprint_of_package, open_package
from hpt_jax.errors import UserError
from hpt_jax.telemetry.display import Watch, unwatched


def open_dataset(
    name: str, data_dir: str = "", val_fraction: float = 0.1, test_fraction: float = 0.2
) -> Dataset:
    """Opens a dataset; no pixel of a folder is read yet, but one at an address is copied.

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
        return open_catalog(name, place, _local(name, data_dir) or data_dir, fractions)
    return open_folder(name, _local(name, data_dir) or _root(place, data_dir), fractions)


def fingerprint_of(name: str, data_dir: str = "") -> str | None:
    """The fingerprint that `open_dataset` would give, or None where the data is absent.

    Reads no pixels of a folder, only paths and sizes; what is at an address is not copied.

    Raises:
      UserError: the name itself is wrong, or an address cannot be used.
    """
    scheme, place = _parse(name)
    if scheme == "package":
        return fingerprint_of_package(place)
    distant = _distant(name, data_dir)
    copy = distant and distant.present()
    if distant and not copy:
        return _fingerprint_there(distant) if scheme == "folder" else None
    if scheme == "tfds":
        return fingerprint_of_catalog(place, str(copy or data_dir))
    return fingerprint_of_folder(name, str(copy or _root(place, data_dir)))


def _fingerprint_there(distant: remote.Set) -> str | None:
    there, listing = distant.listing()
    table = there.read(labels_csv.NAME) if labels_csv.NAME in listing else None
    return fingerprint_of_listing({path: one.size for path, one in listing.items()}, table)


def is_here(name: str, data_dir: str = "") -> bool:
    """Whether `open_dataset` would find it, and copy nothing."""
    distant = _distant(name, data_dir)
    here = distant is None or distant.present() is not None
    return here and fingerprint_of(name, data_dir) is not None


def prepare(
    name: str, data_dir: str, line: Callable[[str], None], watch: Watch = unwatched
) -> None:
    """Fetches a dataset of a catalog or at an address, unless it is there as it is now.

    Args:
      name: of the dataset.
      data_dir: as in `open_dataset`.
      line: where it is told.
      watch: shows the progress.

    Raises:
      UserError: it cannot be had.
    """
    scheme, place = _parse(name)
    distant = _distant(name, data_dir)
    copy = distant and distant.fetch(watch)
    if scheme == "tfds" and distant and not copy:
        expected = f"a prepared set below data_dir (not found: {distant.address}/{distant.below})"
        fix = "Prepare it in a local data_dir, and copy that there."
        raise UserError("dataset", name, expected, fix)
    if scheme == "tfds":
        prepare_catalog(place, str(copy or data_dir), line)


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
    if remote.is_address(place):
        return place
    return os.path.join(os.path.expanduser(data_dir), os.path.expanduser(place))


def shown_place(place: str, data_dir: str) -> str:
    """Where a folder is, as a message has it."""
    root = _root(place, data_dir)
    return root if remote.is_address(root) else str(Path(root))


def _distant(name: str, data_dir: str) -> remote.Set | None:
    """What has to be copied of a dataset that lies at an address; None of others."""
    scheme, place = _parse(name)
    if scheme == "tfds" and remote.is_address(data_dir):
        return remote.Set(data_dir, _all, place.partition("?")[0].partition(":")[0])
    root = _root(place, data_dir)
    return remote.Set(root, may_read) if scheme == "folder" and remote.is_address(root) else None


def _all(path: str) -> bool:
    return True


def _local(name: str, data_dir: str) -> str | None:
    """The copy of a dataset that lies at an address, made where there is none yet."""
    distant = _distant(name, data_dir)
    copy = distant and (distant.known() or distant.fetch())
    return str(copy) if copy else None


def inspect(name: str, data_dir: str = "") -> dict[str, object] | None:
    """Facts of a dataset that templates choose by; None where it is not there.

    Returns:
      See `survey.facts`; those of pixels by a sample of the images.
    """
    if not is_here(name, data_dir):
        return None
    return survey.facts(survey.survey(open_dataset(name, data_dir), most=survey.SAMPLE))
