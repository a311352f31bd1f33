"""Promises of datasets of the TFDS catalog: under TFDS's own mock, and really prepared."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

from hpt_jax.data import catalog, survey
from hpt_jax.data.datasets import fingerprint_of, inspect, open_dataset, prepare
from hpt_jax.data.splits import strata, subset
from hpt_jax.errors import UserError


@contextlib.contextmanager
def mocked(count=40):
    with tfds.testing.mock_data(num_examples=count):
        yield


MOCKED = {  # name -> (classes, whether an image may have several)
    "resisc45": (45, False),
    "uc_merced": (21, False),
    "oxford_flowers102": (102, False),
    "domainnet/sketch": (345, False),
    "imagenet2012": (1000, False),
    "eurosat": (10, False),
    "cifar10": (10, False),
    "voc/2007": (20, True),
    "coco/2014": (80, True),
    "celeb_a": (40, True),
}


@pytest.mark.parametrize("name", MOCKED)
def test_sets_of_the_catalog_open_with_images_labels_and_disjoint_splits(name):
    classes, several = MOCKED[name]
    with mocked():
        dataset = open_dataset(f"tfds:{name}")
        assert len(dataset.images) == 40
        assert len(dataset.class_names) == classes
        assert dataset.multi_label == several
        assert dataset.labels.shape == ((40, classes) if several else (40,))
        assert dataset.labels.max() < (2 if several else classes)
        together = np.concatenate([dataset.splits[name] for name in ("train", "val", "test")])
        assert sorted(together) == list(range(40))
        assert all(len(ids) for ids in dataset.splits.values())
        shapes = set()
        for index in range(8):
            image = dataset.images.read(index)
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
            shapes.add(image.shape)
        fixed = name in ("resisc45", "eurosat", "cifar10", "celeb_a")
        assert (len(shapes) == 1) == fixed  # where TFDS fixes no size, the mock's are ragged
        assert fingerprint_of(f"tfds:{name}") == dataset.fingerprint


def test_reading_is_at_random_and_the_same_from_any_thread():
    with mocked():
        images = open_dataset("tfds:uc_merced").images
        order = np.random.default_rng(0).permutation(40)
        alone = {index: images.read(index) for index in range(40)}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for index, found in zip(order, pool.map(images.read, order), strict=True):
                np.testing.assert_array_equal(found, alone[int(index)])


def test_options_name_splits_and_change_the_fingerprint():
    with mocked():
        dataset = open_dataset("tfds:uc_merced?train=train&val=validation&test=test")
        assert {name: ids.tolist() for name, ids in dataset.splits.items()} == {
            "train": list(range(40)),
            "val": list(range(40, 80)),
            "test": list(range(80, 120)),
        }
        assert dataset.cut == ()
        assert dataset.fingerprint != open_dataset("tfds:uc_merced").fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:resisc", "Did you mean 'resisc45'"),
        ("tfds:qqqq", r"None of the \d+ known ones is like it"),
        ("tfds:cifar10?lable=x", "Did you mean 'label'"),
        ("tfds:cifar10?label=", "found 'label='"),
        ("tfds:voc/1999", "BuilderConfig 1999 not found"),
        ("tfds:cifar10:9.9.9", r"only: 3\.0\.2"),
        ("tfds:", "tfds:NAME"),
    ],
)
def test_a_name_that_tfds_does_not_know_is_explained(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        fingerprint_of(name, str(tmp_path))


def test_features_that_are_not_there_are_named():
    with mocked():
        with pytest.raises(UserError, match="It has label"):
            open_dataset("tfds:cifar10?label=class")
        with pytest.raises(UserError, match=r"features of images are: image"):
            open_dataset("tfds:cifar10?image=picture")
        with pytest.raises(UserError, match="features of images are: none"):
            open_dataset("tfds:eurosat/all")


def test_a_mask_beside_the_image_is_left_alone():
    with mocked():
        dataset = open_dataset("tfds:oxford_iiit_pet")
        assert dataset.images.read(0).shape[2] == 3
        masks = open_dataset("tfds:oxford_iiit_pet?image=segmentation_mask")
        assert masks.images.read(0).shape[2] == 1


def test_voc_can_be_told_by_its_objects():
    with mocked():
        by_object = open_dataset("tfds:voc/2007?label=objects/label")
        assert by_object.multi_label
        assert by_object.labels.shape == (40, 20)


# Really prepared

COUNTS = {"train": 30, "validation": 6, "test": 8}


def pixels_of(split, index):
    seed = 1000 * list(COUNTS).index(split) + index if split in COUNTS else index
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*rng.integers(3, 40, 2), 3), dtype=np.uint8)


class HptTiny(tfds.core.GeneratorBasedBuilder):
    """Ragged images of three classes; the test split has labels, or -1 in the config 'blind'."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (as TFDS has it)
        tfds.core.BuilderConfig(name=name, version="1.0.0") for name in ("plain", "blind", "odd")
    ]

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png", shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
            "quality": tfds.features.ClassLabel(num_classes=2),
        }
        if self.builder_config.name == "odd":
            features["kind"] = features.pop("label")
            features["photo"] = features.pop("image")
            features["mask"] = tfds.features.Image(encoding_format="png", shape=(None, None, 1))
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        if self.builder_config.name == "odd":
            return {
                "full": self._generate_examples("full"),
                "extra": self._generate_examples("extra"),
            }
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for index in range(COUNTS.get(split, 20)):
            label = index % 3
            example = {"image": pixels_of(split, index), "label": label, "quality": 0}
            if self.builder_config.name == "blind" and split == "test":
                example["label"] = -1
            if self.builder_config.name == "odd":
                example["kind"] = example.pop("label")
                example["photo"] = example.pop("image")
                example["mask"] = example["photo"][:, :, :1]
            yield f"{split}{index}", example


def keys_of(split, data_dir, config="plain"):
    """The place of each example in TFDS's own order, by its pixels."""
    builder = tfds.builder(f"hpt_tiny/{config}", data_dir=str(data_dir))
    source = builder.as_data_source(split)
    key = "photo" if config == "odd" else "image"
    return [record[key] for record in (source[i] for i in range(len(source)))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    lines = []
    for config in ("plain", "blind", "odd"):
        prepare(f"tfds:hpt_tiny/{config}", str(folder), lines.append)
    assert len(lines) == 3
    assert all("downloading and preparing" in line for line in lines)
    return folder


def test_a_set_is_prepared_once_and_read_back_as_it_was(prepared):
    lines = []
    prepare("tfds:hpt_tiny/plain", str(prepared), lines.append)
    assert lines == []
    dataset = open_dataset("tfds:hpt_tiny/plain", str(prepared))
    assert {name: len(ids) for name, ids in dataset.splits.items()} == {
        "train": 30,
        "val": 6,
        "test": 8,
    }
    assert dataset.cut == ()
    assert dataset.class_names == ("a", "b", "c")
    for ours, theirs in [("train", "train"), ("val", "validation"), ("test", "test")]:
        wanted = {pixels_of(theirs, i).tobytes(): i % 3 for i in range(COUNTS[theirs])}
        found = {
            dataset.images.read(index).tobytes(): int(dataset.labels[index])
            for index in dataset.splits[ours]
        }
        assert found == wanted


def test_a_test_split_without_labels_gives_way_to_validation(prepared):
    dataset = open_dataset("tfds:hpt_tiny/blind", str(prepared))
    assert dataset.cut == ("val",)
    assert {name: len(ids) for name, ids in dataset.splits.items()} == {
        "train": 27,
        "val": 3,
        "test": 6,
    }
    assert dataset.labels.min() == 0
    # Asked for, it is left as it is.
    asked = open_dataset("tfds:hpt_tiny/blind?test=test", str(prepared))
    assert len(asked.splits["test"]) == 8


def test_slices_make_the_papers_three_splits_of_one(prepared):
    slices = "train=full[:60%]&val=full[60%:80%]&test=full[80%:]"
    name = f"tfds:hpt_tiny/odd?image=photo&label=kind&{slices}"
    dataset = open_dataset(name, str(prepared))
    assert [len(dataset.splits[split]) for split in ("train", "val", "test")] == [12, 4, 4]
    whole = keys_of("full", prepared, "odd")
    for index, image in enumerate(whole):
        np.testing.assert_array_equal(dataset.images.read(index), image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "splits are (full, extra|extra, full)"),
        ("?train=full", "features of images are: (photo, mask|mask, photo)"),
        ("?train=full&image=photo", "it has (kind, quality|quality, kind)"),
        ("?train=full&val=full[:10]&image=photo&label=kind", "val and train do"),
        ("?train=full[:80%]&test=full[70%:]&image=photo", "test and train do"),
        ("?train=most&image=photo&label=kind", "its splits (full, extra|extra, full)"),
    ],
)
def test_what_cannot_be_told_is_asked_for(prepared, options, message):
    with pytest.raises(UserError, match=message):
        open_dataset(f"tfds:hpt_tiny/odd{options}", str(prepared))


def test_the_fingerprint_needs_no_opening_and_follows_config_and_options(prepared):
    names = ["hpt_tiny/plain", "hpt_tiny/blind", "hpt_tiny/plain?train=train[:50%]"]
    found = [fingerprint_of(f"tfds:{name}", str(prepared)) for name in names]
    assert len({*found, None}) == 4
    for name, fingerprint in zip(names, found, strict=True):
        assert open_dataset(f"tfds:{name}", str(prepared)).fingerprint == fingerprint


def test_a_set_of_the_catalog_is_surveyed_as_a_folder_is(prepared):
    dataset = open_dataset("tfds:hpt_tiny/plain", str(prepared))
    found = survey.survey(dataset)
    shapes = [dataset.images.read(index).shape for index in range(len(dataset.images))]
    assert (found.readable, sum(found.classes.values())) == (len(shapes), len(shapes))
    assert found.heights[::2] == (min(s[0] for s in shapes), max(s[0] for s in shapes))
    assert found.channels == {str(shapes[0][2]): len(shapes)}


def test_what_is_not_prepared_is_absent_not_downloaded(tmp_path):
    for name in ("tfds:hpt_tiny/plain", "tfds:cifar10", "tfds:resisc45"):
        assert fingerprint_of(name, str(tmp_path)) is None
        assert inspect(name, str(tmp_path)) is None
        with pytest.raises(UserError, match="not found: "):
            open_dataset(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_must_be_downloaded_by_hand_says_how(tmp_path):
    with pytest.raises(UserError, match="extract it to the manual_dir"):
        prepare("tfds:resisc45", str(tmp_path), print)


def test_a_preparation_that_is_killed_leaves_nothing_that_is_taken_for_complete(
    tmp_path, monkeypatch
):
    def killed(self, split):
        yield "0", {"image": pixels_of("train", 0), "label": 0, "quality": 0}
        raise KeyboardInterrupt

    monkeypatch.setattr(HptTiny, "_generate_examples", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare("tfds:hpt_tiny/plain", str(tmp_path), print)
    assert fingerprint_of("tfds:hpt_tiny/plain", str(tmp_path)) is None
    monkeypatch.undo()
    prepare("tfds:hpt_tiny/plain", str(tmp_path), print)
    assert len(open_dataset("tfds:hpt_tiny/plain", str(tmp_path)).images) == 44


@pytest.fixture
def tfrecord(tmp_path):
    """A copy in TFDS's default format, as users have it."""
    builder = tfds.builder("hpt_tiny/plain", data_dir=str(tmp_path))
    builder.download_and_prepare(file_format="tfrecord")
    return tmp_path


def test_a_tfrecord_copy_is_converted_beside_itself(tfrecord, prepared):
    name, lines = "tfds:hpt_tiny/plain", []
    assert fingerprint_of(name, str(tfrecord)) is None
    prepare(name, str(tfrecord), lines.append)
    assert ["converting" in line for line in lines] == [True]
    found, wanted = (open_dataset(name, str(folder)) for folder in (tfrecord, prepared))
    for index in range(44):
        np.testing.assert_array_equal(found.images.read(index), wanted.images.read(index))
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.fingerprint == wanted.fingerprint
    folder = tfrecord / "hpt_tiny" / "plain" / "1.0.0"
    assert not list(folder.glob("incomplete*"))
    old = tfds.builder("hpt_tiny/plain", data_dir=str(tfrecord)).as_dataset(split="train")
    assert len(list(old)) == 30, "the old copy still serves others"


def test_a_conversion_that_is_killed_is_taken_up_again(tfrecord, monkeypatch):
    from tensorflow_datasets.core import dataset_info

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset_info, "write_dataset_info_proto", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare("tfds:hpt_tiny/plain", str(tfrecord), print)
    assert fingerprint_of("tfds:hpt_tiny/plain", str(tfrecord)) is None
    monkeypatch.undo()
    prepare("tfds:hpt_tiny/plain", str(tfrecord), print)
    assert len(open_dataset("tfds:hpt_tiny/plain", str(tfrecord)).images) == 44


@contextlib.contextmanager
def small_disk(limit=20_000):
    """No file may grow beyond `limit` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_too_small_is_told_and_what_was_begun_is_finished_later(tfrecord, tmp_path):
    name, other = "tfds:hpt_tiny/plain", tmp_path / "other"
    with small_disk(), pytest.raises(UserError, match=r"File too large(.|\n)* make room"):
        prepare(name, str(tfrecord), print)
    with small_disk(), pytest.raises(UserError, match="File too large"):
        prepare(name, str(other), print)
    for folder in (tfrecord, other):
        assert fingerprint_of(name, str(folder)) is None
        prepare(name, str(folder), print)
        assert len(open_dataset(name, str(folder)).images) == 44
        assert not list(folder.glob("hpt_tiny/plain/1.0.0/incomplete*"))


@pytest.mark.parametrize("kind", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_copy_that_cannot_be_written_to_is_named(tfrecord, monkeypatch, kind):
    def refused(*, prefix, dir):
        raise OSError(kind, os.strerror(kind), str(dir))

    monkeypatch.setattr(catalog.tempfile, "TemporaryDirectory", refused)
    with pytest.raises(UserError, match=f"tfrecord files.*{os.strerror(kind)}.*data_dir"):
        prepare("tfds:hpt_tiny/plain", str(tfrecord), print)


@pytest.mark.parametrize(
    "error",
    [
        tfds.download.download_manager.NonMatchingChecksumError("u", "/x"),
        tfds.download.util.DownloadError("no such page"),
        ImportError("Failed importing cv2"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_keeps_tfds_from_preparing_a_set_is_told_without_a_traceback(
    tmp_path, monkeypatch, error
):
    def fails(self, dl_manager):
        raise error

    monkeypatch.setattr(HptTiny, "_split_generators", fails)
    with pytest.raises(UserError, match="a set that TFDS can prepare, but TFDS says"):
        prepare("tfds:hpt_tiny/plain", str(tmp_path), print)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, KeyError])
def test_a_bug_in_a_builder_keeps_its_traceback(tmp_path, monkeypatch, kind):
    def broken(self, dl_manager):
        raise kind("a bug")

    monkeypatch.setattr(HptTiny, "_split_generators", broken)
    with pytest.raises(kind, match="a bug"):
        prepare("tfds:hpt_tiny/plain", str(tmp_path), print)


def test_labels_are_kept_beside_the_records_where_that_is_allowed(tfrecord, monkeypatch):
    prepare("tfds:hpt_tiny/plain", str(tfrecord), print)
    first = open_dataset("tfds:hpt_tiny/plain", str(tfrecord)).labels
    folder = tfrecord / "hpt_tiny" / "plain" / "1.0.0"
    [kept] = folder.glob("labels-*.npy")
    np.testing.assert_array_equal(np.load(kept), first)
    again = open_dataset("tfds:hpt_tiny/plain", str(tfrecord))
    monkeypatch.setattr(catalog._Label, "numbers", None)
    np.testing.assert_array_equal(again.labels, first)


def test_reading_and_cropping_import_no_tensorflow(prepared):
    """In a process of its own: this one has it."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_data_catalog
        from hpt_jax.data import datasets, loader, order, store
        from hpt_jax.augment.geometric import center_crop_boxes
        data_dir = {str(prepared)!r}
        assert datasets.fingerprint_of("tfds:hpt_tiny/blind", data_dir)
        dataset = datasets.open_dataset("tfds:hpt_tiny/blind", data_dir)
        dataset.labels
        made = store.load(dataset, store.Reading(16, 0), 0.0, 0)
        def plan(step):
            rows = order.batch_indices(0, step, 8, len(made))
            return {{"image": loader.Crops(rows, center_crop_boxes(made.sizes[rows], 0.875))}}
        shapes = [batch["image"].shape for batch in loader.batches(made.read, plan, range(5), 12)]
        assert shapes == [(8, 12, 12, 3)] * 5
        assert "tensorflow" not in sys.modules, "imported"
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Several labels an image


def test_a_label_that_was_kept_back_marks_no_class():
    features = tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"]))
    label = catalog._labels_in({"labels": features}, {})["labels"]
    records = [{"labels": np.array(ids)} for ids in ([-1], [0, 2], [1, -1], [])]
    found = label.numbers(records)
    np.testing.assert_array_equal(found, [[0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]])


def test_strata_are_the_rarest_label_of_each_image():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 0, 1]], np.uint8)
    # Label 0 is on four images; 1 and 2 on two each, of which the first wins.
    assert strata(labels).tolist() == [1, 0, 3, 1, 2]
    np.testing.assert_array_equal(strata(np.array([4, 2, 4])), [4, 2, 4])


def test_a_subset_of_several_labels_an_image_has_one_of_every_stratum():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 12)) < np.linspace(0.02, 0.5, 12)).astype(np.uint8)
    groups = strata(labels)
    for amount in (len(np.unique(groups)), 40, 0.3):
        chosen = subset(np.arange(300), labels, amount, seed=1)
        assert set(groups[chosen]) == set(groups)


def test_a_prepared_set_at_an_address_is_the_one_that_was_copied_there(
    prepared, tmp_path, monkeypatch
):
    monkeypatch.setenv("HPT_JAX_CACHE", str(tmp_path))
    there, address = fsspec.filesystem("memory"), "memory://bucket-of-tfds/sets"
    for path in prepared.rglob("*"):
        if path.is_file():
            there.pipe_file(f"{address}/{path.relative_to(prepared)}", path.read_bytes())
    name, lines = "tfds:hpt_tiny/plain", []
    assert inspect(name, address) is None  # it is not copied for a look
    prepare(name, address, lines.append)
    assert not lines
    assert fingerprint_of(name, address) == fingerprint_of(name, str(prepared))
    here, dataset = open_dataset(name, str(prepared)), open_dataset(name, address)
    np.testing.assert_array_equal(dataset.labels, here.labels)
    for index in range(3):
        np.testing.assert_array_equal(dataset.images.read(index), here.images.read(index))
    (copy,) = tmp_path.glob("copy-*/files/hpt_tiny")
    assert [path.name for path in copy.iterdir()] == ["plain"]
