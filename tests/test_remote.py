"""What lies at an address is what it would be here."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from small_files import DONE, LINEAGE

from hpt_jax import remote
from hpt_jax.data import datasets, dicom
from hpt_jax.errors import UserError
from hpt_jax.telemetry.display import unwatched
from hpt_jax.weights import load

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def address():
    """Of a place in memory of its own."""
    return f"memory://bucket-{uuid.uuid4().hex}"


@pytest.fixture
def images(tmp_path):
    """<class>/<image>, and what is none."""
    folder = tmp_path / "images"
    for index in range(12):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * index, np.uint8)).save(path)
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(b"none")
    return folder


def put(folder, address):
    """Copies a local folder to an address."""
    for path in folder.rglob("*"):
        if path.is_file():
            MEMORY.pipe_file(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gs://bucket/set", True),
        ("s3://bucket", True),
        ("/data/images", False),
        ("images", False),
        ("s3:/bucket", False),
        ("://x", False),
        ("", False),
    ],
)
def test_an_address_begins_with_a_protocol(text, expected):
    assert remote.is_address(text) == expected


def test_a_set_has_the_fingerprint_of_the_folder_with_the_same_files(images, address):
    put(images, address)
    name, wanted = f"folder:{address}", datasets.fingerprint_of(f"folder:{images}")
    told = datasets.fingerprint_of(name)
    # Whether files without a suffix are DICOM is not told by a listing; there are none here.
    assert told == wanted
    assert not datasets.is_here(name)
    opened = datasets.open_dataset(name)
    assert opened.fingerprint == wanted == datasets.fingerprint_of(name)
    assert datasets.is_here(name)
    there = datasets.open_dataset(f"folder:{images}")
    assert opened.class_names == there.class_names
    assert {k: v.tolist() for k, v in opened.splits.items()} == {
        k: v.tolist() for k, v in there.splits.items()
    }
    for index in range(12):
        np.testing.assert_array_equal(opened.images.read(index), there.images.read(index))


def test_a_table_of_labels_counts_in_the_fingerprint(images, address):
    (images / "labels.csv").write_text("image,car\na/0.png,1\nb/1.png,0\n")
    put(images, address)
    told = datasets.fingerprint_of(f"folder:{address}")
    assert told == datasets.fingerprint_of(f"folder:{images}")
    assert datasets.open_dataset(f"folder:{address}").multi_label


def test_data_dir_may_be_an_address(images, address):
    put(images, f"{address}/sets/photos")
    name = "folder:sets/photos"
    assert datasets.fingerprint_of(name, address) == datasets.fingerprint_of(f"folder:{images}")
    assert len(datasets.open_dataset(name, address).images) == 12
    assert datasets.fingerprint_of(f"folder:{images}", address) is not None  # a local one below it
    assert datasets.shown_place("sets/photos", address) == f"{address}/sets/photos"


def test_files_that_may_be_of_any_kind_leave_the_fingerprint_open_until_they_are_here(
    images, address
):
    (images / "scan").write_bytes(b"no image")
    put(images, address)
    told = datasets.fingerprint_of(f"folder:{address}")
    wanted = datasets.fingerprint_of(f"folder:{images}")
    assert told == (None if dicom.installed() else wanted)
    assert datasets.open_dataset(f"folder:{address}").fingerprint == wanted


def test_only_what_may_be_read_is_copied(images, address):
    put(images, address)
    name = f"folder:{address}"
    root = Path(datasets.open_dataset(name).images.root)
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == sorted(
        f"{index}.png" for index in range(12)
    )


def test_a_set_that_has_changed_is_another_copy_at_the_next_start(images, address):
    put(images, address)
    name = f"folder:{address}"
    datasets.prepare(name, "", print)
    before = datasets.open_dataset(name)
    MEMORY.rm(f"{address}/a/0.png")
    assert datasets.open_dataset(name).fingerprint == before.fingerprint  # one run, one state
    datasets.prepare(name, "", print)
    after = datasets.open_dataset(name)
    (images / "a" / "0.png").unlink()
    assert after.fingerprint == datasets.fingerprint_of(f"folder:{images}") != before.fingerprint
    assert len(after.images) == 11
    assert before.images.read(0).shape == (8, 8, 3)  # whoever reads it goes on


def test_a_copy_that_was_interrupted_is_taken_up_again(images, address, monkeypatch):
    put(images, address)
    place = remote.Place(address, "dataset")
    listing = {name: one for name, one in place.listing().items() if name.endswith("0.png")}
    fetch, fetched = remote.Place.fetch, []

    def fails_after_one(self, name, target):
        if fetched:
            raise KeyboardInterrupt
        fetched.append(name)
        fetch(self, name, target)

    monkeypatch.setattr(remote, "_THREADS", 1)
    monkeypatch.setattr(remote.Place, "fetch", fails_after_one)
    with pytest.raises(KeyboardInterrupt):
        remote.copied(place, listing)
    assert not remote.is_copied(place, listing)
    again = []
    monkeypatch.setattr(
        remote.Place, "fetch", lambda *args: (again.append(args[1]), fetch(*args))[1]
    )
    folder = remote.copied(place, listing)
    assert sorted(fetched + again) == sorted(listing)
    assert remote.is_copied(place, listing)
    for name in listing:
        assert (folder / name).read_bytes() == MEMORY.cat_file(f"{address}/{name}")
    again.clear()
    assert remote.copied(place, listing) == folder
    assert not again


@pytest.mark.parametrize("name", ["../x.png", "a//x.png", "a/../../x.png", "a/./x.png"])
def test_names_that_would_lie_outside_are_refused(address, name):
    place = remote.Place(address, "dataset")
    with pytest.raises(UserError, match=re.escape(name)):
        remote.copied(place, {name: remote.Entry(1, "1")})


def test_a_file_that_changes_while_it_is_copied_is_told(images, address):
    put(images, address)
    place = remote.Place(address, "dataset")
    listing = place.listing()
    MEMORY.pipe_file(f"{address}/a/0.png", b"other")
    with pytest.raises(UserError, match=r"nobody writes while they are copied, but a/0\.png"):
        remote.copied(place, listing)


def test_a_set_that_is_not_there_is_told_with_its_address(address):
    assert datasets.fingerprint_of(f"folder:{address}") is None
    with pytest.raises(UserError, match=re.escape(f"not found: {address}")):
        datasets.open_dataset(f"folder:{address}")


def test_a_set_of_the_catalog_that_is_not_there_is_told_with_its_address(address):
    with pytest.raises(UserError, match=re.escape(f"not found: {address}/mnist")):
        datasets.prepare("tfds:mnist", address, print)


def test_an_unknown_protocol_is_told_with_a_near_one():
    with pytest.raises(UserError, match=r"protocol that fsspec knows.* Did you mean 's3'"):
        remote.Place("s4://bucket", "--workdir")
    with pytest.raises(UserError, match="Known: abfs, file, gs"):
        remote.Place("qqqqqqqq://bucket", "--workdir")


def test_a_package_that_is_not_installed_is_told():
    packages = {"gs": "gcsfs", "abfs": "adlfs", "oci": "ocifs", "oss": "ossfs", "box": "boxfs"}
    protocol = next(one for one in packages if importlib.util.find_spec(packages[one]) is None)
    with pytest.raises(UserError, match=f"pip install {packages[protocol]}") as caught:
        remote.Place(f"{protocol}://bucket", "--workdir")
    assert caught.value.mistakes[0].field == "--workdir"


def write_weights(path):
    """A file that is as good as any for what copies it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": np.arange(3, dtype=np.float32)}, path)


def test_a_file_of_weights_is_copied_with_the_config_beside_it(tmp_path, address):
    write_weights(tmp_path / "there" / "resnet18.safetensors")
    (tmp_path / "there" / "config.json").write_text('{"mean": [0.5]}')
    (tmp_path / "there" / "other.safetensors").write_text("large")
    put(tmp_path / "there", address)
    path = remote.weights(f"{address}/resnet18.safetensors")
    assert path.name == "resnet18.safetensors"
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "config.json",
        "resnet18.safetensors",
    ]
    local = str(tmp_path / "there" / "resnet18.safetensors")
    assert load.fingerprint(f"{address}/resnet18.safetensors") == load.fingerprint(local)


def test_weights_that_are_not_there_are_not_found(address):
    assert load.fingerprint(f"{address}/none.pth") is None
    assert load.inspect(f"{address}/none.pth") is None
    with pytest.raises(UserError, match="not found"):
        load.load(f"{address}/none.pth")


def test_a_checkpoint_of_tensorflow_is_copied_whole(tmp_path, address):
    there = tmp_path / "there"
    there.mkdir()
    for end in ("index", "data-00000-of-00001", "meta"):
        (there / f"model.ckpt-9.{end}").write_text(end)
    (there / "model.ckpt-10.index").write_text("another")
    put(there, address)
    for told in ("model.ckpt-9", "model.ckpt-9.index"):
        path = remote.weights(f"{address}/{told}")
        assert sorted(one.name for one in path.parent.iterdir()) == [
            "model.ckpt-9.data-00000-of-00001",
            "model.ckpt-9.index",
            "model.ckpt-9.meta",
        ]


def test_of_a_stage_the_newest_checkpoint_alone_is_copied(tmp_path, address):
    stage = tmp_path / "t-12345678"
    for step in (9, 10):
        write_weights(stage / "checkpoints" / str(step) / "d" / "x")
    (stage / "metrics.csv").write_text("large")
    (stage / "lineage.json").write_text(json.dumps(LINEAGE))
    (stage / "done.json").write_text(json.dumps(DONE))
    put(stage, f"{address}/t-12345678")
    path = remote.weights(f"{address}/t-12345678")
    found = sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file())
    assert found == ["checkpoints/10/d/x", "done.json", "lineage.json"]
    assert load.fingerprint(f"{address}/t-12345678") == LINEAGE["id"]


def test_a_cache_that_cannot_be_is_told_before_anything_is_copied(
    images, address, tmp_path, monkeypatch
):
    put(images, address)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HPT_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"HPT_JAX_CACHE = .*file/cache': expected a folder"):
        datasets.open_dataset(f"folder:{address}")


def test_a_full_disk_is_what_it_is_elsewhere(images, address, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("the system has no device that is always full")
    put(images, address)
    (tmp_path / "full").symlink_to("/dev/full")
    place = remote.Place(address, "dataset")
    with pytest.raises(OSError, match="No space left") as caught:
        place._asked(lambda: MEMORY.get_file(f"{address}/a/0.png", str(tmp_path / "full")))
    assert caught.value.errno == errno.ENOSPC


def test_nothing_there_is_nothing_to_copy(address, tmp_path):
    place = remote.Place(address, "dataset")
    assert place.listing() == {}
    assert place.entry("x") is None
    assert place.read("x") is None
    place.delete("x")
    remote.fetch_all(place, {}, tmp_path, unwatched)


def test_what_has_the_same_beginning_is_not_listed(address):
    for name in ("run/x", "run-2/x", "run2", "run/run/x"):
        MEMORY.pipe_file(f"{address}/{name}", b"1")
    assert remote.Place(f"{address}/run", "--workdir").listing().keys() == {"x", "run/x"}
    assert remote.Place(f"{address}/run/", "--workdir").listing("run").keys() == {"run/x"}
    assert remote.Place(f"{address}/run", "--workdir").listing(deep=False).keys() == {"x"}


def test_a_file_that_is_gone_is_not_sent(address, tmp_path):
    place = remote.Place(address, "--workdir")
    assert not place.send("x", tmp_path / "none")
    assert place.listing() == {}


def test_a_new_file_is_written_once(address):
    place = remote.Place(address, "--workdir")
    assert place.write("x", b"1", new=True)
    assert not place.write("x", b"2", new=True)
    assert place.read("x") == b"1"
    assert place.write("x", b"2")
    assert place.read("x") == b"2"


def test_another_state_of_a_file_is_another_version(tmp_path):
    place = remote.Place(f"file://{tmp_path}/there", "--workdir")
    (tmp_path / "x").write_bytes(b"1")
    assert place.send("below/x", tmp_path / "x")
    first = place.listing()
    assert first == place.listing()
    assert place.send("below/x", tmp_path / "x")
    assert place.listing().keys() == first.keys() == {"below/x"}
    assert place.listing() != first
