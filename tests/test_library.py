"""Promises of the library: what may be evaluated, what is shared, and how much memory is taken."""

import dataclasses
import types

import numpy as np
import pytest

from hpt_jax import library as library_lib
from hpt_jax import parallel, plan
from hpt_jax.config import Config, Input, Stage
from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.errors import UserError
from hpt_jax.library import Library
from hpt_jax.telemetry.display import Display

SPLITS = {"train": np.arange(6), "val": np.arange(6, 8), "test": np.arange(8, 12)}


class Lines(Display):
    def __init__(self):
        super().__init__()
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def stage_of(name="tfds:set", **options):
    """A planned stage on a dataset."""
    config = Stage(dataset=name, steps=1, image_size=8, input=Input(**options))
    asked = Config(stages={"t": config}, arms={"T": ("t",)})
    return plan.make_plan(asked, lambda name: "0", lambda path: "0").stages[0]


def dataset_of(labels=None, dtype=np.uint8, splits=SPLITS, name="tfds:set"):
    """Twelve images of noise."""
    pixels = np.random.default_rng(0).integers(0, 200, (12, 8, 8, 3), dtype)
    if labels is None:
        return Dataset(name, ArrayImages(name, pixels), splits, "0")
    labels = np.asarray(labels)
    several = labels.ndim == 2
    return Dataset(
        name, ArrayImages(name, pixels), splits, "0", lambda: labels, ("a", "b"), several
    )


@pytest.fixture
def library_with(monkeypatch):
    """A function that makes a library which opens one dataset."""

    def make(dataset, count=1, scans=None):
        monkeypatch.setattr(library_lib.datasets, "open_dataset", lambda *_: dataset)
        return Library("", parallel.make_devices(count), Lines(), scans)

    return make


# What may be evaluated

ONE = [0, 1] * 6
SEVERAL = [[0, 1], [1, 0]] * 6


@pytest.mark.parametrize(
    ("labels", "split", "count"),
    [
        ([*ONE[:8], -1, -1, -1, -1], "test", 4),
        ([-1, *ONE[1:]], "train", 1),
        ([*ONE[:7], -1, *ONE[8:]], "val", 1),
        ([*SEVERAL[:8], *[[0, 0]] * 4], "test", 4),
    ],
)
def test_a_split_whose_labels_were_kept_back_is_no_target_but_can_be_pretrained_on(
    library_with, labels, split, count
):
    library, stage = library_with(dataset_of(labels)), stage_of()
    size = len(SPLITS[split])
    with pytest.raises(UserError, match=rf"{count} of the {size} in {split} have none.*test="):
        library.target("tfds:set", stage)
    assert len(library.of_stage(stage).rows) == 8


@pytest.mark.parametrize("labels", [ONE, SEVERAL, [[0, 0], *SEVERAL[1:]]])
def test_a_target_with_labels_is_taken_though_some_images_have_no_class(library_with, labels):
    data = library_with(dataset_of(labels)).target("tfds:set", stage_of())
    np.testing.assert_array_equal(data.labels, labels)


@pytest.mark.parametrize(
    ("name", "fix"), [("tfds:set", "option label="), ("folder:a", "Sort the images into class")]
)
def test_an_unlabelled_target_is_refused_with_a_fix_for_its_kind(library_with, name, fix):
    library = library_with(dataset_of(splits={"train": np.arange(12)}, name=name))
    with pytest.raises(UserError, match=rf"{fix}.*--config\.target=''"):
        library.target(name, stage_of(name))


def test_folders_that_are_no_splits_are_told_of_in_one_note(library_with):
    dataset = dataset_of(splits={"train": np.arange(12)}, name="folder:flat")
    for seen in ((), ("test", "train")):
        library = library_with(dataclasses.replace(dataset, no_splits=seen))
        library.of_stage(stage_of("folder:flat"))
        notes = [line for line in library._display.lines if line.startswith("note: ")]
        assert len(notes) == bool(seen)
    assert "test and train are no splits" in notes[0]
    assert "all its images are pretrained on" in notes[0]


# What is shared


def test_a_target_of_16_bits_is_held_once_however_its_own_window_is_asked_for(library_with):
    library, stage = library_with(dataset_of(ONE, np.uint16)), stage_of()
    feed = library.of_stage(stage).feed
    low, high = feed.store.reading.window
    for window in (None, (low, high)):
        assert library.target("tfds:set", stage, window).feed is feed
    other = library.target("tfds:set", stage, (low, high + 1)).feed
    assert other.store.reading.window == (low, high + 1)
    assert library.target("tfds:set", stage).feed is feed


def test_a_target_of_8_bits_is_held_once_after_a_stage_of_16(library_with):
    library, stage = library_with(dataset_of(ONE)), stage_of()
    feed = library.of_stage(stage).feed
    assert library.target("tfds:set", stage, (3, 9)).feed is feed


@pytest.mark.parametrize("pipeline", ["resident", "host"])
def test_a_window_follows_the_training_images_and_is_not_that_of_another_cut(
    monkeypatch, tmp_path, pipeline
):
    pixels = np.arange(12, dtype=np.uint16)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint16)
    images = ArrayImages("deep", pixels)

    def opened(name, data_dir, val_fraction, test_fraction):
        count = 12 - round(12 * val_fraction)
        splits = {"train": np.arange(count), "val": np.arange(count, 12)}
        return Dataset(name, images, splits, "0")

    monkeypatch.setattr(library_lib.datasets, "open_dataset", opened)
    devices = parallel.make_devices(1)
    together = Library("", devices, Lines(), tmp_path)
    for library in (together, Library("", devices, Lines(), tmp_path)):
        for fraction, highest in ((0.25, 8), (0.5, 5)):
            data = library.of_stage(stage_of(pipeline=pipeline, val_fraction=fraction))
            assert data.store.reading.window == (0, highest)
            assert len(data.dataset.splits["train"]) == highest + 1


def test_a_scan_of_8_bits_serves_every_cut(monkeypatch, library_with, tmp_path):
    dataset, stage = dataset_of(ONE), stage_of(pipeline="host")
    library_with(dataset, scans=tmp_path).of_stage(stage)
    cut = {"train": np.arange(3), "val": np.arange(3, 12)}
    monkeypatch.setattr(library_lib.store_lib, "load", None)  # which reads every image
    again = library_with(dataclasses.replace(dataset, splits=cut), scans=tmp_path)
    assert len(again.of_stage(stage).rows) == 12


# Memory

MIB = 2**20


@pytest.fixture
def machine(monkeypatch):
    """A function that says how much memory is free on the host and on a device."""

    def make(free, device=None):
        memory = types.SimpleNamespace(available=free)
        monkeypatch.setattr(library_lib.psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(parallel.Devices, "memory", lambda self: device)

    return make


@pytest.mark.parametrize("count", [1, 2, 4])
def test_on_devices_that_share_the_hosts_memory_no_moment_takes_more_than_allowed(
    library_with, machine, count
):
    """What is held, a copy for each device, and what is being placed, one copy more."""
    machine(free=64 * MIB)
    size = 12 * 8 * 8 * 3
    library, stage = library_with(dataset_of(), count), stage_of()
    assert library._room(Input()) * (count + 1) == pytest.approx(16 * MIB)
    limit = 10 * size
    options = Input(memory_gib=limit / 2**30)
    assert library._room(options) * (count + 1) == pytest.approx(limit)
    held = library.of_stage(stage).feed.placed
    assert sum(shard.data.nbytes for shard in held.addressable_shards) == count * size
    assert count * size + library._room(options) * (count + 1) == pytest.approx(limit)


def test_an_accelerator_takes_what_it_holds_and_what_the_host_can_read_on_the_way(
    library_with, machine
):
    library = library_with(dataset_of())
    machine(free=10 * MIB, device=8 * MIB)
    assert library._room(Input()) == 2 * MIB
    assert library._room(Input(memory_gib=6 / 1024)) == 5 * MIB
    machine(free=1000 * MIB, device=8 * MIB)
    assert library._room(Input(memory_gib=6 / 1024)) == 6 * MIB
    assert library._room(Input(memory_gib=1.0)) == 8 * MIB
    library.of_stage(stage_of())
    assert library._room(Input(memory_gib=1.0)) == 8 * MIB - 12 * 8 * 8 * 3


def test_a_limit_that_leaves_no_room_for_the_copy_on_the_way_means_the_host_pipeline(library_with):
    size = 12 * 8 * 8 * 3
    fits = library_with(dataset_of()).of_stage(stage_of(memory_gib=2 * size / 2**30))
    assert fits.feed.placed is not None
    not_so = library_with(dataset_of()).of_stage(stage_of(memory_gib=1.9 * size / 2**30))
    assert not_so.feed.placed is None
