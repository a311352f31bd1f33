"""Time to a representation: seconds of training on the target until its probe is good enough.

The aerial triple of `configs/aerial.py` (Tiny ImageNet, AID, RSSCN7; ResNet-10 of width 16, 32 px,
batch 128), its stages and rates. Base and source are given, as public checkpoints would be; what
they took is told. On the target every budget of steps is a training of its own, with its own full
cosine, from random weights (T), the base (B+T) and the source after the base (B+S+T); 0 steps are
the weights that it starts from. The project's linear probe judges its frozen features on test
images.

Seconds are those of the steps with their input, and of nothing else: compiled before, and probed
after the clock. Both they and probes are means over seeds. Seconds to a bar are read off a straight
line between the last budget below and the first that reaches it; `inf` where none does.

- `representation_hpt_against_scratch`: the bar is the best that T reaches with any of its budgets,
  which is chosen on test images, in favour of T; the quicker hierarchy, over T with that budget.
  The budgets end: given the steps of base and source too, T goes on to gain (`docs/aerial.md`).
- `representation_against_pytorch`: T in both, up to the lower of the two bests. PyTorch starts from
  the same weights and has the same rates, queue and momenta, one batch-norm group for speed, crops
  and colours of its own (`views_torch.py`), and is probed by the same code.

Writes DIR/representation.csv, a line for each training as it ends, and DIR/representation.png. The
same command continues; without the former file it starts anew.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import itertools
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.run import Asked
from benchmarks.table import Measured, Skipped
from hpt_jax import config as config_lib
from hpt_jax import handover, parallel, plan, run
from hpt_jax.evaluate import evaluations
from hpt_jax.evaluate.subject import Subject
from hpt_jax.library import Library, StageData
from hpt_jax.models.backbone import Backbone
from hpt_jax.telemetry.display import Display
from hpt_jax.training import Training, learning_rate, make_model
from hpt_jax.weights import load
from hpt_jax.weights.names import flatten, from_torch, to_torch
from hpt_jax.workdir import read_json, stage_folder, whole

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "aerial.py"
NAMES = ("representation_hpt_against_scratch", "representation_against_pytorch")
SEEDS = (0, 1)
SCRATCH, CONTINUED = (100, 200, 400, 800), (0, 100, 300, 500)  # budgets of steps
BUDGETS = {"T": SCRATCH, "B+T": CONTINUED, "B+S+T": CONTINUED}
THEIRS = ("T",)  # the arms that PyTorch trains too
OURS, PYTORCH = "hpt_jax", "pytorch"
COLORS = {"T": "#0072B2", "B+T": "#D55E00", "B+S+T": "#009E73"}

Key = tuple[str, str, int, int]  # arm, framework, seed, steps


@dataclasses.dataclass(frozen=True)
class Point:
    """One training: its arm, who trained it, and what came of it.

    Attributes:
      arm: of `BUDGETS`.
      framework: OURS or PYTORCH.
      seed: of the training.
      steps: its budget.
      seconds: that its steps took.
      probe: top-1 on test images.
    """

    arm: str
    framework: str
    seed: int
    steps: int
    seconds: float
    probe: float

    @property
    def training(self) -> Key:
        """What was trained."""
        return self.arm, self.framework, self.seed, self.steps


# Steps -> (seconds, top-1), means over seeds, of an arm in a framework.
Curve = Mapping[int, tuple[float, float]]


def rows(asked: Asked) -> Iterator[Measured | Skipped]:
    """Both rows."""
    if why := missing(asked.data_dir):
        yield from (Skipped(name, why) for name in NAMES)
        return
    with_torch = importlib.util.find_spec("torch") is not None
    points = measured(asked, [OURS, PYTORCH] if with_torch else [OURS])
    curves = curves_of(points)
    scratch = curves["T", OURS]
    best = max(scratch, key=lambda steps: scratch[steps][1])
    seconds, bar = scratch[best]
    draw(points, curves, bar, asked.out / "representation.png")
    tell(curves, bar)
    hierarchies = [seconds_to(curves[arm, OURS], bar) for arm in BUDGETS if arm != "T"]
    yield Measured(NAMES[0], min(hierarchies), seconds)
    if not with_torch:
        yield Skipped(NAMES[1], "needs the extra torch")
        return
    theirs = curves["T", PYTORCH]
    reached = min(bar, max(probe for _, probe in theirs.values()))
    yield Measured(NAMES[1], seconds_to(scratch, reached), seconds_to(theirs, reached))


def missing(data_dir: Path | None) -> str:
    """Why there is nothing to train on; '' where there is."""
    if data_dir is None:
        return "needs --data_dir"
    stages = config_lib.load(str(CONFIG)).stages
    sets = [stages[name].dataset for name in ("base", "source", "target")]
    folders = [name.removeprefix("folder:") for name in sets]
    absent = [name for name in folders if not (data_dir / name).is_dir()]
    return f"no {', '.join(absent)} in --data_dir" if absent else ""


def study(data_dir: Path) -> ConfigDict:
    """The arms with the budgets that take steps."""
    config = config_lib.load(str(CONFIG))
    config.update(name="representation", data_dir=str(data_dir), seeds=SEEDS, evaluations=())
    for arm in [*config.arms]:
        del config.arms[arm]
    for name in set(config.stages) - {"base", "source", "scratch", "target"}:
        del config.stages[name]
    config.arms.update(
        {"T": ("scratch",), "B+T": ("base", "target"), "B+S+T": ("base", "source", "target")}
    )
    config.stages.scratch.steps = tuple(filter(None, SCRATCH))
    config.stages.target.steps = tuple(filter(None, CONTINUED))
    return config


def measured(asked: Asked, frameworks: Sequence[str]) -> list[Point]:
    """All trainings, those of an earlier call from its file."""
    assert asked.data_dir is not None
    path = asked.out / "representation.csv"
    points, warm = {one.training: one for one in read(path)}, set()
    work = Work(asked.out / "representation", asked.data_dir)
    for seed, arm, steps in itertools.product(SEEDS, BUDGETS, sorted({*SCRATCH, *CONTINUED})):
        for framework in frameworks if arm in THEIRS else (OURS,):
            key = arm, framework, seed, steps
            if steps not in BUDGETS[arm] or key in points:
                continue
            if framework not in warm:
                work.train(key, stop=2)
                warm.add(framework)
            seconds, backbone = work.train(key)
            points[key] = Point(*key, seconds, work.probe(key, backbone))
            print(f"  {arm} by {framework}, seed {seed}, {steps} steps: {seconds:.1f} s, "
                  f"{100 * points[key].probe:.1f} %", flush=True)  # fmt: skip
            write(path, points.values())
    return [*points.values()]


class Work:
    """Trains the target's stages and probes what comes of them.

    Args:
      root: workdir of base and source, which are trained there if need be.
      data_dir: with the three sets.
    """

    def __init__(self, root: Path, data_dir: Path) -> None:
        self.root, quiet = root.absolute(), Display(quiet=True)
        config = study(data_dir.absolute())
        planned = run.make_plan(config)
        given = {one.id: one for one in planned.stages if one.name in ("base", "source")}
        run.run(config, self.root, display=quiet, only=[*given])
        for one in given.values():
            done: Any = read_json(stage_folder(self.root, one.id).done)
            print(f"  given: {one.name}, {done['steps']} steps in {done['seconds']:.0f} s")
        self.config, self.devices = planned.config, parallel.make_devices(1)
        self.library = Library(planned.config.data_dir, self.devices, quiet)
        self.stages = {(one.arm, one.seed, one.pretrain_steps): one.stage for one in planned.runs}

    def stage(self, key: Key) -> plan.Stage:
        """That which a training is; of 0 steps, one that begins in the same way."""
        arm, _, seed, steps = key
        return self.stages[arm, seed, steps or max(BUDGETS[arm])]

    def data(self, key: Key) -> StageData:
        """Its images."""
        found = self.library.of_stage(self.stage(key))
        assert found is not None
        return found

    def train(self, key: Key, stop: int | None = None) -> tuple[float, Backbone]:
        """Seconds of the steps of a training, or of the first `stop`, and what they made."""
        stage, data = self.stage(key), self.data(key)
        backbone, _ = handover.initial_backbone(stage, self.root, data, self.devices)
        steps = key[3] if stop is None else stop
        if not steps:
            return 0.0, backbone
        by = train if key[1] == OURS else train_in_pytorch
        return by(Training(stage, data, self.devices), backbone, steps)

    def probe(self, key: Key, backbone: Backbone) -> float:
        """Top-1 on test images of the linear probe that is best on validation."""
        stage = self.stage(key)
        data = self.library.target(self.config.target, stage)
        subject = Subject(
            make_model(stage.config.model, self.devices), backbone, data.feed, data.splits,
            data.labels, data.dataset.class_names, self.config.metric, stage.config.image_size,
            stage.config.input.center_crop, stage.seed,
        )  # fmt: skip
        return evaluations.evaluate("linear", subject, self.config, lambda done, note: None)["test"]


def train(training: Training, backbone: Backbone, steps: int) -> tuple[float, Backbone]:
    """Seconds of the first steps, and the backbone after them."""
    carry, previous = jax.block_until_ready(training.initial(backbone)), None
    began = time.perf_counter()
    with contextlib.closing(training.batches(0, steps)) as batches:
        for step, batch in enumerate(batches):
            carry, metrics = training.take(carry, batch, step)
            jax.block_until_ready(previous)  # one step is always queued, as in a run
            previous = metrics
    jax.block_until_ready(carry)
    return time.perf_counter() - began, carry.state.backbone


def train_in_pytorch(training: Training, backbone: Backbone, steps: int) -> tuple[float, Backbone]:
    """The same in PyTorch."""
    import torch

    from benchmarks import moco_torch, views_torch
    from tests.parity import oracle

    torch.set_num_threads(2)
    stage, data = training.stage, training.data
    config, model = stage.config, stage.config.model
    torch.manual_seed(stage.seed)
    network = oracle.ResNet(model.arch, model.width, model.stem, model.stem_stride)
    tensors = {
        name: torch.tensor(to_torch(np.asarray(value))) for name, value in flatten(backbone).items()
    }
    left = network.load_state_dict(tensors, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    moco = moco_torch.Training(
        oracle.Encoder(network, config.moco.dim), config.moco.queue_size, config.moco.dim,
        config.optimizer.learning_rate, config.moco.momentum,
    )  # fmt: skip
    assert config.moco.temperature == moco_torch.TEMPERATURE
    pixels = torch.tensor(np.asarray(data.feed.placed)[data.rows])
    statistics_of_pixels = torch.tensor(data.pixel_mean), torch.tensor(data.pixel_std)

    began = time.perf_counter()
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < config.batch_size:
            order = torch.cat([order, torch.randperm(len(pixels))])
        shown, order = pixels[order[: config.batch_size]], order[config.batch_size :]
        query, key = (
            views_torch.views(shown, config.image_size, *statistics_of_pixels) for _ in range(2)
        )
        moco.optimizer.param_groups[0]["lr"] = learning_rate(config.optimizer, step, stage.steps)
        moco.step(query, key)
    seconds = time.perf_counter() - began

    made = {name: from_torch(value.numpy()) for name, value in network.state_dict().items()}
    weights = load.Weights(made, {}, data.pixel_mean, data.pixel_std, np.zeros(2), "PyTorch")
    return seconds, load.fill(backbone, weights)


def read(path: Path) -> list[Point]:
    """What an earlier call has measured."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Point(r["arm"], r["framework"], *map(int, (r["seed"], r["steps"])),
                  *map(float, (r["seconds"], r["probe"]))) for r in csv.DictReader(file)
        ]  # fmt: skip


def write(path: Path, points: Iterable[Point]) -> None:
    """Writes them whole, by rename: a call may be stopped at any moment."""
    with whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Point)])
        for one in points:
            writer.writerow((*one.training, f"{one.seconds:.3f}", f"{one.probe:.4f}"))


def curves_of(points: Sequence[Point]) -> dict[tuple[str, str], Curve]:
    """The curve of each arm and framework."""
    found: dict[tuple[str, str], dict[int, list[Point]]] = {}
    for one in sorted(points, key=lambda point: point.steps):
        found.setdefault((one.arm, one.framework), {}).setdefault(one.steps, []).append(one)
    return {
        of: {
            steps: (
                statistics.fmean(one.seconds for one in seeds),
                statistics.fmean(one.probe for one in seeds),
            )
            for steps, seeds in budgets.items()
        }
        for of, budgets in found.items()
    }


def seconds_to(curve: Curve, bar: float) -> float:
    """When a curve first reaches a bar; `inf` where it does not."""
    before = None
    for seconds, probe in curve.values():
        if probe >= bar:
            if before is None:
                return seconds
            return float(np.interp(bar, (before[1], probe), (before[0], seconds)))
        before = seconds, probe
    return math.inf


def tell(curves: Mapping[tuple[str, str], Curve], bar: float) -> None:
    """Prints the curves, and when each reaches the bar."""
    print(f"  the bar, T's best in hpt_jax: {100 * bar:.1f} %; means of seeds {SEEDS}")
    for (arm, framework), curve in curves.items():
        cells = [f"{steps} {100 * probe:.1f} ({s:.1f} s)" for steps, (s, probe) in curve.items()]
        reached = seconds_to(curve, bar)
        when = f"passes after {reached:.1f} s" if math.isfinite(reached) else "never passes"
        print(f"  {arm:6} {framework:8} {when:22} steps, %: {', '.join(cells)}")


def draw(
    points: Sequence[Point], curves: Mapping[tuple[str, str], Curve], bar: float, path: Path
) -> None:
    """Top-1 against seconds: means as lines, seeds as dots, PyTorch's dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for (arm, framework), curve in curves.items():
        theirs = framework == PYTORCH
        seconds, probes = np.transpose([*curve.values()])
        named = f"{arm}, {'PyTorch' if theirs else 'hpt_jax'}"
        axes.plot(
            seconds, 100 * probes, "--s" if theirs else "-o", color=COLORS[arm], label=named,
            markerfacecolor="white" if theirs else None,
        )  # fmt: skip
        for (_, probe), steps, x in zip(curve.values(), curve, seconds, strict=True):
            axes.annotate(
                f"{steps}", (x, 100 * probe), (3, -10 if theirs else 5), fontsize=7,
                color=COLORS[arm], textcoords="offset points",
            )  # fmt: skip
    for one in points:
        axes.plot(one.seconds, 100 * one.probe, ".", color=COLORS[one.arm], alpha=0.25)
    axes.axhline(100 * bar, color="#5c5c60", linewidth=0.8, linestyle=":")
    axes.annotate(
        "T at its best", (0, 100 * bar), (4, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=8, color="#5c5c60",
    )  # fmt: skip
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("seconds of training on the target (numbers beside the marks: steps)")
    axes.set_ylabel("linear probe, test top-1, %")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
