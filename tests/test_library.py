"""Promises of the library: what may be evaluated, what is shared, and how much memory is taken."""

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
