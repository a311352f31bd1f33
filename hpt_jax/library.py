"""The datasets of a run: each opened once, decoded once, put on the devices once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hpt_jax import config as config_lib
from hpt_jax import plan
from hpt_jax.data import datasets, resident, statistics
from hpt_jax.data.images import Dataset
from hpt_jax.data.splits import subset
from hpt_jax.errors import UserError
from hpt_jax.parallel import Devices
from hpt_jax.telemetry.display import Display


@dataclasses.dataclass(frozen=True, eq=False)
class StageData:
    """A stage's images on the devices.

    Attributes:
      dataset: where they come from.
      store: all its readable images, on the host.
      pixels: u8[n, H, W, C], the same on every device.
      sizes: i32[n, 2], true (height, width).
      rows: int64[m], the rows of `pixels` that the stage trains on.
      splits: the rows of 'train', 'val' and 'test'.
      pixel_mean: f32[C], over `rows`.
      pixel_std: f32[C], over `rows`.
    """

    dataset: Dataset
    store: resident.Store
    pixels: Any
    sizes: Any
    rows: np.ndarray
    splits: dict[str, np.ndarray]
    pixel_mean: np.ndarray
    pixel_std: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """i32[n], of each row of `pixels`."""
        return self.dataset.labels[self.store.index]


class Library:
    """Opens, decodes and keeps the datasets that the stages of a run ask for."""

    def __init__(self, data_dir: str, devices: Devices, display: Display):
        self._data_dir = data_dir
        self._devices = devices
        self._display = display
        self._datasets: dict[Any, Dataset] = {}
        self._stores: dict[Any, tuple[resident.Store, Any, Any]] = {}
        self._stage_data: dict[Any, StageData] = {}

    def of_stage(self, stage: plan.Stage) -> StageData | None:
        """What a stage is trained on; None where it reads no dataset.

        Raises:
          UserError: the data is absent, unreadable or does not fit the config.
        """
        name = stage.config.dataset
        return self._data(name, stage.config, stage.seed) if name else None

    def target(self, name: str, stage: plan.Stage) -> StageData:
        """The dataset `name`, as images of the size and channels that `stage` was trained on.

        Raises:
          UserError: as `of_stage`, or it has no labels or an empty split.
        """
        every = dataclasses.replace(stage.config, splits=("train", "val"), subset=1.0)
        data = self._data(name, every, seed=0)
        if not data.dataset.labelled:
            raise UserError(
                "target",
                name,
                "labelled images, <class>/<image> or <split>/<class>/<image> and nothing else",
                "Sort the images into class folders, or evaluate nothing: --config.target=''.",
            )
        for split, rows in data.splits.items():
            if not len(rows):
                raise UserError("target", name, f"at least one {split} image", "Add images.")
        return data

    def _data(self, name: str, stage: config_lib.Stage, seed: int) -> StageData:
        key = (name, stage.input, stage.image_size, stage.splits, stage.subset, seed)
        if key not in self._stage_data:
            self._stage_data[key] = self._gather(name, stage, seed)
        return self._stage_data[key]

    def _gather(self, name: str, stage: config_lib.Stage, seed: int) -> StageData:
        dataset = self._open(name, stage.input)
        store, pixels, sizes = self._load(dataset, stage)
        rows_of = np.full(len(dataset.images), -1)
        rows_of[store.index] = np.arange(len(store.index))
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
        rows = rows_of[subset(readable, dataset.labels if dataset.labelled else None, stage.subset, seed)]
        mean, std = statistics.pixel_statistics(store, rows)
        return StageData(dataset, store, pixels, sizes, rows, splits, mean, std)

    def _open(self, name: str, options: config_lib.Input) -> Dataset:
        key = (name, options.val_fraction, options.test_fraction)
        if key not in self._datasets:
            self._datasets[key] = datasets.open_dataset(
                name, self._data_dir, options.val_fraction, options.test_fraction
            )
        return self._datasets[key]

    def _load(
        self, dataset: Dataset, stage: config_lib.Stage
    ) -> tuple[resident.Store, Any, Any]:
        store_px = stage.input.store_px or -(-stage.image_size * 8 // 7)
        channels = stage.input.channels
        key = (dataset.name, dataset.fingerprint, store_px, channels)
        if key not in self._stores:
            every = np.arange(len(dataset.images))
            with self._display.progress(f"decoding {dataset.name}", len(every)) as update:
                store = resident.load(
                    dataset,
                    every,
                    store_px,
                    channels,
                    stage.input.max_unreadable,
                    progress=lambda done, total: update(done, ""),
                )
            self._describe(dataset, store)
            placed = self._devices.replicate((store.pixels, store.sizes))
            self._stores[key] = (store, *placed)
        return self._stores[key]

    def _describe(self, dataset: Dataset, store: resident.Store) -> None:
        height, width = store.sizes.max(0)
        parts = ", ".join(f"{len(ids)} {split}" for split, ids in dataset.splits.items())
        cut = f" ({' and '.join(dataset.cut)} cut from train)" if dataset.cut else ""
        classes = f"{len(dataset.class_names)} classes" if dataset.class_names else "unlabelled"
        self._display.line(
            f"{dataset.name}: {parts}{cut}, {classes}, up to {height}x{width} px, "
            f"channels: {store.pixels.shape[-1]}, {store.pixels.nbytes / 2**20:.0f} MiB held"
        )
        if dataset.strays:
            self._display.line(
                f"note: {dataset.name} has no labels, because {dataset.strays[0]} lies in no class "
                f"folder ({len(dataset.strays)} such images): all its images are pretrained on"
            )
        if store.unreadable:
            shown = "; ".join(f"{path}: {reason}" for path, reason in store.unreadable[:5])
            self._display.line(f"skipped {len(store.unreadable)} unreadable images: {shown}")


def _kept(rows: np.ndarray) -> np.ndarray:
    """Rows without those of unreadable images."""
    return rows[rows >= 0]
