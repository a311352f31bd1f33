"""Around the step: what a run costs beside training, and how long it takes to begin.

- `around_the_step`: the longest stage of the shipped aerial study on its target (ResNet-10 of width
  16, 32 px, batch 128, 1,900 steps, logs and saves as shipped), on made-up images. Every 50 steps
  it is stopped, and the same compiled step takes 50 steps of the same batches with nothing around
  it, one always queued. What the run takes longer, over what those took: logs, metrics, progress,
  the page, checkpoints, to the end of the last save. The clocks that saves and the page go by stand
  still meanwhile, so that there are as many as in a run of its own. Not in it are the looks at the
  features (`measures.csv`): they are evaluation, which a run without them would do afterwards.
  Their share is printed.
- `host_syncs_a_step`: in the same run, the share of steps whose results were there already when
  the next step was given to the device. A loop that waits for its own step has 1. Steps that end
  with a log, a look or a save, which read them, are left out.
- `import_hpt_jax`: of a new process, less that of an empty one; printed too with all of a run.
- `*_imports_tensorflow`: whether it is loaded when the command ends.
- `warm_start`: from the start of the process to the end of the first step, with the programs that
  an earlier run has compiled by those without. All else is the same: the earlier run's stages are
  removed, so that both begin with random weights. Printed too: ResNet-50 at 64 px, the quickstart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks import run as command
from benchmarks.table import Measured, Skipped
from hpt_jax import checkpoints, config, observe, pretrain, run, training
from hpt_jax.report import live
from hpt_jax.telemetry.display import Display

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 50  # steps
IMAGES, SIDE, CLASSES = 1400, 64, 7  # of a split, as the aerial target has them
AERIAL = """
import runpy

def get_config():
    config = runpy.run_path({aerial!r})["get_config"]()
    config.target = config.stages.scratch.dataset = "folder:{images}"
    config.stages.scratch.steps = config.stages.scratch_long.steps
    for name in set(config.stages) - {{"scratch"}}:
        del config.stages[name]
    for name in set(config.arms) - {{"T"}}:
        del config.arms[name]
    config.update(seeds=(0,), shared_stages=(), evaluations=())
    return config
"""
MAIN = """
import runpy, sys
try:
    runpy.run_module("hpt_jax.main", run_name="__main__")
except SystemExit:
    pass
print("tensorflow" in sys.modules)
"""
FIRST_STEP = """
import os, sys
import jax
from hpt_jax import main, training
take = training.Training.take
def first(*given):
    jax.block_until_ready(take(*given))
    print("first step done", flush=True)
    os._exit(0)
training.Training.take = first
main.main(sys.argv[1:])
"""
RESNET50 = ("model.arch=resnet50", "model.width=64", "image_size=64", "batch_size=16")


def rows(asked: command.Asked) -> Iterator[Measured | Skipped]:
    """The rows of this part."""
    # Kept, since the process goes on with its compilation cache.
    folder = asked.out.absolute() / "around"
    shutil.rmtree(folder, ignore_errors=True)
    path = made_up(folder)
    watch = watched(path, folder / "run")
    extra = watch.loop - watch.bare
    print(
        f"  of {watch.bare[0]:.1f} s of steps; by processor time {extra[1] / watch.bare[1]:.3f}"
        f"; looks at the features take {watch.looks[0] / watch.bare[0]:.3f} more"
    )
    yield Measured("around_the_step", extra[0], watch.bare[0])
    yield Measured("host_syncs_a_step", statistics.fmean(watch.ready))
    empty = seconds("pass")
    print(f"  import of all that a run needs: {seconds('import hpt_jax.run') - empty:.2f} s")
    yield Measured("import_hpt_jax", seconds("import hpt_jax") - empty)

    quickstart = ["--config", str(ROOT / "configs/quickstart.py"), "--workdir", f"{folder}/dry"]
    for name, given in {
        "help": ["--help"],
        "config_error": [*quickstart, "--config.batch_sise=3"],
        "dry_run": [*quickstart, "--config.dry_run=True"],
    }.items():
        began = time.perf_counter()
        told = python(MAIN, *given).splitlines()[-1]
        print(f"  {name}: {time.perf_counter() - began:.2f} s")
        yield Measured(f"{name}_imports_tensorflow", float(told == "True"))

    for name, given in {
        "ResNet-50, 64 px": ["--config", str(path), *(f"--config.{x}" for x in RESNET50)],
        "quickstart": quickstart[:2],
        "": ["--config", str(path)],
    }.items():
        warm, cold = first_steps([*given, "--workdir", f"{folder}/first {name or 'aerial'}"])
        if name:
            print(f"  warm start of {name}: {warm:.1f} s of {cold:.1f}, {warm / cold:.3f}")
        else:
            yield Measured("warm_start", warm, cold)


def made_up(folder: Path) -> Path:
    """Writes images, and a config of one stage of the aerial study on them; the latter's path."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(IMAGES):
            path = folder / "images" / split / str(number % CLASSES) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
            coarse.resize((SIDE, SIDE)).save(path)
    path = folder / "aerial.py"
    aerial = str(ROOT / "configs/aerial.py")
    path.write_text(AERIAL.format(aerial=aerial, images=folder / "images"))
    return path


@dataclasses.dataclass
class Watch:
    """Seconds by the clock and of the processors, f64[2], and which steps were there already.

    Attributes:
      loop: of the run's steps and what is around them, without the looks.
      looks: at the features.
      bare: of as many steps with nothing around them.
      ready: for each step between logs, whether its results were there when the next one was given.
      paused: seconds in which the run stood still.
      since: when the present stretch of the run began; None: none has.
      before: results of the step before; None where something has read them.
    """

    loop: Any = dataclasses.field(default_factory=lambda: np.zeros(2))
    looks: Any = dataclasses.field(default_factory=lambda: np.zeros(2))
    bare: Any = dataclasses.field(default_factory=lambda: np.zeros(2))
    ready: list[bool] = dataclasses.field(default_factory=list)
    paused: float = 0.0
    since: Any = None
    before: Any = None


def now() -> np.ndarray:
    """By the clock and of the processors, in seconds: f64[2]."""
    return np.array([time.perf_counter(), time.process_time()])


def watched(path: Path, workdir: Path) -> Watch:
    """Runs the config, and takes its steps bare in between."""
    watch, take, look = Watch(), training.Training.take, observe.Observer.look
    log, save, close = (
        observe.Observer.log,
        checkpoints.Checkpoints.save,
        checkpoints.Checkpoints.close,
    )

    def pause() -> None:
        if watch.since is not None:
            watch.loop += now() - watch.since
            watch.since = None

    def bare(self: training.Training, carry: Any, start: int) -> None:
        stopped = time.monotonic()
        carry, previous = jax.tree.map(lambda x: x.copy(), carry), None
        stop = min(start + BLOCK, self.steps)
        with contextlib.closing(self.batches(start, stop)) as batches:
            began = now()
            for step, batch in zip(range(start, stop), batches, strict=True):
                carry, metrics = take(self, carry, batch, step)
                jax.block_until_ready(previous)
                previous = metrics
            jax.block_until_ready(carry)
            watch.bare += now() - began
        watch.paused += time.monotonic() - stopped

    def clock() -> float:
        return time.monotonic() - watch.paused

    def step_of_run(self: training.Training, carry: Any, batch: Any, step: int) -> Any:
        if watch.before is not None:
            watch.ready.append(watch.before.is_ready())
        if step % BLOCK == 1:  # the first step compiles
            jax.block_until_ready(carry)
            pause()
            bare(self, carry, step)
            watch.since = now()
        found = take(self, carry, batch, step)
        watch.before = found[1]["loss"]
        return found

    def look_of_run(self: observe.Observer, step: int, carry: Any) -> None:
        jax.block_until_ready(carry)
        watch.before, began = None, now()
        look(self, step, carry)
        if watch.since is not None:
            watch.looks += now() - began
            watch.since += now() - began

    def reading(was: Any) -> Any:
        def call(*given: Any) -> Any:
            watch.before = None
            return was(*given)

        return call

    def closing(self: checkpoints.Checkpoints) -> None:
        close(self)
        pause()

    with (
        mock.patch.object(training.Training, "take", step_of_run),
        mock.patch.object(observe.Observer, "look", look_of_run),
        mock.patch.object(observe.Observer, "log", reading(log)),
        mock.patch.object(checkpoints.Checkpoints, "save", reading(save)),
        mock.patch.object(checkpoints.Checkpoints, "close", closing),
        mock.patch.object(pretrain, "time", types.SimpleNamespace(monotonic=clock)),
        mock.patch.object(live.Live.__init__, "__defaults__", (clock,)),
    ):
        run.run(config.load(str(path)), workdir, display=Display(Console(file=io.StringIO())))
    return watch


def python(code: str, *arguments: str) -> str:
    """What a new process prints."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def seconds(code: str) -> float:
    """The median of several processes."""
    found = []
    for _ in range(5):
        began = time.perf_counter()
        python(code)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def first_steps(arguments: list[str]) -> tuple[float, float]:
    """Seconds to the end of the first step: warm, the median of three, and cold."""
    workdir, found = Path(arguments[-1]), []
    for _ in range(4):
        shutil.rmtree(workdir / "stages", ignore_errors=True)
        began = time.perf_counter()
        assert python(FIRST_STEP, *arguments).endswith("first step done\n")
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:]), found[0]
