"""What a plan costs, before any of it runs: needs no data and no device."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp

from hpt_jax import branch, checkpoints, plan, remote
from hpt_jax import config as config_lib
from hpt_jax.data import datasets
from hpt_jax.flops import of_program
from hpt_jax.models.resnet import ResNet
from hpt_jax.shapes import DONE
from hpt_jax.workdir import read_json, stage_folder

# Model FLOP/s of one CPU core in a small ResNet's train step; a guess until a stage has run here.
GUESSED_FLOPS_PER_CORE = 8e9
# The same of a V100 GPU, as `stage_flops` counts: 200 epochs of ImageNet took MoCo-v2's authors 53
# hours on 8 of them (github.com/facebookresearch/moco, README), which is 168 images/s each.
V100_FLOPS = 5.5e12
_DAY = 86400.0


@functools.cache
def _forward(model: config_lib.Model, image_size: int) -> tuple[float, int]:
    """(FLOPs of one image's forward pass, parameters), by tracing alone."""
    net = ResNet(model.arch, model.width, model.stem, model.stem_stride)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    # One trace for both: making the weights takes a forward pass.
    traced = jax.make_jaxpr(lambda key, x: net.init_with_output(key, x, False), return_shape=True)
    jaxpr, (_, variables) = traced(rng, image)
    return of_program(jaxpr), sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])
    )


def stage_flops(stage: plan.Stage) -> float:
    """Matmul and convolution FLOPs of a stage: query forward and backward, key forward."""
    forward, _ = _forward(stage.config.model, stage.config.image_size)
    return 4 * forward * stage.config.batch_size * stage.steps


def stage_bytes(stage: plan.Stage, config: config_lib.Config) -> float:
    """Bytes of a stage's checkpoints on disk: two encoders, momentum and queue in float32."""
    _, parameters = _forward(stage.config.model, stage.config.image_size)
    if not stage.trains:
        return 4.0 * parameters
    keep = config.keep_checkpoints + bool(stage.trunk)  # where its rate begins to fall
    if config.keep_every_steps:
        keep += stage.steps // config.keep_every_steps
    model, moco = stage.config.model, stage.config.moco
    width = ResNet(model.arch, model.width).features
    head = width * (width + moco.dim)
    return 4.0 * keep * (3 * (parameters + head) + moco.queue_size * moco.dim)


def least_memory(stage: plan.Stage, devices: int) -> float:
    """Bytes that a training stage holds on each of some devices, whatever XLA makes of it.

    Query and key encoder, momentum and gradient; the queue; the device's part of two views.
    """
    config, moco = stage.config, stage.config.moco
    _, parameters = _forward(config.model, config.image_size)
    views = 2 * config.batch_size * config.image_size**2 * 3 / devices
    return 4.0 * (4 * parameters + moco.queue_size * moco.dim + views)


def evaluation_flops(name: str, stage: plan.Stage, asked: plan.Plan) -> float:
    """FLOPs of an evaluation of a stage's backbone; those on cached features count as nothing.

    The paper's probe takes a forward pass of every view, fine-tuning a backward pass too. How many
    training images there are, which sets the length of an epoch, is not known here where all are
    taken: epochs then count as `finetune.steps` do.
    """
    forward, _ = _forward(stage.config.model, stage.config.image_size)
    probe, tuned = asked.config.linear_sgd, asked.config.finetune
    if name == "linear_sgd":
        return forward * probe.batch_size * probe.steps
    if not name.startswith("finetune"):
        return 0.0
    labels = config_lib.labels_of(name)
    epoch = -(-labels // tuned.batch_size) if labels else 0
    steps = sum(tuned.steps) + sum(epoch * one for one in tuned.epochs)
    runs = len(tuned.learning_rates) * (len(asked.config.label_seeds) if labels else 1)
    return 3 * forward * tuned.batch_size * steps * runs


def seconds_left(asked: plan.Plan, workdir: Path) -> tuple[float, dict[str, float], float, str]:
    """Seconds of the undone stages and of each long evaluation; FLOP/s, and their source."""
    todo = done_flops = done_seconds = 0.0
    for stage in asked.stages:
        folder = stage_folder(workdir, stage.id)
        if not folder.is_done:
            done = max(_steps_there(stage, workdir), shared_steps(stage, asked.stages))
            todo += stage_flops(stage) * (1 - done / max(stage.steps, 1))
        elif stage.trains:
            done = read_json(folder.done, DONE)
            done_flops += stage_flops(stage) * done["steps_timed"] / stage.steps
            done_seconds += done["seconds"]
    evaluations: dict[str, float] = {}
    for stage in dict.fromkeys(run.stage for run in asked.runs):
        for name in _evaluations_left(stage, asked, workdir):
            if flops := evaluation_flops(name, stage, asked):
                evaluations[name] = evaluations.get(name, 0.0) + flops
    if done_flops:
        rate, source = done_flops / done_seconds, "at the rate of the stages done here"
    else:
        cores = os.cpu_count() or 1
        rate, source = GUESSED_FLOPS_PER_CORE * cores, f"a guess for {cores} CPU cores"
    return todo / rate, {name: flops / rate for name, flops in evaluations.items()}, rate, source


def shared_steps(stage: plan.Stage, stages: Iterable[plan.Stage]) -> int:
    """The steps that a stage has from a shorter one of its trunk."""
    of_trunk = [one for one in stages if stage.trunk and one.trunk == stage.trunk]
    return max((one.branch_step for one in of_trunk if one.steps < stage.steps), default=0)


def _steps_there(stage: plan.Stage, workdir: Path) -> int:
    """The newest step that a stage has a checkpoint of, or can have another stage's."""
    own = checkpoints.numbered(stage_folder(workdir, stage.id).checkpoints)
    return max([*own, *(step for step, _ in branch.shared(stage, workdir))], default=0)


def time_left(asked: plan.Plan, workdir: Path) -> str:
    """The time of what is not done, in a line; evaluations that it leaves out take seconds."""
    training, evaluations, rate, source = seconds_left(asked, workdir)
    parts = [f"{duration(training)} of training"]
    parts += [f"{duration(seconds)} of {name}" for name, seconds in evaluations.items()]
    line = f"time left: about {' and '.join(parts)} ({source})"
    total = training + sum(evaluations.values())
    if total < _DAY:
        return line
    on_gpus = duration(total * rate / (8 * V100_FLOPS))
    return f"{line}; on 8 V100 GPUs at best {on_gpus}, the rate of MoCo's authors"


def duration(seconds: float) -> str:
    """A time in words, of the unit that suits it."""
    for unit, length in (("days", _DAY), ("h", 3600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.1f} min"


def _evaluations_left(stage: plan.Stage, asked: plan.Plan, workdir: Path) -> list[str]:
    folder = stage_folder(workdir, stage.id)
    files = plan.evaluation_files(stage, asked)
    return [name for name, file in files.items() if not folder.has(file)]


def _absent(dataset: str, data_dir: str) -> str:
    """What stands for a dataset that is not there: its path, where it is a folder."""
    scheme, _, place = dataset.partition(":")
    shown = datasets.shown_place(place, data_dir) if scheme == "folder" else dataset
    return f"(not {'here' if remote.is_address(shown) else 'found'}: {shown})"


def describe(asked: plan.Plan, workdir: Path) -> list[str]:
    """The dry run: lines on stages, arms, evaluations, time and disk.

    Args:
      asked: the plan.
      workdir: where done stages are looked for.
    """
    lines = ["stages:"]
    for stage in asked.stages:
        config, state = stage.config, "to do"
        folder = stage_folder(workdir, stage.id)
        if folder.is_done:
            state = "done"
        elif folder.lineage.is_file():
            state = "begun"
        parts = [f"{stage.steps} steps" if stage.trains else config.trainable]
        parts += [f"seed {stage.seed}", f"after {stage.parent.id}" if stage.parent else ""]
        if stage.fingerprint == plan.UNKNOWN:
            parts.append(_absent(config.dataset, asked.config.data_dir))
        else:
            parts.append(config.dataset)
        if stage.parent is None and config.init != "random":
            absent = stage.start == plan.UNKNOWN
            parts.append(f"(not found: {config.init})" if absent else config.init)
        lines.append(f"  {stage.id:28} {state:6} " + "  ".join(part for part in parts if part))
    lines.append("arms:")
    longest = max(len(run.arm) for run in asked.runs)
    for run in asked.runs:
        chain = " -> ".join(stage.id for stage in run.stage.chain)
        lines.append(f"  {run.arm:{longest}} seed {run.seed}: {chain}")
    target = asked.config.target
    if target:
        absent = asked.target_fingerprint == plan.UNKNOWN
        shown = _absent(target, asked.config.data_dir) if absent else target
        left = sum(len(_evaluations_left(run.stage, asked, workdir)) for run in asked.runs)
        asked_for = len(asked.config.evaluations) * len(asked.runs)
        counted = f"{asked_for - left} of {asked_for} done"
        lines.append(f"evaluations: {', '.join(asked.config.evaluations)} on {shown}, {counted}")
    lines.append(time_left(asked, workdir))
    size = sum(stage_bytes(stage, asked.config) for stage in asked.stages) / 2**20
    lines.append(f"disk: about {size:.0f} MiB of checkpoints")
    return lines
