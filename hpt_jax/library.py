"""The datasets of a run: each opened once, read once, put on the devices once where it fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hpt_jax import config as config_lib
from hpt_jax import plan
from hpt_jax.data import datasets, loader, statistics
from hpt_jax.data import store as store_lib
from hpt_jax.data.images import Dataset
from hpt_jax.data.splits import subset
from hpt_jax.data.store import Reading, Store
from hpt_jax.errors import UserError
from hpt_jax.feed import Feed
from hpt_jax.parallel import Devices
from hpt_jax.telemetry.display import Display


@dataclasses.dataclass(frozen=True, eq=False)
class StageData:
    """A stage's images.

    Attributes:
      feed: all readable images of the dataset, on their way to the devices.
      rows: int64[m], the rows of the feed's store that the stage trains on.
      splits: the rows of 'train', 'val' and 'test'.
      pixel_mean: f32[C], over `rows`.
      pixel_std: f32[C], over `rows`.
    """

    feed: Feed
    rows: np.ndarray
    splits: dict[str, np.ndarray]
    pixel_mean: np.ndarray
    pixel_std: np.ndarray

    @property
    def store(self) -> Store:
        """The images."""
        return self.feed.store

    @property
    def dataset(self) -> Dataset:
        """Where they come from."""
        return self.feed.store.dataset

    @property
    def labels(self) -> np.ndarray:
        """Of each row of the store: i32[n], or u8[n, classes] for a multi-label set."""
        return self.dataset.labels[self.store.index]


class Library:
    """Opens, reads and keeps the datasets that the stages of a run ask for.

    Args:
      data_dir: where relative folders and prepared TFDS sets are.
      devices: where images go, of this process alone.
      display: where progress goes.
      scans: a folder that remembers what was read of sets too large to be held; None: none does.
    """

    def __init__(
        self, data_dir: str, devices: Devices, display: Display, scans: Path | None = None
    ):
        self._data_dir = data_dir
        self._devices = devices
        self._display = display
        self._scans = scans
        self._datasets: dict[Any, Dataset] = {}
        self._feeds: dict[Any, Feed] = {}
        self._stage_data: dict[Any, StageData] = {}

    def of_stage(self, stage: plan.Stage) -> StageData | None:
        """What a stage is trained on; None where it reads no dataset.

        Raises:
          UserError: the data is absent, unreadable or does not fit the config.
        """
        name = stage.config.dataset
        return self._data(name, stage.config, stage.seed) if name else None

    def target(
        self, name: str, stage: plan.Stage, window: tuple[int, int] | None = None
    ) -> StageData:
        """The dataset `name`, as images of the size and channels that `stage` was trained on.

        Args:
          name: of the dataset.
          stage: that is evaluated on it.
          window: of 16-bit images, that the stage was trained with; None: the dataset's own.

        Raises:
          UserError: as `of_stage`, or it has no labels, an empty split or one without labels.
        """
        every = dataclasses.replace(stage.config, splits=("train", "val"), subset=1.0)
        data = self._data(name, every, seed=0, window=window)
        if not data.dataset.labelled:
            expected, fix = datasets.how_labelled(name)
            fix = f"{fix}, or evaluate nothing: --config.target=''."
            raise UserError("target", name, expected, fix)
        for split, rows in data.splits.items():
            if not len(rows):
                raise UserError("target", name, f"at least one {split} image", "Add images.")
            _check_labels(name, split, data.labels[rows])
        train = data.labels[data.splits["train"]]
        if not data.dataset.multi_label and len(np.unique(train)) < 2:
            expected = "training images of at least two classes, to be told apart"
            raise UserError("target", name, expected, "Add some of another class.")
        return data

    def _data(
        self,
        name: str,
        stage: config_lib.Stage,
        seed: int,
        window: tuple[int, int] | None = None,
    ) -> StageData:
        key = (name, stage.input, stage.image_size, stage.splits, stage.subset, seed, window)
        if key not in self._stage_data:
            self._stage_data[key] = self._gather(name, stage, seed, window)
        return self._stage_data[key]

    def _gather(
        self, name: str, stage: config_lib.Stage, seed: int, window: tuple[int, int] | None
    ) -> StageData:
        dataset = self._open(name, stage.input)
        feed = self._feed(dataset, stage, window)
        store = feed.store
        rows_of = np.full(len(dataset.images), -1)
        rows_of[store.index] = np.arange(len(store))
        splits = {split: _kept(rows_of[ids]) for split, ids in dataset.splits.items()}

        wanted = [dataset.splits[split] for split in stage.splits if split in dataset.splits]
        if not wanted:
            raise UserError(
                "splits", stage.splits, f"some of {name}'s {tuple(dataset.splits)}", "Add one."
            )
        chosen = np.sort(np.concatenate(wanted))
        readable = chosen[rows_of[chosen] >= 0]
        if not len(readable):
            expected = f"at least one readable image in {' and '.join(stage.splits)}"
            raise UserError("dataset", name, expected, "Add images.")
        if stage.subset != 1.0:  # else no label needs to be read
            labels = dataset.labels if dataset.labelled else None
            readable = subset(readable, labels, stage.subset, seed)
        rows = rows_of[readable]
        mean, std = statistics.pixel_statistics(store.moments[rows])
        return StageData(feed, rows, splits, mean, std)

    def _open(self, name: str, options: config_lib.Input) -> Dataset:
        key = (name, options.val_fraction, options.test_fraction)
        if key not in self._datasets:
            self._datasets[key] = datasets.open_dataset(
                name, self._data_dir, options.val_fraction, options.test_fraction
            )
        return self._datasets[key]

    def _feed(
        self, dataset: Dataset, stage: config_lib.Stage, window: tuple[int, int] | None
    ) -> Feed:
        options = stage.input
        store_px = options.store_px or -(-stage.image_size * 8 // 7)
        reading = Reading(store_px, options.channels, window)
        # By the dataset itself: one with other splits has another window.
        shared = (dataset, store_px, options.channels, options.pipeline, options.memory_gib)
        own = self._feeds.get((*shared, None))
        # A stage mostly asks for the window that the images have anyway, and 8-bit ones have none.
        if own is not None and own.store.reading.window in (None, window):
            return own
        key = (*shared, window)
        if key not in self._feeds:
            room = self._room(options)
            store = self._load(dataset, reading, options.max_unreadable, room)
            placed = None
            if store.pixels is not None:
                placed = self._devices.replicate(store.pixels)
                store = dataclasses.replace(store, pixels=None)  # held by the devices alone
            self._feeds[key] = Feed(store, self._devices, placed)
            self._describe(self._feeds[key], options, room)
        return self._feeds[key]

    def _load(
        self, dataset: Dataset, reading: Reading, max_unreadable: float, room: float
    ) -> Store:
        known = [plan.RECIPE_VERSION, dataset.fingerprint, dataclasses.asdict(reading)]
        if self._scans and reading.window is None and store_lib.is_deep(dataset):
            known.append(dataset.splits["train"].tolist())  # in which the window is found
        path = self._scans / f"{plan.content_hash(known)}.npz" if self._scans else None
        if path is not None:
            scanned = store_lib.load_scan(dataset, reading, max_unreadable, path)
            if scanned is not None and scanned.padded_bytes > room:
                return scanned
        with self._display.progress(f"reading {dataset.name}", len(dataset.images)) as update:
            store = store_lib.load(
                dataset,
                reading,
                max_unreadable,
                room,
                progress=lambda done, total: update(done, ""),
            )
        if path is not None and store.pixels is None:
            store_lib.save_scan(store, path)
        return store

    def _room(self, options: config_lib.Input) -> float:
        """Bytes of pixels that one more set may take, held once by every device."""
        if options.pipeline != "auto":
            return float("inf") if options.pipeline == "resident" else 0.0
        held = sum(feed.placed.nbytes for feed in self._feeds.values() if feed.placed is not None)
        free = psutil.virtual_memory().available
        limit, memory = options.memory_gib * 2**30, self._devices.memory()
        if memory is None:  # devices that share the host's memory hold a copy each
            copies = self._devices.count
            left = limit - held * copies if limit else free / 4
            return left / (copies + 1)  # the set that is being placed is there once more
        # While it is read, a set is in the host's memory.
        return min(min(limit or memory / 4, memory) - held, free / 2)

    def _describe(self, feed: Feed, options: config_lib.Input, room: float) -> None:
        store, dataset = feed.store, feed.store.dataset
        height, width = store.sizes.max(0)
        parts = ", ".join(f"{len(ids)} {split}" for split, ids in dataset.splits.items())
        cut = f" ({' and '.join(dataset.cut)} cut from train)" if dataset.cut else ""
        labels = "labels, any number an image" if dataset.multi_label else "classes"
        classes = f"{len(dataset.class_names)} {labels}" if dataset.labelled else "unlabelled"
        size = store.padded_bytes / 2**20
        why = f"{size:.0f} MiB decoded, {room / 2**20:.0f} MiB allowed"
        if options.pipeline != "auto":
            why = f"input.pipeline = {options.pipeline}, {size:.0f} MiB decoded"
        how = "resident: decoded once and held by the devices"
        if feed.placed is None:
            how = f"host: read again for every batch, in {loader.threads()} threads"
        self._display.line(
            f"{dataset.name}: {parts}{cut}, {classes}, up to {height}x{width} px, "
            f"channels: {store.channels}"
        )
        self._display.line(f"{dataset.name}: {how} ({why})")
        if store.reading.window:
            low, high = store.reading.window
            self._display.line(f"{dataset.name}: 16 bit, of which {low} to {high} are seen")
        if dataset.left_out:
            self._display.line(
                f"note: {dataset.name}: {dataset.left_out} DICOM files are left out; they are read "
                "with pydicom: pip install pydicom"
            )
        if dataset.strays and dataset.labelled:
            self._display.line(
                f"note: {dataset.name}: {len(dataset.strays)} images, such as {dataset.strays[0]}, "
                "have no row in its labels.csv and are left out (a folder below it is read without "
                "labels, and whole)"
            )
        elif dataset.strays:
            self._display.line(
                f"note: {dataset.name} has no labels, because {dataset.strays[0]} lies in no class "
                f"folder ({len(dataset.strays)} such images): all its images are pretrained on"
            )
        elif dataset.no_splits:
            named = " and ".join(dataset.no_splits)
            self._display.line(
                f"note: {dataset.name} has no labels, because not every image is "
                f"<split>/<class>/<image> or there is no train: {named} are no splits, all its "
                "images are pretrained on"
            )
        if store.unreadable:
            shown = "; ".join(f"{path}: {reason}" for path, reason in store.unreadable[:5])
            self._display.line(f"skipped {len(store.unreadable)} unreadable images: {shown}")


def _check_labels(name: str, split: str, labels: np.ndarray) -> None:
    """Refuses a split whose labels were kept back, which catalogs write as -1 or as no class."""
    absent = labels < 0 if labels.ndim == 1 else np.full(len(labels), not labels.any())
    if absent.any():
        raise UserError(
            "target",
            name,
            f"labels of all images, but {absent.sum()} of the {len(labels)} in {split} have none",
            "Take other splits, by the options train=, val= and test= of its name.",
        )


def _kept(rows: np.ndarray) -> np.ndarray:
    """Rows without those of unreadable images."""
    return rows[rows >= 0]
