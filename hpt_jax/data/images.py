"""What a dataset is: images by index, their labels and their splits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np


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

    def read(self, index: int, short_side: int = 0) -> np.ndarray:
        """One image, u8 or u16[h, w, c].

        Args:
          index: which.
          short_side: it may be smaller than stored, as long as its short side keeps this many
            pixels; 0: as stored.

        Raises:
          Unreadable: it cannot be decoded.
        """

    def whole_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of an image that `read` may make smaller, else None; from any thread.

        Raises:
          Unreadable: its header cannot be read.
        """

    def name_of(self, index: int) -> str:
        """How a message names this image: its path, where it has one."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images u8[n, h, w, c] that are in memory already."""

    name: str
    pixels: np.ndarray

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    def read(self, index: int, short_side: int = 0) -> np.ndarray:
        """One image u8[h, w, c], as it is."""
        return self.pixels[index]

    def whole_size(self, index: int) -> None:
        """None: images are read as they are."""

    def name_of(self, index: int) -> str:
        """The set and the image's place in it."""
        return f"{self.name}[{index}]"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels and splits.

    Attributes:
      name: as the config names it.
      images: random access, decoded when asked for.
      splits: 'train', 'val', 'test' -> disjoint sorted int64 indices into images; an unlabelled
        set has 'train' alone.
      fingerprint: 16 hex digits that change with the data.
      read_labels: gives `labels`; None for an unlabelled set.
      class_names: name of each class; empty for an unlabelled set.
      multi_label: whether an image may have any number of classes.
      cut: the splits that were cut from train, because the data came without them.
      strays: of an unlabelled folder that has class folders, the images outside them; of a folder
        with a table of labels, the images that it does not name, which are in no split.
      no_splits: of an unlabelled folder, the folders in it that are called like splits.
      left_out: how many DICOM files are no images here, because pydicom is not installed.
    """

    name: str
    images: Images
    splits: dict[str, np.ndarray]
    fingerprint: str
    read_labels: Callable[[], np.ndarray] | None = None
    class_names: tuple[str, ...] = ()
    multi_label: bool = False
    cut: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    no_splits: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def labelled(self) -> bool:
        """Whether there are labels; does not read them."""
        return self.read_labels is not None

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """i32[len(images)], or u8[len(images), classes] of zeros and ones for a multi-label set.

        Read when first asked for: labels that lie inside the records of a large set take long, and
        most of pretraining does without.
        """
        assert self.read_labels is not None, f"{self.name} is unlabelled"
        return self.read_labels()
