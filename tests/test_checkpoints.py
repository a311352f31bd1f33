"""Saving and restoring exactly, and never listing a step whose files are not whole."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from hpt_jax import checkpoints
from hpt_jax.checkpoints import Checkpoints
from hpt_jax.errors import UserError
from hpt_jax.parallel import make_devices


@struct.dataclass
class State:
    weights: dict
    rng: jax.Array
    step: jax.Array
    head: object = None


def steps_in(folder):
    """All whole steps, oldest first."""
    found = []
    while (step := checkpoints.newest_whole(folder, found[0] if found else None)) is not None:
        found.insert(0, step)
    return found


def make_tree(seed=0):
    rng = np.random.default_rng(seed)
    weights = {
        "kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 8)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "mask": jnp.asarray(rng.integers(0, 2, 4), bool),
        "large": jnp.asarray(rng.normal(size=(300, 1000)), jnp.float32),
    }
    state = State(weights, jax.random.key(seed + 5), jnp.int32(seed))
    return {"backbone": {"mean": jnp.asarray(rng.normal(size=3), jnp.float32)}, "state": state}


def host(tree):
    """Leaves as (dtype, bytes), which tell every bit."""

    def bits(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
        return str(leaf.dtype), np.asarray(leaf).tobytes()

    leaves, structure = jax.tree.flatten(tree)
    return structure, [bits(leaf) for leaf in leaves]


@pytest.fixture
def saver(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    """A folder with the steps 3 and 5."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    saver = Checkpoints(folder)
    for step in (3, 5):
        saver.save(step, make_tree(step))
    saver.close()
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved_once, tmp_path / "checkpoints")


@pytest.mark.parametrize("count", [1, 8])
def test_a_tree_comes_back_bit_by_bit_onto_all_devices(saver, count):
    devices = make_devices(count)
    tree = devices.replicate(make_tree())
    before = host(tree)
    saver.save(7, tree)
    saver.wait()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated), tree
    )
    restored = checkpoints.restore(saver.folder, 7, like)
    assert isinstance(restored["state"], State)
    assert host(restored) == before
    assert all(leaf.sharding == devices.replicated for leaf in jax.tree.leaves(restored))


def test_a_checkpoint_moves_to_another_number_of_devices(saver):
    tree = make_devices(8).replicate(make_tree())
    saver.save(1, tree)
    saver.wait()
    two = make_devices(2)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=two.replicated), tree
    )
    restored = checkpoints.restore(saver.folder, 1, like)
    assert host(restored) == host(tree)
    assert len(restored["state"].step.devices()) == 2


def test_what_was_saved_may_be_donated_at_once(saver):
    devices = make_devices(8)
    tree = devices.replicate(make_tree())
    before = host(tree)

    def ruin(one):
        return jax.tree.map(
            lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x * 0, one
        )

    ruined = jax.jit(ruin, donate_argnums=0)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated), tree
    )
    saver.save(1, tree)
    for _ in range(3):
        tree = ruined(tree)
    jax.block_until_ready(tree)
    saver.wait()
    assert host(checkpoints.restore(saver.folder, 1, like)) == before


def test_the_newest_are_kept(tmp_path):
    saver = Checkpoints(tmp_path / "c", keep=2)
    for step in (2, 10, 9, 30):
        saver.save(step, {"x": jnp.float32(step)})
    saver.close()
    assert steps_in(tmp_path / "c") == [10, 30]
    assert sorted(os.listdir(tmp_path / "c")) == ["10", "30"]


def test_multiples_of_keep_every_are_kept_too(tmp_path):
    saver = Checkpoints(tmp_path / "c", keep=1, keep_every=10)
    for step in (5, 10, 15, 20, 25, 27):
        saver.save(step, {"x": jnp.float32(step)})
    saver.close()
    assert sorted(map(int, os.listdir(tmp_path / "c"))) == [10, 20, 27]


def damaged(path):
    """Every way in which the tests damage a file: its content thereafter."""
    good = path.read_bytes()
    if good:
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        yield bytes(flipped)
        yield good[:-1]
        yield b""
    yield good + b"\0"


def test_damage_of_any_file_is_noticed_and_the_checkpoint_before_is_taken(saved):
    tree = make_tree(3)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    files = [path.relative_to(saved / "5") for path in (saved / "5").rglob("*") if path.is_file()]
    assert len(files) > 5
    for name in files:
        path = saved / "5" / name
        good = path.read_bytes()
        for bad in damaged(path):
            path.write_bytes(bad)
            told = []
            saver = Checkpoints(saved)
            step, restored = saver.restore_newest(like, told.append)
            saver.close()
            assert (step, host(restored)) == (3, host(tree)), name
            assert len(told) == 1, told
            assert name.name in ("manifest.json", told[0].split("(")[1].split()[0].split("/")[-1])
            assert sorted(os.listdir(saved)) == ["3", "5.damaged"]
            (saved / "5.damaged").rename(saved / "5")
            path.write_bytes(good)
    assert steps_in(saved) == [3, 5]


def test_without_a_whole_checkpoint_there_is_none_to_restore(saved):
    for step in "35":
        (saved / step / "manifest.json").write_text("{}")
    saver = Checkpoints(saved)
    assert saver.restore_newest({}, lambda text: None) is None
    saver.close()
    assert sorted(os.listdir(saved)) == ["3.damaged", "5.damaged"]


def test_names_in_a_manifest_reach_nothing_outside(saved, tmp_path):
    (tmp_path / "secret").write_text("x")
    manifest = saved / "5" / "manifest.json"
    files = json.loads(manifest.read_text())
    for name in ("../../secret", str(tmp_path / "secret"), "a" * 5000, "a\0b"):
        entry = {"size": 1, "blake2b": checkpoints.file_hash(tmp_path / "secret")}
        manifest.write_text(json.dumps(files | {name: entry}, indent=1))
        assert checkpoints.fault_of(saved / "5") == f"{name} is not there"


def test_a_step_is_saved_again_over_what_a_kill_left(saved):
    (saved / "5" / "manifest.json").unlink()
    assert steps_in(saved) == [3]
    leftover = saved / "8.orbax-checkpoint-tmp"
    shutil.copytree(saved / "5", leftover)
    saver = Checkpoints(saved)
    for step in (5, 8):
        saver.save(step, {"x": jnp.float32(step)})
    saver.close()
    assert steps_in(saved) == [5, 8]
    assert sorted(os.listdir(saved)) == ["5", "8"]


def test_what_a_kill_left_of_an_earlier_save_is_cleared_away(saved):
    shutil.copytree(saved / "5", saved / "4.orbax-checkpoint-tmp")
    saver = Checkpoints(saved)
    saver.save(8, {"x": jnp.float32(8)})
    saver.close()
    assert sorted(os.listdir(saved)) == ["5", "8"]


def test_no_folder_is_no_steps(tmp_path):
    assert steps_in(tmp_path / "absent") == []


def test_whole_steps_are_listed_oldest_first(saved):
    (saved / "notes.txt").write_text("not a step")
    assert steps_in(saved) == [3, 5]


def data_files(step):
    return sorted(p for p in step.rglob("*") if p.is_file() and p.name != "manifest.json")


def test_the_manifest_names_every_file(saved):
    listed = json.loads((saved / "5" / "manifest.json").read_text())
    files = data_files(saved / "5")
    assert sorted(listed) == sorted(p.relative_to(saved / "5").as_posix() for p in files)
    assert all(listed[p.relative_to(saved / "5").as_posix()]["size"] == p.stat().st_size
               for p in files)  # fmt: skip


def test_no_damage_of_the_manifest_is_a_crash(saved):
    manifest = saved / "5" / "manifest.json"
    good = manifest.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 25)):
        for flip in (1, 4, 128):
            bad = bytearray(good)
            bad[place] ^= flip
            manifest.write_bytes(bad)
            assert steps_in(saved) == [3], (place, flip)
    for bad in (b"", good[:-2], b"[]", b"[1]", b"3", b"{}", b"null"):
        manifest.write_bytes(bad)
        assert steps_in(saved) == [3], bad
    manifest.unlink()
    assert steps_in(saved) == [3]


def test_a_part_is_read_by_its_name_without_its_shapes(saved):
    part = checkpoints.restore_subtree(saved, 5, "backbone")
    assert list(part) == ["mean"]
    assert isinstance(part["mean"], np.ndarray)
    assert np.array_equal(part["mean"], np.asarray(make_tree(5)["backbone"]["mean"]))
    with pytest.raises(KeyError):
        checkpoints.restore_subtree(saved, 5, "absent")


def test_an_error_of_a_save_under_way_is_raised(saver, monkeypatch):
    def broken(folder):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "write_manifest", broken)
    saver.save(1, {"x": jnp.float32(1)})
    with pytest.raises(OSError, match="no space left"):
        saver.wait()
    assert steps_in(saver.folder) == []


def test_what_is_deleted_while_it_is_looked_at_is_not_whole(saved, monkeypatch):
    fingerprint = checkpoints._fingerprint

    def vanished(path):
        if "5" in path.parts and path.name == "_METADATA":
            shutil.rmtree(saved / "5")
        return fingerprint(path)

    monkeypatch.setattr(checkpoints, "_fingerprint", vanished)
    assert checkpoints.newest_whole(saved) == 3


@pytest.mark.parametrize("place", ["5", "5/manifest.json", "7"])
def test_folders_and_files_in_the_wrong_place_are_no_checkpoints(saved, place):
    path = saved / place
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    assert checkpoints.newest_whole(saved) == 3 if place != "7" else 5
    saver = Checkpoints(saved)
    step, _ = saver.restore_newest(make_tree(), lambda text: None)
    assert step == (5 if place == "7" else 3)
    saver.close()


def test_a_file_in_place_of_the_checkpoints_is_told_before_training(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="a folder, but it is a file"):
        Checkpoints(tmp_path / "checkpoints")
