"""Kills a run at random moments until it is done, and compares it with an undisturbed one.

The runs are processes of their own, `python kills.py RECORD FLAGS`: the command itself, which
besides writes down where it is.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support import saved

from hpt_jax.workdir import StageFolder

# In the order in which a run first comes to them; rank 2 comes again with every stage.
RANKS = {
    "start": 0,  # imports
    "resume": 1,  # plan, data, the newest checkpoint; up to the first step of the process
    "compile": 2,  # the first call of a compiled step
    "step": 2,
    "save": 2,  # from `save` to its manifest, whatever goes on beside it
    "between": 2,  # from one stage's last step to the next one's first
    "evaluation": 3,
    "report": 4,  # export, results, page
}
PHASES = tuple(RANKS)

# Folders that tell of time, place and command; checkpoints are compared array by array.
PASSED_OVER = {"compilation_cache", "plans", "report", "checkpoints", "jobs", "lease"}

# What a child may take at most, before it counts as hung.
LIMIT_SECONDS = 600.0

CONFIG = """
from pathlib import Path

from support import tiny_config


def get_config():
    config = tiny_config(Path({images!r}))
    config.save_every_steps = 5
    config.target = "folder:target"
    config.stages.base = dict(dataset="folder:base", steps=18)
    config.stages.target = dict(dataset="folder:target", steps=18)
    config.arms["B+T"] = ("base", "target")
    config.evaluations = ("knn",)
    config.export = "B+T"
    {more}
    return config
"""

# Two more programs to compile, and the evaluations that train.
MORE = """
    config.stages.target_bn = dict(dataset="folder:target", steps=12, trainable="batch_norm")
    config.stages.target_statistics = dict(dataset="folder:target", trainable="statistics")
    config.arms["HPT-BN"] = ("base", "target_bn")
    config.arms["B"] = ("base", "target_statistics")
    config.evaluations = ("knn", "linear", "linear_sgd", "finetune_9")
    config.label_seeds = (0,)
    config.linear_sgd.update(steps=6, batch_size=8, eval_every=3)
    config.finetune.update(learning_rates=(0.01,), steps=(4,), epochs=(), batch_size=8, bn_groups=2)
""".strip()


class Record:
    """Where a child is, in a file that outlives it.

    Args:
      path: of the file.
    """

    SIZE = 96

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._lock = threading.Lock()
        self._saves, self._stage, self._step = 0, "", 0
        self.phase = "start"

    def set(self, phase: str | None = None, place: tuple[str, int] | None = None, saves: int = 0):
        """Changes the phase of the main thread, (stage, step), or how many saves are under way."""
        with self._lock:
            self.phase = phase or self.phase
            self._stage, self._step = place or (self._stage, self._step)
            self._saves += saves
            text = f"{'save' if self._saves else self.phase} {self._step} {self._stage}"
            os.pwrite(self._file, text.encode().ljust(self.SIZE)[: self.SIZE], 0)


def read_record(path: Path) -> tuple[str, int, str]:
    """Phase, steps done, and stage (or stage and evaluation) of a child."""
    phase, step, stage = path.read_bytes().decode().split(" ", 2)
    return phase, int(step), stage.rstrip()


def child(path: Path, flags: Sequence[str]) -> int:
    """Runs the command and records where it is."""
    record = Record(path)
    record.set()

    from hpt_jax import pretrain, run, training
    from hpt_jax.checkpoints import Checkpoints
    from hpt_jax.main import main
    from hpt_jax.telemetry.display import Display

    def around(owner: Any, name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        wrapped = getattr(owner, name)

        @functools.wraps(wrapped)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            record.set(**before)
            try:
                return wrapped(*args, **kwargs)
            finally:
                record.set(**after)

        setattr(owner, name, wrapper)

    around(run, "run", {"phase": "resume"}, {})
    around(run, "evaluate", {"phase": "evaluation"}, {})
    around(run, "export_arm", {"phase": "report"}, {})
    around(run, "report", {"phase": "report"}, {})
    around(pretrain, "run_stage", {}, {"phase": "between"})
    around(Checkpoints, "save", {"saves": 1}, {})
    around(Checkpoints, "_finalize", {}, {"saves": -1})

    compiled_step, called = training._compiled_step, set()

    def recorded_step(*made_of: Any) -> Callable[..., Any]:
        program = compiled_step(*made_of)

        def step(*args: Any) -> Any:
            record.set("step" if id(program) in called else "compile")
            called.add(id(program))
            result = program(*args)
            record.set("step")
            return result

        return step

    training._compiled_step = recorded_step

    progress = Display.progress

    @contextlib.contextmanager
    def recorded_progress(
        self: Display, name: str, total: int, start: int = 0, first: str = ""
    ) -> Iterator[Any]:
        record.set(place=(name, start))
        with progress(self, name, total, start, first) as update:

            def updated(done: int, note: str) -> None:
                record.set(place=(name, done))
                update(done, note)

            yield updated
        if record.phase in ("compile", "step"):  # others than training show progress too
            record.set("between")

    Display.progress = recorded_progress
    return main(flags)


@dataclasses.dataclass(frozen=True)
class Kill:
    """Where a run was when it was killed.

    Attributes:
      run: its workdir's name.
      phase: one of `PHASES`.
      step: how many steps of the stage, or of the evaluation, it had begun.
      stage: the stage, or the stage and the evaluation, where there was one yet.
      seconds: since the process was started.
    """

    run: str
    phase: str
    step: int
    stage: str
    seconds: float


class Harness:
    """Runs one config undisturbed, and again with kills.

    Args:
      root: where everything is written.
      images: the sets below it are trained on.
      more: whether all kinds of stages and evaluations are run.
      seed: of the moments.
    """

    def __init__(self, root: Path, images: Path, more: bool, seed: int):
        self.root = root
        self.config = root / "config.py"
        self.config.write_text(CONFIG.format(images=str(images), more=MORE if more else ""))
        self.kills: list[Kill] = []
        self._random = random.Random(seed)
        # How long each phase was seen to last, of which a moment in it is drawn.
        self._lasted: dict[str, list[float]] = collections.defaultdict(list)

    @property
    def counts(self) -> dict[str, int]:
        """Phase -> how many kills fell into it."""
        return {phase: sum(kill.phase == phase for kill in self.kills) for phase in PHASES}

    def finish(self, name: str, pipeline: str) -> Path:
        """Runs the command to its end; returns the workdir."""
        process = self._start(name, pipeline)
        for _ in self._places(process, name):
            pass
        self._check_exit(process, name)
        return self.root / name

    def kill(self, name: str, pipeline: str, wanted: str, soon: bool = False) -> bool:
        """Starts the command and kills it, at a random moment of a phase if it comes to it.

        Args:
          name: of the workdir.
          pipeline: 'resident' or 'host'.
          wanted: the phase; a later one, where it does not come any more.
          soon: whether to count on the phase to last no longer than the shortest one so far.

        Returns:
          False if the run came to its end.
        """
        process, began = self._start(name, pipeline), time.monotonic()
        # So many steps are let pass before a phase that comes with every few of them.
        steps = self._random.randrange(6) if wanted in ("step", "save") else 0
        first, moment = None, float("inf")
        for phase, step, _ in self._places(process, name):
            now = time.monotonic()
            if RANKS[phase] > RANKS[wanted] and moment == float("inf"):
                wanted, steps = phase, 0
            if first is None and RANKS[phase] >= RANKS["step"]:
                first = step
            # A step before the first one is of the next stage.
            if moment == float("inf") and phase == wanted and abs(step - (first or 0)) >= steps:
                lasted = self._lasted[wanted] or [0.0]
                longest = min(lasted) if soon else self._random.choice(lasted)
                moment = now + longest * self._random.random()
            # Where the phase ended sooner, at once: the run shall not come too far.
            if now >= moment or (phase != wanted and moment < float("inf")):
                break
        else:
            self._check_exit(process, name)
            return False
        kill_group(process)
        phase, step, stage = read_record(self._record(name))
        self.kills.append(Kill(name, phase, step, stage, time.monotonic() - began))
        return True

    def kill_often(
        self, name: str, pipeline: str, phases: Sequence[str], cold: float = 0.5
    ) -> Path:
        """Kills one run in each of some phases, in turn, and lets it finish; returns its workdir.

        Args:
          name: of the workdir.
          pipeline: 'resident' or 'host'.
          phases: what to kill.
          cold: the share of kills in 'compile' before which all compiled programs are deleted.
        """
        reached = 0
        for wanted in phases:
            if RANKS["resume"] < RANKS[wanted] < reached:  # it does not come again
                continue
            if wanted == "compile" and self._random.random() < cold:
                shutil.rmtree(self.root / name / "compilation_cache", ignore_errors=True)
            for soon in (False, True):
                if not self.kill(name, pipeline, wanted, soon):
                    return self.root / name
                reached = max(reached, RANKS[self.kills[-1].phase])
                if self.kills[-1].phase == wanted or RANKS[wanted] < reached:
                    break
        return self.finish(name, pipeline)

    def shuffled(self, phases: Sequence[str]) -> list[str]:
        """Phases in a random order, but those at the end of a run at the end."""
        shuffled = self._random.sample(phases, len(phases))
        return sorted(shuffled, key=lambda phase: max(RANKS[phase], RANKS["step"]))

    def table(self) -> str:
        """All kills, and how many there were in each phase."""
        lines = [f"{'kill':>4} {'run':<12} {'phase':<10} {'step':>4} {'seconds':>7} stage"]
        for index, kill in enumerate(self.kills, start=1):
            lines.append(
                f"{index:>4} {kill.run:<12} {kill.phase:<10} {kill.step:>4} {kill.seconds:>7.2f} "
                f"{kill.stage}"
            )
        counts = [f"{phase} {count}" for phase, count in self.counts.items()]
        return "\n".join([*lines, f"{len(self.kills)} kills: {', '.join(counts)}"])

    def _record(self, name: str) -> Path:
        return self.root / f"{name}.record"

    def _output(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def _start(self, name: str, pipeline: str) -> subprocess.Popen[bytes]:
        flags = ["--config", str(self.config), "--workdir", str(self.root / name)]
        flags.append(f"--config.input.pipeline={pipeline}")
        self._record(name).write_text("start 0 ".ljust(Record.SIZE))
        return start_child(self._record(name), flags, self._output(name))

    def _places(
        self, process: subprocess.Popen[bytes], name: str
    ) -> Iterator[tuple[str, int, str]]:
        """Where a child is, every millisecond, until it ends; learns how long each phase lasts."""
        began = entered = time.monotonic()
        last = "start"
        while process.poll() is None:
            now = time.monotonic()
            if now - began > LIMIT_SECONDS:
                kill_group(process)
                raise AssertionError(f"it hangs:\n{self._output(name).read_text()[-4000:]}")
            place = read_record(self._record(name))
            if place[0] != last:
                self._lasted[last].append(now - entered)
                last, entered = place[0], now
            yield place
            time.sleep(0.001)

    def _check_exit(self, process: subprocess.Popen[bytes], name: str) -> None:
        told = self._output(name).read_text()[-4000:]
        assert process.returncode == 0, f"exit code {process.returncode}:\n{told}"


def environment() -> dict[str, str]:
    """Of commands that tests start: one device, quick compilation, programs of their own."""
    # A kill may leave a broken program behind: no other test is to have it.
    others = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return {**kept, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def start_child(record: Path, flags: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """Starts the command in a process group of its own, on one device."""
    return start([__file__, str(record), *flags], output)


def start(arguments: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """Starts Python in a process group of its own, on one device.

    Args:
      arguments: of Python.
      output: a file for all that it says.
    """
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a child and all that it has started, if it is still there; waits for its end."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def results_of(workdir: Path) -> dict[str, bytes]:
    """All that a run gives, by name; no files that tell of time, place and command.

    Files by their path below the workdir, and every array of each stage's newest checkpoint.
    """
    found: dict[str, bytes] = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        passed_over = (
            not PASSED_OVER.isdisjoint(name.parts)
            or path.name in ("done.json", "lock")
            or path.name.startswith("events.out.tfevents")
            or path.suffix == ".tmp"  # of a kill within `workdir.whole`
        )
        if path.is_file() and not passed_over:
            found[name.as_posix()] = path.read_bytes()
    for stage in sorted((workdir / "stages").iterdir()):
        for part in ("backbone", "state", "totals"):
            arrays: dict[str, Any] = {}
            with contextlib.suppress(KeyError):  # one that takes no steps has a backbone alone
                arrays = saved(StageFolder(stage), part)
            for at, array in arrays.items():
                kind = f"{array.dtype} {array.shape} ".encode()
                found[f"stages/{stage.name} {part}{at}"] = kind + array.tobytes()
    return found


def differences(expected: Mapping[str, bytes], got: Mapping[str, bytes]) -> list[str]:
    """The names of results that two runs do not have alike, to the bit."""
    return sorted(
        name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)
    )


def kill_until(
    harness: Harness, pipelines: Sequence[str], phases: Sequence[str], kills: int, least: int
) -> dict[str, bytes]:
    """Kills run after run, and compares each with an undisturbed one.

    Args:
      harness: keeps the log.
      pipelines: the ways to read images, in turn.
      phases: what each run is killed in, in a random order.
      kills: how many there shall be at least.
      least: how many there shall be at least in each phase.

    Returns:
      the results of the last run.
    """
    whole = {one: harness.finish(f"whole-{one}", one) for one in pipelines}
    expected = {one: results_of(workdir) for one, workdir in whole.items()}
    got: dict[str, bytes] = {}
    for run in itertools.count():
        missed = [phase for phase, count in harness.counts.items() if count < least]
        enough = len(harness.kills) >= kills
        if enough and not missed:
            return got
        name, pipeline = f"run-{run}", pipelines[run % len(pipelines)]
        # To save time; kills in 'compile' begin without it now and then.
        cache = "compilation_cache"
        shutil.copytree(whole[pipeline] / cache, harness.root / name / cache)
        workdir = harness.kill_often(name, pipeline, harness.shuffled(missed if enough else phases))
        got = results_of(workdir)
        found = differences(expected[pipeline], got)
        assert not found, f"{name} differs in {found}\n{harness.table()}"
        print(f"{name}: equal after {len(harness.kills)} kills in all", flush=True)
        shutil.rmtree(workdir)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(child(Path(sys.argv[1]), sys.argv[2:]))
