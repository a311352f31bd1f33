"""A workdir at an address is at every moment one that another machine can go on from."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import uuid

import fsspec
import pytest
from small_files import DONE, EVALUATION, LINEAGE

from hpt_jax import checkpoints, mirror
from hpt_jax.errors import UserError
from hpt_jax.mirror import Lease, Mirror
from hpt_jax.remote import Place
from hpt_jax.signals import Interrupted, Stop
from hpt_jax.telemetry.display import Display
from hpt_jax.workdir import stage_folder, write_json

MEMORY = fsspec.filesystem("memory")
STAGE = "t-12345678"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leases that expire within the patience of a test."""
    monkeypatch.setattr(mirror, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(mirror, "EXPIRES_SECONDS", 0.8)


@pytest.fixture
def address():
    return f"memory://bucket-{uuid.uuid4().hex}/run"


class Machine:
    """One with a cache of its own, which is at work or not."""

    def __init__(self, address, cache, place=Place):
        self.home, self.root, self.told = cache, cache / "workdir", []
        self.home.mkdir(exist_ok=True)
        self.display, self.stop = Display(quiet=True), Stop()
        self.display.outcome = self.told.append
        self.lease = Lease(place(address, "--workdir"), self.home, self.display, self.stop)
        self._holds = contextlib.ExitStack()
        self.place = place(address, "--workdir")

    def begin(self):
        self._holds.enter_context(self.lease.held())
        self.mirror = Mirror(self.place, self.root, self.display, self.lease)
        self.mirror.bring()
        self.lease.keep()
        return self

    def end(self):
        self._holds.close()

    def vanish(self):
        """Ends as a machine without power does."""
        self.lease._lost = "nobody: it says nothing more"
        self.end()


@pytest.fixture
def machine(address, tmp_path):
    """Makes a machine by its name; all are at rest when the test is over."""
    with contextlib.ExitStack() as stack:

        def make(name, place=Place):
            made = Machine(address, tmp_path / name, place)
            stack.callback(made.end)
            return made

        yield make


def save(root, step, content="x"):
    """A checkpoint as training saves it, after its rows."""
    folder = stage_folder(root, STAGE)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.metrics.open("a") as file:
        file.write(f"{step}\n")
    path = folder.checkpoints / str(step)
    (path / "ocdbt.process_0" / "d").mkdir(parents=True)
    (path / "ocdbt.process_0" / "d" / uuid.uuid4().hex).write_text(f"{content} {step}")
    (path / "_METADATA").write_text("{}")
    checkpoints.write_manifest(path)


def forget(root, step):
    shutil.rmtree(stage_folder(root, STAGE).checkpoints / str(step))


def finish(root, step):
    folder = stage_folder(root, STAGE)
    write_json(folder.done, {**DONE, "checkpoint": step})
    write_json(folder.path / "evaluations" / "knn.json", EVALUATION)
    (root / "results.csv").write_text(f"{step}")


def begin_stage(root, **told):
    write_json(stage_folder(root, STAGE).lineage, {**LINEAGE, **told})


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def there(address):
    start = len(MEMORY._strip_protocol(address)) + 1
    found = MEMORY.find(address)
    return {name[start:]: MEMORY.cat_file(name) for name in found if not name.endswith("lock.json")}


def download(address, folder):
    """All of it, as it stands there."""
    for name, content in there(address).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def assert_can_go_on(root):
    """Whoever reads a published workdir finds nothing that counts on what is not there."""
    folder = stage_folder(root, STAGE)
    whole = [step for step in checkpoints.numbered(folder.checkpoints)
             if (folder.checkpoints / str(step) / "manifest.json").exists()]  # fmt: skip
    rows = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    for step in whole:
        assert checkpoints.fault_of(folder.checkpoints / str(step)) is None
        assert str(step) in rows
    if folder.done.exists():
        assert json.loads(folder.done.read_text())["checkpoint"] in whole
    if (folder.path / "evaluations" / "knn.json").exists():
        assert folder.done.exists()
    return whole


def test_what_one_machine_publishes_another_one_has(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    save(one.root, 10)
    (one.root / "lock").write_text("of this machine")
    (one.root / "lease").mkdir()
    (one.root / "lease" / "1").write_text("of this machine")
    (one.root / "compilation_cache").mkdir()
    (one.root / "compilation_cache" / "x-cache").write_text("of this processor")
    (one.root / "results.csv.f00.tmp").write_text("half of it")
    (stage_folder(one.root, STAGE).checkpoints / "15.orbax-checkpoint-tmp").mkdir()
    (stage_folder(one.root, STAGE).checkpoints / "15.orbax-checkpoint-tmp" / "x").write_text("half")
    one.mirror.publish(everything=True)
    one.end()
    for name in ("lock", "lease", "compilation_cache", "results.csv.f00.tmp"):
        path = one.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(stage_folder(one.root, STAGE).checkpoints / "15.orbax-checkpoint-tmp")
    assert there(address) == contents(one.root)
    two = machine("two").begin()
    assert contents(two.root) == contents(one.root)
    assert assert_can_go_on(two.root) == [5, 10]


class Failing(Place):
    """A service that fails after a number of changes."""

    left = 0

    def _change(self):
        if type(self).left <= 0:
            raise UserError(self.field, self.address, "an answer", "Try again.")
        type(self).left -= 1

    def write(self, name, content, new=False):
        if name != "lock.json":
            self._change()
        return super().write(name, content, new)

    def delete(self, name):
        self._change()
        super().delete(name)


def test_after_any_number_of_changes_what_is_published_can_be_gone_on_from(
    address, machine, tmp_path
):
    """Each next step of a run is published one change at a time."""
    Failing.left = 10**6
    one = machine("one", Failing).begin()

    def second():
        save(one.root, 10)
        save(one.root, 15)
        forget(one.root, 5)

    def anew():
        forget(one.root, 15)
        save(one.root, 15, "anew")

    changes = [
        lambda: (begin_stage(one.root), save(one.root, 5)),
        second,
        anew,
        lambda: finish(one.root, 15),
    ]
    newest, looked = 0, 0
    for change in changes:
        change()
        told: object = ""
        while told is not None:
            Failing.left, told = 1, None
            with contextlib.suppress(UserError):
                told = "not published yet"
                one.mirror.publish(everything=True)
                told = None
            looked += 1
            steps = assert_can_go_on(download(address, tmp_path / f"look-{looked}"))
            # Written anew the newest one is not there for a moment; an older one always is.
            assert not newest or steps
            newest = max([*steps, newest])
        assert there(address) == contents(one.root)
    assert looked > 20
    assert newest == 15


def test_old_checkpoints_are_deleted_when_the_newer_ones_are_there(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    one.mirror.publish(everything=True)
    save(one.root, 10)
    forget(one.root, 5)
    one.mirror.publish(everything=True)
    assert there(address) == contents(one.root)
    save(one.root, 15)
    forget(one.root, 10)
    one.end()  # before that is published
    again = machine("one").begin()
    assert checkpoints.numbered(stage_folder(again.root, STAGE).checkpoints) == [15]
    again.mirror.publish(everything=True)
    assert there(address) == contents(again.root)


class Slow(Place):
    """A service that takes longer for a file than training takes to save, twice."""

    def write(self, name, content, new=False):
        if name == f"stages/{STAGE}/checkpoints/5/_METADATA":
            self.meanwhile()
        return super().write(name, content, new)


def test_a_checkpoint_is_published_also_where_it_is_deleted_meanwhile(address, machine):
    one = machine("one", Slow).begin()

    def meanwhile():
        save(one.root, 10)
        forget(one.root, 5)

    one.place.meanwhile = meanwhile
    begin_stage(one.root)
    save(one.root, 5)
    one.mirror.publish(everything=True)
    assert f"stages/{STAGE}/checkpoints/5/manifest.json" in there(address)
    one.mirror.publish(everything=True)
    assert there(address) == contents(one.root)
    assert {path.name for path in one.home.iterdir()} == {
        "lease.json",
        "published.json",
        "workdir",
    }


def test_who_cleans_the_cache_deletes_nothing_there(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    save(one.root, 10)
    finish(one.root, 10)
    one.mirror.publish(everything=True)
    wanted = there(address)
    shutil.rmtree(one.root)
    one.mirror.publish(everything=True)
    assert there(address) == wanted
    one.end()
    again = machine("one").begin()
    assert_can_go_on(again.root)


def test_a_stage_that_is_opened_again_is_so_there(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    finish(one.root, 5)
    one.mirror.publish(everything=True)
    stage_folder(one.root, STAGE).done.unlink()
    one.mirror.publish(everything=True)
    assert there(address) == contents(one.root)


def test_rows_and_pages_wait_and_checkpoints_do_not(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    one.mirror.publish()
    assert len(there(address)) == 1
    (one.root / "report").mkdir()
    (one.root / "report" / "index.html").write_text("x")
    one.mirror.publish()
    assert len(there(address)) == 1
    save(one.root, 5)
    one.mirror.publish()
    assert there(address) == contents(one.root)


def test_the_rest_of_an_interrupted_publication_is_removed(address, machine):
    Failing.left = 4
    one = machine("one", Failing).begin()
    begin_stage(one.root)
    save(one.root, 5)
    with pytest.raises(UserError):
        one.mirror.publish(everything=True)
    one.vanish()
    assert any("checkpoints/5/" in name for name in there(address))
    Failing.left = 10**6
    two = machine("two").begin()
    assert checkpoints.numbered(stage_folder(two.root, STAGE).checkpoints) == []
    two.mirror.publish(everything=True)
    assert not [name for name in there(address) if "checkpoints/5/" in name]


def test_of_a_finished_stage_what_others_start_from_is_brought(address, machine):
    one = machine("one").begin()
    begin_stage(one.root, branch={"trunk": "f00d", "step": 5})
    for step in (5, 10, 15):
        save(one.root, step)
    finish(one.root, 15)
    one.mirror.publish(everything=True)
    one.end()
    two = machine("two").begin()
    assert checkpoints.numbered(stage_folder(two.root, STAGE).checkpoints) == [5, 15]
    two.mirror.publish(everything=True)
    assert there(address) == contents(one.root)


def test_what_is_not_published_is_kept_where_nobody_else_has_worked(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    one.mirror.publish(everything=True)
    save(one.root, 10)
    wanted = contents(one.root)
    one.vanish()
    again = machine("one").begin()
    assert contents(again.root) == wanted
    again.mirror.publish(everything=True)
    assert there(address) == wanted


def test_what_is_sent_but_not_noted_is_kept_too(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    one.mirror.publish(everything=True)
    save(one.root, 10)
    # The rows up to 10 are there; then the machine lost its power, two more steps on.
    metrics = stage_folder(one.root, STAGE).metrics
    one.place.send(metrics.relative_to(one.root).as_posix(), metrics)
    save(one.root, 15)
    wanted = contents(one.root)
    one.vanish()
    again = machine("one").begin()
    assert contents(again.root) == wanted


def test_what_is_not_published_is_given_up_where_another_machine_has_gone_on(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    one.mirror.publish(everything=True)
    save(one.root, 10)
    one.vanish()
    two = machine("two").begin()
    save(two.root, 7)
    two.mirror.publish(everything=True)
    wanted = contents(two.root)
    two.end()
    again = machine("one").begin()
    assert contents(again.root) == wanted == there(address)


def test_what_is_deleted_there_is_deleted_here(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    one.mirror.publish(everything=True)
    one.end()
    for name in there(address):
        MEMORY.rm(f"{address}/{name}")
    again = machine("one").begin()
    assert not contents(again.root)
    assert not stage_folder(again.root, STAGE).path.exists()


def test_what_is_lost_here_is_brought_again(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    one.mirror.publish(everything=True)
    wanted = contents(one.root)
    one.end()
    shutil.rmtree(one.root)
    again = machine("one").begin()
    assert contents(again.root) == wanted == there(address)


def test_a_live_lease_is_respected_and_its_owner_named(address, machine):
    one = machine("one").begin()
    with pytest.raises(UserError, match=r"no other run works, but process \d+ on "):
        machine("two").begin()
    one.end()
    machine("two").begin().end()


def test_a_dead_lease_is_taken_over(address, machine):
    one = machine("one").begin()
    one.vanish()
    two = machine("two")
    began = time.monotonic()
    two.begin()
    assert time.monotonic() - began >= mirror.EXPIRES_SECONDS
    assert any("is taken over" in line for line in two.told)
    # The machine itself knows that its run is gone.
    two.vanish()
    again = machine("two")
    again.begin()
    assert not again.told


def test_who_has_lost_the_lease_is_asked_to_stop_and_publishes_nothing(address, machine):
    one = machine("one").begin()
    other = {"owner": "process 1 on other", "token": "another", "beats": 3}
    MEMORY.pipe_file(f"{address}/lock.json", json.dumps(other).encode())
    deadline = time.monotonic() + 20
    while not one.stop.asked and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one.stop.asked
    begin_stage(one.root)
    with pytest.raises(UserError, match="process 1 on other"):
        one.mirror.publish(everything=True)
    one.end()
    assert not there(address)
    assert json.loads(MEMORY.cat_file(f"{address}/lock.json")) == other


def test_a_damaged_lease_expires_as_any_other(address, machine):
    MEMORY.pipe_file(f"{address}/lock.json", b"\xff[")
    machine("one").begin().end()


def test_a_failure_is_told_once_and_mended_by_itself(address, machine, monkeypatch):
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(mirror, "CALM_SECONDS", 0.01)
    Failing.left = 0
    one = machine("one", Failing).begin()
    begin_stage(one.root)
    over = threading.Event()
    thread = threading.Thread(target=one.mirror.publish_until, args=(over,))
    thread.start()
    deadline = time.monotonic() + 20
    while not one.told and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(one.told) == 1
    assert "not published yet" in one.told[0]
    Failing.left = 10**6
    while not there(address) and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    thread.join()
    assert there(address) == contents(one.root)


@pytest.fixture
def mirrored(address, tmp_path, monkeypatch):
    """A run in a workdir at the address, up to its beginning."""
    monkeypatch.setenv("HPT_JAX_CACHE", str(tmp_path / "cache"))
    return lambda: mirror.mirrored(address, Display(quiet=True), Stop())


@pytest.mark.parametrize("end", [KeyboardInterrupt(), Interrupted(15), ZeroDivisionError()])
def test_a_run_that_ends_early_has_published_all_it_has(address, mirrored, end):
    def run(root):
        begin_stage(root)
        save(root, 5)
        raise end

    root = mirror.home_of(address)
    with pytest.raises(type(end)), mirrored() as given:
        run(given)
    assert there(address) == contents(root)
    with mirrored() as again:
        assert again == root == mirror.home_of(f"{address}/")


def test_mistakes_name_what_is_at_the_address(address, mirrored):
    with pytest.raises(UserError) as caught, mirrored() as root:
        raise UserError(str(root / "x"), "x", f"no {root / 'x'}", f"Delete {root / 'x'}.")
    assert str(caught.value) == f"{address}/x = 'x': expected no {address}/x. Delete {address}/x."


def test_small_files_are_enough_for_a_look(address, machine):
    one = machine("one").begin()
    begin_stage(one.root)
    save(one.root, 5)
    finish(one.root, 5)
    one.mirror.publish(everything=True)
    with mirror.glimpsed(address) as root:
        assert checkpoints.numbered(stage_folder(root, STAGE).checkpoints) == [5]
        assert stage_folder(root, STAGE).is_done
        assert stage_folder(root, STAGE).has("evaluations/knn.json")
        assert sorted(path.suffix for path in root.rglob("*") if path.is_file()) == [".json"] * 3
    assert not root.exists()
    one.end()
