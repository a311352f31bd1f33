"""A folder held without file locks: by one process at a time, and not beyond its death."""

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent import futures

import jax.numpy as jnp
import pytest

from hpt_jax import checkpoints, lease, workdir
from hpt_jax.errors import UserError
from hpt_jax.telemetry.writers import MetricsWriter


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as told; no sign of life comes by itself."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 1e6)
    return clock


def beat(held, count):
    """Gives a sign of life, as the lease's thread does."""
    (path,) = (held.folder / "lease").iterdir()
    path.write_text(lease._sign(count))


def test_one_holds_a_folder_until_it_gives_it_back(tmp_path, clock):
    first = lease.take(tmp_path)
    assert lease.holder(tmp_path) == f"process {os.getpid()} on {workdir.socket.gethostname()}"
    assert lease.take(tmp_path) is None
    clock.now += 59.0
    assert lease.take(tmp_path) is None
    first.close()
    assert lease.holder(tmp_path) == ""
    second = lease.take(tmp_path)
    assert lease.take(tmp_path) is None
    second.check()
    second.close()


def test_an_owner_that_gives_signs_of_life_keeps_it(tmp_path, clock):
    first = lease.take(tmp_path)
    for count in range(1, 20):
        assert lease.take(tmp_path) is None
        clock.now += 59.0
        beat(first, count)
    first.check()
    first.close()


def test_an_owner_without_a_sign_of_life_loses_it_and_finds_out(tmp_path, clock):
    first = lease.take(tmp_path)
    assert lease.take(tmp_path) is None
    clock.now += 60.0
    second = lease.take(tmp_path)
    second.check()
    with pytest.raises(UserError, match="took it over after 60 s without a sign of life"):
        first.check()
    first.close()  # takes nothing from the new owner
    second.check()
    assert lease.take(tmp_path) is None
    second.close()


def test_what_was_last_seen_long_ago_tells_nothing_of_an_owner_that_lives(tmp_path, clock):
    first = lease.take(tmp_path)
    assert lease.take(tmp_path) is None
    beat(first, 1)
    clock.now += 3600.0  # of doing something else
    assert lease.take(tmp_path) is None
    first.close()


def test_of_many_that_take_over_at_once_one_does(tmp_path, clock):
    dead = lease.take(tmp_path)
    assert lease.take(tmp_path) is None
    clock.now += 60.0
    for _ in range(20):
        together = threading.Barrier(8)

        def take(index, together=together):
            together.wait()
            return lease.take(tmp_path)

        with futures.ThreadPoolExecutor(8) as pool:
            taken = [one for one in pool.map(take, range(8)) if one is not None]
        assert len(taken) == 1
        taken[0].check()
        taken[0].close()
    with pytest.raises(UserError):
        dead.check()
    dead.close()


def test_one_that_judged_long_ago_takes_nothing_from_those_who_came_since(
    tmp_path, clock, monkeypatch
):
    first = lease.take(tmp_path)
    is_over = lease._is_over
    others = []

    def meanwhile(path):
        monkeypatch.setattr(lease, "_is_over", is_over)
        first.close()
        for _ in range(2):
            others.append(lease.take(tmp_path))
            others[-1].close()
        others.append(lease.take(tmp_path))
        return True  # as of the first owner

    monkeypatch.setattr(lease, "_is_over", meanwhile)
    assert lease.take(tmp_path) is None
    others[-1].check()
    others[-1].close()


def test_nothing_is_written_below_a_folder_that_is_lost(tmp_path, clock):
    folder = tmp_path / "t-1"
    held = lease.take(folder)
    metrics = MetricsWriter(folder / "metrics.csv", 0)
    saver = checkpoints.Checkpoints(folder / "checkpoints")
    tree = {"a": jnp.zeros(3)}

    def write_all():
        workdir.write_json(folder / "evaluations" / "knn.json", {"value": len(metrics.rows)})
        metrics.write(len(metrics.rows) + 1, {"loss": 1.0})
        saver.save(len(metrics.rows), tree)
        saver.wait()

    write_all()
    write_all()
    assert lease.take(folder) is None
    clock.now += 60.0
    other = lease.take(folder)

    def content():
        small = (path for path in folder.iterdir() if path.is_file())
        return {path.name: path.read_bytes() for path in (*small, *folder.glob("*/*.json"))}

    before = content()
    assert sorted(before)[1:] == ["knn.json", "metrics.csv"]  # after TensorBoard's
    for write in (
        lambda: workdir.write_json(folder / "evaluations" / "knn.json", {}),
        lambda: workdir.write_json(folder / "done.json", {}),
        lambda: metrics.write(3, {"loss": 2.0}),
        lambda: saver.save(3, tree),
    ):
        with pytest.raises(UserError, match="t-1: expected this process to hold it"):
            write()
    assert content() == before
    assert checkpoints.numbered(folder / "checkpoints") == [1, 2]
    workdir.write_json(tmp_path / "beside" / "done.json", {})  # which nobody took
    metrics.close()
    saver.close()
    other.close()
    held.close()


HOLDER = """
import errno, sys, time
from pathlib import Path
from hpt_jax import lease, workdir
from hpt_jax.errors import UserError

def no_locks(file, how):
    raise OSError(errno.{number}, "no locks")

workdir.fcntl.flock = no_locks
lease.BEAT_SECONDS, lease.EXPIRY_SECONDS, workdir.POLL_SECONDS = 0.1, 3.0, 0.1
try:
    with workdir.locked(Path(sys.argv[1]), lambda text: print("waits", text, flush=True)):
        print("holds", flush=True)
        input()
        workdir.write_json(Path(sys.argv[1]) / "done.json", {{}})
except UserError as error:
    print("lost", error, flush=True)
"""


class Holder(subprocess.Popen):
    """A process that holds a folder by a lease until it is told to write into it and to end."""

    def __init__(self, folder, number="ENOLCK"):
        program = HOLDER.format(number=number)
        pipe = subprocess.PIPE
        super().__init__(
            [sys.executable, "-c", program, str(folder)], stdin=pipe, stdout=pipe, text=True
        )

    def says(self):
        return self.stdout.readline().rstrip()

    def end(self):
        self.stdin.write("\n")
        self.stdin.flush()


@pytest.mark.parametrize("number", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"])
def test_where_there_are_no_locks_another_process_waits(tmp_path, number):
    with Holder(tmp_path / "t-1", number) as first, Holder(tmp_path / "t-1", number) as second:
        both = {first.says().partition(" ")[0], second.says().partition(" ")[0]}
        assert both <= {"holds", "waits"}
        # Either may have been quicker.
        for one in (first, second):
            one.end()
        said = first.stdout.read() + second.stdout.read()
        assert (said.count("holds") + ("holds" in both), said.count("lost")) == (2, 0)


def test_a_dead_owner_loses_it_and_a_live_one_does_not(tmp_path):
    with Holder(tmp_path / "t-1") as first:
        assert first.says() == "holds"
        with Holder(tmp_path / "t-1") as second:
            assert second.says().startswith(f"waits t-1 is held by process {first.pid} on ")
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(4.0)  # longer than it takes a lease to end
            first.send_signal(signal.SIGKILL)
            assert second.says() == "holds"
            second.end()
        assert second.returncode == 0


def test_an_owner_that_was_suspended_writes_nothing_and_says_why(tmp_path):
    with Holder(tmp_path / "t-1") as first:
        assert first.says() == "holds"
        with Holder(tmp_path / "t-1") as second:
            assert second.says().startswith("waits")
            first.send_signal(signal.SIGSTOP)
            assert second.says() == "holds"
            first.send_signal(signal.SIGCONT)
            first.end()
            said = first.says()
            assert said.startswith(f"lost {tmp_path / 't-1'}: expected this process to hold it")
            assert f"but process {second.pid} on" in said
            assert not (tmp_path / "t-1" / "done.json").exists()
            second.end()
            assert second.wait() == 0
    assert (tmp_path / "t-1" / "done.json").exists()


def test_what_else_goes_wrong_with_a_lock_is_an_error(tmp_path, monkeypatch):
    def broken(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(workdir.fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"):
        workdir.take(tmp_path / "t-1")
