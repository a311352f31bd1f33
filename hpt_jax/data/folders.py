"""`folder:PATH`: a folder of image files, read in place."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hpt_jax.data import dicom, labels_csv
from hpt_jax.data.decode import decode, whole_size
from hpt_jax.data.images import Dataset
from hpt_jax.data.splits import SPLIT_OF, SPLITS, with_cut_splits
from hpt_jax.errors import UserError

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
)  # fmt: skip
_INSTALL = "pip install pydicom"
# Ways along links by which one folder may be reached; folders that link each other make millions.
_MOST_WAYS = 100


@dataclasses.dataclass(frozen=True)
class FolderImages:
    """Image files below a folder, decoded when asked for."""

    root: str
    paths: tuple[str, ...]

    def __len__(self) -> int:
        """How many files there are."""
        return len(self.paths)

    def read(self, index: int, short_side: int = 0) -> np.ndarray:
        """One image, u8 or u16[h, w, c]; raises `Unreadable`."""
        return decode(self.name_of(index), short_side=short_side)

    def whole_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of a JPEG, None of others; raises `Unreadable`."""
        return whole_size(self.name_of(index))

    def name_of(self, index: int) -> str:
        """The file's whole path."""
        return os.path.join(self.root, self.paths[index])


def open_folder(name: str, root: str, fractions: dict[str, float]) -> Dataset:
    """Opens a folder; no pixel is read yet.

    Args:
      name: as the config names it.
      root: its path; a `labels.csv` there goes before what the folders below it tell.
      fractions: share of train that becomes 'val' and 'test' where a labelled set has none.

    Raises:
      UserError: it is absent, empty or does not hold together.
    """
    if not os.path.isdir(root):
        raise UserError(
            "dataset",
            name,
            f"a folder of images (not found: {root})",
            "Mend the path, or set data_dir to the folder that it is relative to.",
        )
    files, left_out = _image_files(name, root)
    if not files:
        raise _no_images(name, root, left_out)
    paths = tuple(path for path, _ in files)
    table = labels_csv.content_of(root)
    fingerprint = _folder_fingerprint(files, table)
    if table is not None:
        made = _open_table(name, root, paths, fingerprint, table, fractions)
    else:
        made = _open_folders(name, root, paths, fingerprint, fractions)
    return dataclasses.replace(made, left_out=left_out)


def _open_folders(
    name: str, root: str, paths: tuple[str, ...], fingerprint: str, fractions: dict[str, float]
) -> Dataset:
    """A folder whose labels, if any, are what the folders in it are called."""
    images = FolderImages(root, paths)
    layout = _layout(name, paths)
    if layout is None:
        everything = np.arange(len(paths), dtype=np.int64)
        return Dataset(
            name,
            images,
            {"train": everything},
            fingerprint,
            strays=_strays(paths),
            no_splits=tuple(sorted({path.split("/")[0] for path in paths} & SPLIT_OF.keys())),
        )
    in_split = np.array([split for split, _ in layout])
    class_names = tuple(sorted({label for split, label in layout if split == "train"}))
    _check_classes(name, layout, class_names)
    number = {label: index for index, label in enumerate(class_names)}
    labels = np.array([number[label] for _, label in layout], np.int32)
    given = {split: np.flatnonzero(in_split == split) for split in SPLITS if split in in_split}
    splits, cut = with_cut_splits(given, labels, fractions)
    return Dataset(
        name, images, splits, fingerprint, lambda: labels, class_names, multi_label=False, cut=cut
    )


def _open_table(
    name: str,
    root: str,
    paths: Sequence[str],
    fingerprint: str,
    content: bytes,
    fractions: dict[str, float],
) -> Dataset:
    """A folder whose labels are in a table; images that it does not name are left out."""
    table = labels_csv.read(content, os.path.join(root, labels_csv.NAME), frozenset(paths))
    given = {
        split: np.flatnonzero(table.in_split == split)
        for split in SPLITS
        if split in table.in_split
    }
    splits, cut = with_cut_splits(given, table.labels, fractions)
    return Dataset(
        name,
        FolderImages(root, table.paths),
        splits,
        fingerprint,
        lambda: table.labels,
        table.class_names,
        multi_label=True,
        cut=cut,
        strays=tuple(sorted(set(paths) - set(table.paths))),
    )


def fingerprint_of_folder(name: str, root: str) -> str | None:
    """The fingerprint that `open_folder` would give, or None where there are no images."""
    files = _image_files(name, root)[0] if os.path.isdir(root) else []
    return _folder_fingerprint(files, labels_csv.content_of(root)) if files else None


def may_read(path: str) -> bool:
    """Whether a file may belong to a set, by its path below the folder."""
    name = path.rpartition("/")[2]
    if any(part.startswith(".") for part in path.split("/")):
        return False
    suffix = os.path.splitext(name)[1]
    known = name.lower().endswith(SUFFIXES + dicom.SUFFIXES)
    return known or path == labels_csv.NAME or suffix in ("", ".") or suffix[1:].isdecimal()


def fingerprint_of_listing(sizes: Mapping[str, int], table: bytes | None) -> str | None:
    """The fingerprint that a folder of such files would have; None where it takes more to tell.

    Args:
      sizes: bytes of each file that `may_read` has let through, by its path.
      table: the content of its `labels.csv`, if it has one.
    """
    suffixes = SUFFIXES + (dicom.SUFFIXES if dicom.installed() else ())
    files = [one for one in sorted(sizes.items()) if one[0].lower().endswith(suffixes)]
    unsure = dicom.installed() and len(files) + (table is not None) < len(sizes)
    return _folder_fingerprint(files, table) if files and not unsure else None


def _no_images(name: str, root: str, left_out: int) -> UserError:
    if left_out:
        expected = f"image files, but {root} has DICOM files alone ({left_out:,})"
        return UserError("dataset", name, expected, f"They are read with pydicom: {_INSTALL}.")
    return UserError(
        "dataset",
        name,
        f"image files, but {root} has none",
        f"Known suffixes: {' '.join(SUFFIXES + dicom.SUFFIXES)}; hidden files and folders are "
        "skipped.",
    )


def _image_files(name: str, root: str) -> tuple[list[tuple[str, int]], int]:
    """(path below root with forward slashes, size in bytes) of every image, sorted by path.

    And how many more there would be with pydicom.
    """
    try:
        found = sorted(_walk(name, root))
    except OSError as error:
        raise UserError(
            "dataset",
            name,
            f"folders that can be read, but: {error.strerror} ({error.filename})",
            "Mend that, or take it away.",
        ) from error
    taken = (False, True) if dicom.installed() else (False,)
    files = [(path, size) for path, size, is_dicom in found if is_dicom in taken]
    return files, len(found) - len(files)


def _walk(name: str, root: str) -> Iterator[tuple[str, int, bool]]:
    """(path, size, whether it is DICOM) of every image.

    Follows linked folders, which are common in class trees, but never into a loop.
    """
    # A link to what the root lies in leads back to the root.
    around = frozenset(map(_identity, pathlib.Path(root).resolve().parents))
    ways: collections.Counter[tuple[int, int]] = collections.Counter()
    folders = [(root, "", around)]
    while folders:
        folder, prefix, above = folders.pop()
        here = _identity(folder)
        if here in above:
            continue
        ways[here] += 1
        if ways[here] > _MOST_WAYS:
            expected = f"links that do not multiply, but more than {_MOST_WAYS} ways lead to"
            raise UserError("dataset", name, f"{expected} {folder}", "Remove some of its links.")
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
                    folders.append((entry.path, f"{prefix}{entry.name}/", above | {here}))
                elif not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                    continue
                elif entry.name.lower().endswith(SUFFIXES):
                    yield prefix + entry.name, found.st_size, False
                elif dicom.named_as_dicom(entry.path, entry.name):
                    yield prefix + entry.name, found.st_size, True


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _folder_fingerprint(files: Sequence[tuple[str, int]], table: bytes | None) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path, size in files:
        # Names need not be UTF-8, and only a zero byte cannot occur in one.
        digest.update(path.encode("utf-8", "surrogateescape") + f"\0{size}\n".encode())
    if table is not None:
        digest.update(b"\0" + table)
    return digest.hexdigest()


def _layout(name: str, paths: Sequence[str]) -> list[tuple[str, str]] | None:
    """(split, class name) of each path, or None where the folders do not tell classes."""
    parts = [path.split("/") for path in paths]
    if all(len(part) >= 3 and part[0] in SPLIT_OF for part in parts):
        if any(part[0] == "train" for part in parts):
            _check_split_names(name, sorted({part[0] for part in parts}))
            return [(SPLIT_OF[part[0]], part[1]) for part in parts]
        return None
    if any(len(part) < 2 or part[0] in SPLITS for part in parts):
        return None
    if len({part[0] for part in parts}) < 2:
        return None
    return [("train", part[0]) for part in parts]


def _check_split_names(name: str, folders: Sequence[str]) -> None:
    for split in SPLITS:
        alike = [folder for folder in folders if SPLIT_OF[folder] == split]
        if len(alike) > 1:
            expected = f"one folder of {split} images, but it has {' and '.join(alike)}"
            raise UserError("dataset", name, expected, "Join them, or take one away.")


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
