"""Small files by rename, the workdir's check, and a lock that dies with its owner."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from small_files import DONE, LINEAGE

from hpt_jax import workdir
from hpt_jax.errors import UserError


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"x": "ü", "y": 0.1 + 0.2}}
    path = tmp_path / "deep" / "file.json"
    workdir.write_json(path, content)
    assert workdir.read_json(path) == content
    assert json.loads(path.read_text()) == content
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    workdir.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"new": object()})
    assert workdir.read_json(path) == {"old": 1}

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        workdir.write_json(path, {"new": 1})
    assert workdir.read_json(path) == {"old": 1}


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("flushed"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *two: (order.append("renamed"), replace(*two)))
    workdir.write_json(tmp_path / "f.json", {"a": 1})
    assert order == ["flushed", "renamed", "flushed"]  # the last one is the folder


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_named(tmp_path):
    (tmp_path / "f.json").mkdir()
    (tmp_path / "file").write_text("kept")
    for path, wrong, kind in (
        (tmp_path / "f.json", tmp_path / "f.json", "a file"),
        (tmp_path / "file" / "f.json", tmp_path / "file", "a folder"),
        (tmp_path / "file" / "deep" / "f.json", tmp_path / "file", "a folder"),
    ):
        with pytest.raises(UserError) as raised:
            workdir.write_json(path, {})
        assert str(raised.value).startswith(f"{wrong}: expected {kind}, but it is")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"1", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"],
)
def test_json_that_is_not_whole_counts_as_absent(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    assert workdir.read_json(tmp_path / "f.json") is None
    assert workdir.read_json(tmp_path / "absent.json") is None
    assert workdir.read_json(tmp_path / "f.json" / "below") is None
    assert workdir.read_json(tmp_path) is None


def test_a_file_that_may_not_be_read_is_not_taken_for_absent(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(workdir.Path, "read_bytes", refused)
    with pytest.raises(UserError, match="Permission denied"):
        workdir.read_json(tmp_path / "f.json")


def changed(content):
    """Copies of JSON, each with one of its values taken away or of another type."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        others = [None, 1.5, "\n", [[]], {"x": 1}, -1, float("nan")]
        if isinstance(value, (dict, list)):
            others += list(changed(value))
        for other in others:
            copy = dict(content) if isinstance(content, dict) else list(content)
            copy[key] = other
            yield copy
        if isinstance(content, dict):
            yield {name: one for name, one in content.items() if name != key}


def test_a_stage_with_other_than_its_small_files_is_not_done(tmp_path):
    folder = workdir.stage_folder(tmp_path, "t-1")
    workdir.write_json(folder.lineage, LINEAGE)
    for content in changed(DONE):
        folder.done.parent.mkdir(parents=True, exist_ok=True)
        folder.done.write_text(json.dumps(content))
        assert not folder.is_done or content["seconds"] == 1.5, content
    workdir.write_json(folder.done, DONE)
    assert folder.is_done
    for key in LINEAGE:
        workdir.write_json(folder.lineage, {k: v for k, v in LINEAGE.items() if k != key})
        assert not folder.is_done, key


def test_shapes(tmp_path):
    fits = workdir.fits
    assert fits({"a": 1, "b": []}, {"a": int, "b": [str], "c?": str})
    assert not fits({"a": True, "b": []}, {"a": int, "b": [str]})
    assert not fits({"a": 1, "b": [1]}, {"a": int, "b": [str]})
    assert not fits({"a": 1, "b": [], "c": 2}, {"a": int, "b": [str], "c?": str})
    assert fits(None, (None, {"a": int}))
    assert not fits([], (None, {"a": int}))
    assert fits({"x": [1], "y": []}, {...: list})
    assert not fits({"x": 1}, {...: list})


def test_two_writers_never_write_to_the_same_temporary_file(tmp_path):
    used = []
    for _ in range(2):
        with workdir.whole(tmp_path / "f.json") as temporary:
            temporary.write_text("")
            used.append(temporary)
    assert len(set(used)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_a_stage_is_done_when_its_last_file_is_there(tmp_path):
    folder = workdir.stage_folder(tmp_path, "t-1")
    assert not folder.is_done
    workdir.write_json(folder.lineage, LINEAGE)
    assert not folder.is_done
    workdir.write_json(folder.done, DONE)
    assert folder.is_done
    assert folder.path == tmp_path / "stages" / "t-1"


def test_a_workdir_may_be_absent_and_is_not_made_by_the_check(tmp_path):
    workdir.check_root(tmp_path)
    workdir.check_root(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_a_workdir_may_be_a_link_to_a_folder_but_not_a_dangling_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    workdir.check_root(tmp_path / "link" / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError):
        workdir.check_root(tmp_path / "dangling")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError) as raised:
            workdir.check_root(tmp_path / "w")
    finally:
        tmp_path.chmod(0o700)
    assert str(tmp_path) in str(raised.value)


def test_a_refused_access_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError) as raised:
        workdir.check_root(tmp_path / "w")
    assert [one.field for one in raised.value.mistakes] == ["--workdir"]


HOLDER = """
import sys, time
from pathlib import Path
from hpt_jax.workdir import locked

with locked(Path(sys.argv[1]), lambda text: print("waits", text, flush=True)):
    print("holds", flush=True)
    time.sleep(60)
"""


def start_holder(path):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )


def test_a_lock_keeps_others_out_until_its_owner_is_killed(tmp_path):
    folder = tmp_path / "t-1"
    first = start_holder(folder)
    try:
        assert first.stdout.readline() == "holds\n"

        def told(text):
            assert f"process {first.pid} on" in text
            assert "t-1 is held by" in text
            waited.append(text)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()

        waited = []
        with workdir.locked(folder, told):
            assert len(waited) == 1  # said once; entered only after the owner was gone
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


def test_a_process_waits_for_the_lock_that_this_one_holds(tmp_path):
    folder = tmp_path / "t-1"
    with workdir.locked(folder, pytest.fail):
        second = start_holder(folder)
        assert second.stdout.readline().startswith(f"waits t-1 is held by process {os.getpid()}")
    try:
        assert second.stdout.readline() == "holds\n"
    finally:
        second.kill()
        second.wait()
        second.stdout.close()


def test_stages_are_locked_one_by_one(tmp_path):
    folders = [workdir.stage_folder(tmp_path, name) for name in "ab"]
    with workdir.locked(folders[0].path, pytest.fail), workdir.locked(folders[1].path, pytest.fail):
        assert all((folder.path / "lock").read_text() for folder in folders)


def test_a_lock_is_freed_by_an_error(tmp_path):
    folder = tmp_path / "t-1"
    with pytest.raises(ZeroDivisionError), workdir.locked(folder, pytest.fail):
        raise ZeroDivisionError
    with workdir.locked(folder, pytest.fail):
        pass
