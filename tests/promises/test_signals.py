"""SIGTERM and SIGINT in each phase of a run, sent to real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import folder_of, saved, steps_in

from hpt_jax import run
from hpt_jax.config import load
from hpt_jax.workdir import StageFolder

CONFIG = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from support import tiny_config

def get_config():
    config = tiny_config(Path({images!r}))
    config.save_every_steps = 4
    config.target = "folder:target"
    config.evaluations = ("knn",)
    config.stages.target = dict(dataset="folder:target", steps=6)
    config.arms.T = ("target",)
    return config
"""

# Each phase says that it has begun, and then takes longer than any test.
COMMON = """
import signal, sys, time
import numpy as np
from hpt_jax import checkpoints, main, training
from hpt_jax.evaluate import evaluations

# Whoever started the tests may have set it to be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def busy():  # in C, where no handler of Python's can run
    print("now", flush=True)
    while True:
        np.ones((5000, 5000)) @ np.ones((5000, 5000))

def within(*args, seconds):
    print("now", flush=True)
    time.sleep(seconds)
"""
PHASES = {
    "compile": "training._compiled_step = lambda *args: busy()",
    "evaluation": "evaluations.evaluate = lambda *args: busy()",
    "step": """
        take = training.Training.take
        def slow(self, carry, batch, step):
            if step == 2:
                within(seconds=1)
            return take(self, carry, batch, step)
        training.Training.take = slow
    """,
    "save": """
        write = checkpoints.write_manifest
        def slow(folder):
            within(seconds=1)
            write(folder)
        checkpoints.write_manifest = slow
    """,
}


class Process:
    """A run that is in one phase."""

    def __init__(self, config: Path, workdir: Path, phase: str):
        code = COMMON + textwrap.dedent(PHASES[phase])
        code += f"\nsys.exit(main.main(['--config={config}', '--workdir={workdir}']))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "now\n":
                return
        raise AssertionError(self._process.communicate()[1])

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr, when it has ended by itself."""
        try:
            _, stderr = self._process.communicate(timeout=120)
        finally:
            self._process.kill()
        return self._process.returncode, stderr


@pytest.fixture(scope="module")
def config(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG.format(here=str(Path(__file__).parent), images=str(images)))
    return path


def folder_in(workdir: Path, config: Path) -> StageFolder:
    return folder_of(load(str(config)), workdir, "T")


def results(config: Path, workdir: Path) -> Iterator[tuple[str, object]]:
    """All that a run leaves for others to read, bit by bit."""
    folder = folder_in(workdir, config)
    for part in ("backbone", "state", "totals"):
        for name, value in saved(folder, part).items():
            yield f"{part}{name}", (value.dtype, value.tobytes())
    yield "metrics.csv", folder.metrics.read_bytes()
    yield "results.csv", (workdir / "results.csv").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("undisturbed")
    run.run(load(str(config)), root)
    return dict(results(config, root))


@pytest.mark.parametrize(
    ("phase", "number"),
    [("step", signal.SIGTERM), pytest.param("save", signal.SIGINT, marks=pytest.mark.slow)],
)
def test_a_signal_saves_before_it_stops_and_the_same_command_continues(
    config: Path, tmp_path: Path, undisturbed: dict[str, object], phase: str, number: int
) -> None:
    process = Process(config, tmp_path, phase)
    process.send(number)
    code, stderr = process.end()
    assert code == 128 + number, stderr
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr
    folder = folder_in(tmp_path, config)
    assert not folder.is_done
    steps = steps_in(folder.checkpoints)
    # The third step is step 2; the save is that after step 4, and steps go on meanwhile.
    assert steps == [3] if phase == "step" else steps[0] == 4
    run.run(load(str(config)), tmp_path)
    assert dict(results(config, tmp_path)) == undisturbed


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("compile", signal.SIGTERM),
        pytest.param("evaluation", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_at_once_what_has_nothing_to_save(
    config: Path, tmp_path: Path, phase: str, number: int
) -> None:
    process = Process(config, tmp_path, phase)
    process.send(number)
    code, stderr = process.end()
    assert code == 128 + number, stderr
    assert "the same command continues" in stderr
    assert folder_in(tmp_path, config).is_done == (phase == "evaluation")


def test_a_second_signal_ends_at_once() -> None:
    code = """
        import os, signal
        from hpt_jax.signals import Stop
        stop = Stop()
        with stop.listening(), stop.deferred():
            stop.hold()
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.asked:
                pass
            print("asked", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                pass
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "asked\n"
    assert "again to stop at once" in done.stderr


def test_signals_that_the_parent_ignores_stay_ignored() -> None:
    code = """
        import os, signal
        from hpt_jax.signals import Stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop = Stop()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGINT)
            with stop.deferred():
                stop.hold()
        assert not stop.asked
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
