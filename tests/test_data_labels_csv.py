"""Promises of folders whose labels are in a `labels.csv`."""

import numpy as np
import pytest
from PIL import Image

from hpt_jax.data.datasets import fingerprint_of, inspect, open_dataset
from hpt_jax.errors import UserError


def folder(root, table, *images):
    for path in images:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(root / path)
    content = table if isinstance(table, bytes) else table.encode()
    (root / "labels.csv").write_bytes(content)
    return f"folder:{root}"


def labels_of(dataset):
    """Names of classes by image, by split."""
    return {
        split: {
            dataset.images.paths[i]: {
                name for name, is_so in zip(dataset.class_names, dataset.labels[i], strict=True)
                if is_so
            }
            for i in ids
        }
        for split, ids in dataset.splits.items()
    }  # fmt: skip


def test_rows_give_splits_and_any_number_of_classes(tmp_path):
    dataset = open_dataset(
        folder(
            tmp_path,
            "split,car,image,bus\n"
            "test,1,b/1.png,\n"
            "train,1.0,c.png,1\n"
            "train,0,a.png,-1\n"
            "valid,-1.0,b/2.png,0.0\n"
            "train,,d.png,1\n",
            "a.png", "b/1.png", "b/2.png", "c.png", "d.png",
        )
    )  # fmt: skip
    assert dataset.class_names == ("car", "bus")
    assert dataset.multi_label
    assert dataset.labels.dtype == np.uint8
    assert dataset.cut == ()
    assert dataset.strays == ()
    assert labels_of(dataset) == {
        "train": {"a.png": set(), "c.png": {"car", "bus"}, "d.png": {"bus"}},
        "val": {"b/2.png": set()},
        "test": {"b/1.png": {"car"}},
    }
    assert all(
        ids.dtype == np.int64 and (np.diff(ids) > 0).all() for ids in dataset.splits.values()
    )


@pytest.mark.parametrize("split", ["", "split"])
def test_what_the_rows_do_not_split_is_cut_from_train(tmp_path, split):
    names = [f"{i:02}.png" for i in range(40)]
    header = "image,one,two" + (",split" if split else "")
    rows = [f"{name},{i % 2},{i % 3 == 0:d}" for i, name in enumerate(names)]
    if split:
        rows = [f"{row},{'test' if i < 10 else 'train'}" for i, row in enumerate(rows)]
    dataset = open_dataset(folder(tmp_path, "\n".join([header, *rows]), *names))
    sizes = [len(dataset.splits[name]) for name in ("train", "val", "test")]
    assert sizes == ([27, 3, 10] if split else [28, 4, 8])
    assert dataset.cut == (("val",) if split else ("val", "test"))
    assert sorted(np.concatenate(list(dataset.splits.values()))) == list(range(40))


def test_one_column_is_a_set_of_several_labels_too(tmp_path):
    dataset = open_dataset(folder(tmp_path, "image,flood\na.png,1\nb.png,0\n", "a.png", "b.png"))
    assert dataset.multi_label
    assert dataset.labels.tolist() == [[1], [0]]
    assert inspect(dataset.name)["multi_label"]


def test_a_table_goes_before_class_folders(tmp_path):
    table = "image,split,x\ncat/a.png,train,1\ndog/b.png,train,0\n"
    dataset = open_dataset(folder(tmp_path, table, "cat/a.png", "dog/b.png"))
    assert dataset.class_names == ("x",)


def test_what_spreadsheets_write_is_read(tmp_path):
    table = '\ufeffimage,"a, b"\r\n"x,1.png", 1 \r\n,\r\n\r\ny.png,0\r\n'
    dataset = open_dataset(folder(tmp_path, table, "x,1.png", "y.png"))
    assert dataset.class_names == ("a, b",)
    assert dict(zip(dataset.images.paths, dataset.labels.tolist(), strict=True)) == {
        "x,1.png": [1],
        "y.png": [0],
    }


def test_images_without_a_row_are_left_out_and_named(tmp_path):
    name = folder(tmp_path, "image,x\nb.png,1\nd.png,0\n", "a.png", "b.png", "c/c.png", "d.png")
    dataset = open_dataset(name)
    assert dataset.strays == ("a.png", "c/c.png")
    assert dataset.images.paths == ("b.png", "d.png")
    assert sorted(np.concatenate(list(dataset.splits.values()))) == [0, 1]
    # Those below the table are a set of their own, without labels.
    assert not open_dataset(f"{name}/c").labelled


def test_the_fingerprint_follows_the_table(tmp_path):
    table = "image,x\na.png,1\nb.png,0\n"
    name = folder(tmp_path, table, "a.png", "b.png")
    first = fingerprint_of(name)
    assert first == open_dataset(name).fingerprint
    folder(tmp_path, table.replace("1", "0"))
    second = fingerprint_of(name)
    assert second == open_dataset(name).fingerprint
    (tmp_path / "labels.csv").unlink()
    assert len({first, second, fingerprint_of(name)}) == 3


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("", None, "a header and rows"),
        ("image,x\n", None, "at least one row of train"),
        ("file,x\na.png,1\n", 1, "a column called image"),
        ("image;x\na.png;1\n", 1, "commas between columns"),
        ("image,split\na.png,train\n", 1, "a column for each class"),
        (",image,x\n0,a.png,1\n", 1, "a name for every column"),
        ("image,x,x\na.png,1,1\n", 1, "different names"),
        ("image,x\na.png,1\nb.png,yes\n", 3, "'yes': expected 1, 0, -1 or nothing under x"),
        ("image,x\na.png,nan\n", 2, "'nan': expected 1, 0, -1"),
        ("image,x\na.png,1\n\nb.png,0\na.png,0\n", 5, "line 2 names it too"),
        ("image,x\nz.png,1\n", 2, "'z.png': expected the path of an image"),
        ("image,x\nc\\c.png,1\n", 2, "forward slashes"),
        ("image,x,split\na.png,1,train\nb.png,1,pool\n", 3, "'pool': expected a split, train, val"),
        ("image,x,split\na.png,1,\n", 2, "'': expected a split"),
        ("image,x,split\na.png,1,test\nb.png,0,val\n", None, "at least one row of train"),
        ("image,x\na.png\n", 2, "2 cells, as in the header, but there are 1"),
        ("image,x\na.png,1,0\n", 2, "2 cells, as in the header, but there are 3"),
        ('image,x\n"a.png"1,1\n', 2, "comma-separated values"),
        (b"image,x\na.png,1\n\xe4.png,1\n", 3, "UTF-8"),
    ],
)
def test_a_mistake_in_the_table_names_its_line(tmp_path, table, line, message):
    name = folder(tmp_path, table, "a.png", "b.png", "c/c.png")
    with pytest.raises(UserError) as caught:
        open_dataset(name)
    place = f"{tmp_path}/labels.csv" + (f":{line}" if line else "")
    assert [mistake.field for mistake in caught.value.mistakes] == [place]
    assert message in str(caught.value)


def test_many_wrong_lines_are_one_short_message(tmp_path):
    rows = "".join(f"{i}.png,1\n" for i in range(30))
    with pytest.raises(UserError) as caught:
        open_dataset(folder(tmp_path, "image,x\n" + rows, "a.png"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[-1].endswith("(25 more lines are wrong.)")


def test_a_table_that_cannot_be_read_is_a_mistake(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(UserError, match="a file that can be read"):
        fingerprint_of(f"folder:{tmp_path}")
