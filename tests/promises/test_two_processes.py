"""Real processes on this machine train together as one alone would, and end together."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from support import folder_of, saved, steps_in

from hpt_jax.config import load
from hpt_jax.processes import LOST
from hpt_jax.report.tables import read_results
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import StageFolder

CONFIG = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from support import tiny_config

def get_config():
    config = tiny_config(Path({images!r}))
    config.batch_size = 16
    config.parallel.devices = 0
    config.model.dtype = "float64"
    config.save_every_steps = 2
    config.target = "folder:target"
    config.evaluations = ("knn",)
    # Few steps, since rounding grows tenfold with every one or two.
    config.stages.base = dict(dataset="folder:base", steps=3)
    config.stages.target = dict(dataset="folder:target", steps=4)
    config.arms["B+T"] = ("base", "target")
    return config
"""
LIMIT_SECONDS = 400.0

# In the third step of the target's stage: says so, and takes long.
SLOW = """
import sys, time
from hpt_jax import main, training
take = training.Training.take
def slow(self, carry, batch, step):
    if self.stage.name == "target" and step == 2:
        print("now", flush=True)
        time.sleep({seconds})
    return take(self, carry, batch, step)
training.Training.take = slow
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def config(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG.format(here=str(Path(__file__).parent), images=str(images)))
    return path


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process with one device makes of the config."""
    workdir = tmp_path_factory.mktemp("alone")
    with started(config, workdir, processes=1, devices=1) as run:
        assert run.ends() == [0], run.told(0)
    return workdir


class Run:
    """Processes that were started together, and what each has told."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, arguments: Sequence[str], devices: int, code: str) -> None:
        index = len(self.processes)
        flags = os.environ.get("XLA_FLAGS", "").replace("device_count=8", f"device_count={devices}")
        self.processes.append(
            subprocess.Popen(
                [sys.executable, *(["-c", code] if code else ["-m", "hpt_jax.main"]), *arguments],
                env={**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"},
                stdout=(self._folder / f"{index}.txt").open("wb"),
                stderr=subprocess.STDOUT,
            )
        )

    def told(self, index: int) -> str:
        return (self._folder / f"{index}.txt").read_text()

    def ends(self) -> list[int]:
        """The exit codes, when all have ended by themselves."""
        return [process.wait(LIMIT_SECONDS) for process in self.processes]

    def wait_until(self, index: int, words: str) -> None:
        """Waits until a process has told something."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while words not in self.told(index):
            assert self.processes[index].poll() is None, self.told(index)
            assert time.monotonic() < deadline, self.told(index)
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def started(
    config: Path,
    workdir: Path,
    processes: int,
    devices: int,
    flags: Sequence[str] = (),
    of_others: Sequence[str] = (),
    other: Path | None = None,
    missing: Sequence[int] = (),
    slow: tuple[int, float] = (-1, 0.0),
) -> Iterator[Run]:
    """The command, in some processes of some devices each; each with a workdir that it could use.

    Args:
      config: the file.
      workdir: of the first process; the others are told of one that is not there.
      processes: how many.
      devices: of each.
      flags: more of them.
      of_others: those that all but the first are given besides.
      other: the file that they are given instead.
      missing: processes that are not started.
      slow: a process, and the seconds that it takes for one step.
    """
    workdir.mkdir(exist_ok=True)
    told = workdir.parent / f"told-by-{workdir.name}"
    told.mkdir(exist_ok=True)
    run, port = Run(told), free_port()
    for index in range(processes):
        own = workdir if index == 0 else workdir.parent / f"unused-{index}"
        file = other if index and other else config
        arguments = [f"--config={file}", f"--workdir={own}", *flags]
        arguments += of_others if index else ()
        if processes > 1:
            arguments += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
            arguments += [f"--process={index}"]
        if index not in missing:
            code = SLOW.format(seconds=slow[1]) if index == slow[0] else ""
            run.start(arguments, devices, code)
    try:
        yield run
    finally:
        for process in run.processes:
            process.kill()
            process.wait()


def folder_in(config: Path, workdir: Path) -> StageFolder:
    return folder_of(load(str(config)), workdir, "B+T")


def assert_same(config: Path, workdir: Path, expected: Path) -> None:
    """The same training, to rounding in float64: weights, queue, momentum, rows and results."""
    got, wanted = folder_in(config, workdir), folder_in(config, expected)
    for part in ("backbone", "state", "totals"):
        values, others = saved(wanted, part), saved(got, part)
        assert values.keys() == others.keys()
        for name, value in values.items():
            tolerance = 1e-10 if value.dtype == np.float64 else 0
            np.testing.assert_allclose(
                others[name].astype(np.float64),
                value.astype(np.float64),
                rtol=0,
                atol=tolerance,
                err_msg=f"{part} {name}",
            )
    rows, other_rows = read_metrics(wanted.metrics), read_metrics(got.metrics)
    assert len(rows) == 2
    for row, other in zip(rows, other_rows, strict=True):
        assert row.keys() == other.keys()
        for name, text in row.items():
            assert float(other[name]) == pytest.approx(float(text), rel=0, abs=1e-10), name
    assert read_results(workdir / "results.csv") == read_results(expected / "results.csv")


def nobody_else_wrote(workdir: Path) -> bool:
    return not list(workdir.parent.glob("unused-*"))


@pytest.mark.parametrize("mapping", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_two_processes_of_two_devices_equal_one_process_of_one_device(
    config: Path, alone: Path, tmp_path: Path, mapping: str
) -> None:
    workdir, flags = tmp_path / "two", [f"--config.parallel.map={mapping}"]
    with started(config, workdir, processes=2, devices=2, flags=flags) as run:
        assert run.ends() == [0, 0], run.told(0) + run.told(1)
        assert "results:" in run.told(0)
        assert "results" not in run.told(1)
        assert "stage" not in run.told(1)
    assert nobody_else_wrote(workdir)
    assert_same(config, workdir, alone)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_dead_process_ends_the_other_and_another_number_of_devices_goes_on(
    config: Path, alone: Path, tmp_path: Path, victim: int
) -> None:
    workdir, other = tmp_path / "two", 1 - victim
    with started(config, workdir, processes=2, devices=2, slow=(victim, 3600.0)) as run:
        run.wait_until(victim, "now")
        wait_for_checkpoint(run, folder_in(config, workdir))
        run.processes[victim].kill()
        codes = run.ends()
        assert (codes[victim], codes[other]) == (-signal.SIGKILL, LOST), run.told(other)
        assert re.search(rf"process {victim} \(.+\).* is gone", run.told(other)), run.told(other)
        assert "the same command continues" in run.told(other)
        assert "Traceback" not in run.told(other)
    with started(config, workdir, processes=1, devices=4) as run:
        assert run.ends() == [0], run.told(0)
        assert "continues after step 2" in run.told(0)
    assert_same(config, workdir, alone)


def wait_for_checkpoint(run: Run, folder: StageFolder) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (folder.checkpoints.is_dir() and steps_in(folder.checkpoints)):
        assert time.monotonic() < deadline, run.told(0)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_any_process_stops_all_of_them_with_everything_saved(
    config: Path, alone: Path, tmp_path: Path, asked: int
) -> None:
    workdir = tmp_path / "two"
    with started(config, workdir, processes=2, devices=1, slow=(asked, 2.0)) as run:
        run.wait_until(asked, "now")
        run.processes[asked].send_signal(signal.SIGTERM)
        assert run.ends() == [128 + signal.SIGTERM] * 2, run.told(0) + run.told(1)
        assert "stopped by SIGTERM; the same command continues" in run.told(0)
    assert steps_in(folder_in(config, workdir).checkpoints)[-1] in (3, 4)
    with started(config, workdir, processes=2, devices=1) as run:
        assert run.ends() == [0, 0], run.told(0)
    assert_same(config, workdir, alone)


@pytest.mark.slow
def test_a_process_that_makes_no_progress_is_named_with_what_it_is_at(
    config: Path, tmp_path: Path
) -> None:
    flags = ["--wait_minutes=1.5"]
    with started(config, tmp_path / "two", 2, 1, flags=flags, slow=(1, 3600.0)) as run:
        assert run.ends() == [LOST, LOST]
        assert re.search(r"process 1 \(.+\): in step 3; nothing new for 1.5 minutes", run.told(0))
        assert "nothing new" in run.told(1)


@pytest.mark.slow
def test_a_process_that_hangs_is_named(config: Path, tmp_path: Path) -> None:
    flags = ["--wait_minutes=1.5"]
    with started(config, tmp_path / "two", 2, 1, flags=flags, slow=(1, 3600.0)) as run:
        run.wait_until(1, "now")
        run.processes[1].send_signal(signal.SIGSTOP)
        assert run.processes[0].wait(LIMIT_SECONDS) == LOST
        assert re.search(r"process 1 \(.+\) has said nothing for 60 seconds", run.told(0))


def test_a_process_that_does_not_come_is_named_to_all_that_did(
    config: Path, tmp_path: Path
) -> None:
    flags = ["--wait_minutes=0.3"]
    with started(config, tmp_path / "three", 3, 1, flags=flags, missing=[2]) as run:
        assert run.ends() == [2, 2]
        assert re.search(
            r"--processes = 3: expected all of them within 0.3 minutes, but process 2 did not come "
            r"to 127.0.0.1:\d+ \(there: 0, 1 \(.+\)\)",
            run.told(0),
        )
        assert "process 0 to let this one in" in run.told(1)
        assert "Traceback" not in run.told(0) + run.told(1)


@pytest.mark.parametrize(
    ("of_all", "of_others", "told"),
    [
        # Found before training, by the first.
        (["--config.batch_size=7"], [], "batch_size = 7"),
        pytest.param(
            ["--config.parallel.deterministic=True"],
            [],
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true",
            marks=pytest.mark.slow,
        ),
        # Found when they meet.
        ([], ["--config.batch_size=32"], "the command"),
    ],
)
def test_a_mistake_is_told_once_and_ends_all_with_exit_code_2(
    config: Path, tmp_path: Path, of_all: list[str], of_others: list[str], told: str
) -> None:
    workdir = tmp_path / "two"
    with started(config, workdir, 2, 1, flags=of_all, of_others=of_others) as run:
        assert run.ends() == [2, 2], run.told(0) + run.told(1)
        assert told in run.told(0)
        assert "batch_size" not in run.told(1)
        assert "Traceback" not in run.told(0) + run.told(1)


@pytest.mark.slow
def test_other_images_in_another_process_are_a_mistake_that_names_it(
    config: Path, tmp_path: Path, images: Path
) -> None:
    changed = shutil.copytree(images, tmp_path / "images")
    next((changed / "base").rglob("*.png")).unlink()
    other = tmp_path / "other.py"
    other.write_text(config.read_text().replace(str(images), str(changed)))
    with started(config, tmp_path / "two", 2, 1, other=other) as run:
        assert run.ends() == [2, 2], run.told(0) + run.told(1)
        assert re.search(r"process 1 \(.+\): the plan: expected the stage base-", run.told(0))
