"""A study by several processes in one workdir: each stage once, and the results of a lone run."""

from __future__ import annotations

import contextlib
import io
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from kills import LIMIT_SECONDS, differences, environment, kill_group, results_of, start
from rich.console import Console
from support import tiny_config

from hpt_jax import run, workdir
from hpt_jax.telemetry.display import Display
from hpt_jax.telemetry.writers import read_metrics

# A parent, arms that part, a longer run that goes on from a shorter one, and one without a step.
CONFIG = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path

from support import tiny_config


def get_config():
    config = tiny_config(Path({images!r}))
    config.target = "folder:target"
    config.optimizer.schedule = "anytime"
    config.stages.base = dict(dataset="folder:base", steps=4)
    config.stages.target = dict(dataset="folder:target", steps=(4, 6))
    config.arms["B"] = ("base",)
    config.arms["B+T"] = ("base", "target")
    config.arms["random"] = ()
    config.evaluations = ("knn",)
    config.export = "B+T"
    return config
"""


@pytest.fixture(scope="module")
def study(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config file of a study."""
    path = tmp_path_factory.mktemp("study") / "config.py"
    path.write_text(CONFIG.format(here=str(Path(__file__).parent), images=str(images)))
    return path


@pytest.fixture(scope="module")
def alone(study: Path) -> Path:
    """The workdir of one run that did it all."""
    folder = study.parent / "alone"
    run_all(study.parent, [main(study, folder)])
    return folder


def main(study: Path, folder: Path) -> list[str]:
    return ["-m", "hpt_jax.main", "--config", str(study), "--workdir", str(folder)]


def run_all(root: Path, commands: Sequence[Sequence[str]]) -> list[str]:
    """Starts commands of Python at once and waits for all; returns what each of them said."""
    logs = [root / f"{index}.log" for index in range(len(commands))]
    for log in logs:
        log.unlink(missing_ok=True)
    started = [start(*one) for one in zip(commands, logs, strict=True)]
    try:
        codes = [process.wait(timeout=LIMIT_SECONDS) for process in started]
    finally:
        for process in started:
            kill_group(process)
    told = [log.read_text() for log in logs]
    assert codes == [0] * len(commands), "\n".join(told)
    return told


def listed(study: Path, folder: Path) -> str:
    """The script that the jobs of a study are printed as."""
    command = [sys.executable, "-m", "hpt_jax.jobs", *main(study, folder)[2:]]
    return subprocess.run(
        command, env=environment(), check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def check_equal(alone: Path, folder: Path) -> None:
    """Checks that a workdir has what one run alone gives, to the bit."""
    expected, got = results_of(alone), results_of(folder)
    assert differences(expected, got) == []
    assert "results.csv" in got
    assert "export/backbone.safetensors" in got


@pytest.mark.slow
def test_commands_that_a_shell_runs_give_the_results_of_one_process(
    study: Path, alone: Path, tmp_path: Path
) -> None:
    script = listed(study, tmp_path / "w")
    assert len([line for line in script.splitlines() if "--only" in line]) == 3
    subprocess.run(["sh", "-e"], input=script, text=True, env=environment(), check=True)
    check_equal(alone, tmp_path / "w")


@pytest.mark.slow
def test_submitits_processes_give_the_results_of_one_process(
    study: Path, alone: Path, tmp_path: Path
) -> None:
    command = ["-m", "hpt_jax.jobs", *main(study, tmp_path / "w")[2:], "--submit", "local"]
    (told,) = run_all(tmp_path, [command])
    assert "failed" not in told
    jobs = [line.partition(":")[0] for line in told.splitlines() if "hpt_jax.main" in line]
    assert len(jobs) == 4
    for job in jobs:
        (log,) = tmp_path.glob(f"w/jobs/*/{job}_0_log.out")
        assert "Job completed successfully" in log.read_text()
    check_equal(alone, tmp_path / "w")


@pytest.mark.slow
def test_processes_at_once_train_every_stage_once_and_give_the_results_of_one(
    study: Path, alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "w"
    lines = [line for line in listed(study, folder).splitlines() if not line.startswith("#")]
    # All waves at once, and two runs of the whole.
    told = run_all(tmp_path, [*(shlex.split(line)[1:] for line in lines), main(study, folder)])

    stages = sorted(path.name for path in (folder / "stages").iterdir())
    said = [line for text in told for line in text.splitlines()]
    begun = Counter(line.partition(":")[0] for line in said if line.endswith(", seed 0"))
    begun += Counter(line.partition(":")[0] for line in said if ", seed 0;" in line)
    assert begun == dict.fromkeys(stages, 1), "\n".join(told)
    judged = Counter(line.partition(":")[0] for line in said if "% on test" in line)
    assert judged == dict.fromkeys(stages, 1), "\n".join(told)
    for stage in stages:
        steps = [
            int(row["step"]) for row in read_metrics(folder / "stages" / stage / "metrics.csv")
        ]
        assert steps == sorted(set(steps))
    check_equal(alone, folder)


@pytest.mark.usefixtures("quick_figures")
def test_a_process_does_what_no_other_holds_and_waits_for_the_rest(
    images: Path, tmp_path: Path
) -> None:
    config = tiny_config(images)
    config.target = "folder:target"
    for name in ("first", "second"):
        config.stages[name] = dict(dataset="folder:target", steps=2)
        config.arms[name] = (name,)
    config.stages.second.optimizer = dict(learning_rate=0.2)
    config.evaluations = ("knn",)
    first, second = (stage.id for stage in run.make_plan(config).stages)
    other = workdir.take(tmp_path / "stages" / first)
    assert other is not None
    told: list[str] = []

    class Told(Display):
        def line(self, text: str) -> None:
            told.append(text)
            if text.endswith("waiting"):
                assert text.startswith(f"{first} is held by process ")
                other.close()

    run.run(config, tmp_path, display=Told(Console(file=io.StringIO())))
    done = [line.partition(" ")[::2] for line in told if "% on test" in line or "seed 0" in line]
    assert [name.rstrip(":") for name, _ in done] == [second, second, first, first]


# A file system without locks, on which a lease ends within seconds.
LEASED = """
import errno, sys
from hpt_jax import lease, workdir
from hpt_jax.main import main

def no_locks(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

workdir.fcntl.flock = no_locks
lease.BEAT_SECONDS, lease.EXPIRY_SECONDS = 0.2, 5.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_without_locks_the_stage_of_a_suspended_process_goes_to_another_one(
    images: Path, tmp_path: Path
) -> None:
    text = CONFIG.format(here=str(Path(__file__).parent), images=str(images))
    text = text.replace("steps=4)", "steps=600)").replace("steps=(4, 6)", "steps=4")
    (tmp_path / "config.py").write_text(text)
    flags = ["--config.save_every_steps=20", "--config.log_every_steps=20"]
    (tmp_path / "leased.py").write_text(LEASED)

    def started(name: str, program: Sequence[str]) -> subprocess.Popen[bytes]:
        folder = tmp_path / ("alone" if name == "alone" else "w")
        command = main(tmp_path / "config.py", folder)[2:]
        return start([*program, *command, *flags], tmp_path / f"{name}.log")

    leased = [str(tmp_path / "leased.py")]
    with contextlib.ExitStack() as ends:
        first = started("first", leased)
        ends.callback(kill_group, first)
        while not list(tmp_path.glob("w/stages/base-*/checkpoints/*0/manifest.json")):
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        (base,) = (tmp_path / "w" / "stages").glob("base-*")
        assert not (base / "done.json").exists(), "too quick for this test"
        second = started("second", leased)
        ends.callback(kill_group, second)
        while "continues after step" not in (tmp_path / "second.log").read_text():
            assert second.poll() is None, (tmp_path / "second.log").read_text()
            time.sleep(0.01)
        first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=LIMIT_SECONDS) == 2
        said = (tmp_path / "first.log").read_text()
        assert "Traceback" not in said
        line = said.splitlines()[-1]
        assert line.startswith(f"{base}: expected this process to hold it, but process ")
        assert second.wait(timeout=LIMIT_SECONDS) == 0
        third = started("alone", ["-m", "hpt_jax.main"])
        ends.callback(kill_group, third)
        assert third.wait(timeout=LIMIT_SECONDS) == 0
    check_equal(tmp_path / "alone", tmp_path / "w")
