"""What a plan costs, before any of it runs: needs no data and no device."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from hpt_jax import config as config_lib
from hpt_jax import plan
from hpt_jax.models.resnet import ResNet
from hpt_jax.workdir import read_json, stage_folder

# Model FLOP/s of one CPU core in a small ResNet's train step; a guess until a stage has run here.
GUESSED_FLOPS_PER_CORE = 8e9


@functools.cache
def _forward(model: config_lib.Model, image_size: int) -> tuple[float, int]:
    """(FLOPs of one image's forward pass, parameters), by tracing alone."""
    net = ResNet(model.arch, model.width, model.stem, model.stem_stride)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key, x: net.init(key, x, False), rng, image)
    jaxpr = jax.make_jaxpr(lambda v, x: net.apply(v, x, False))(variables, image)
    flops = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # [h, w, in, out]
            flops += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:3])
    return flops, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def stage_flops(stage: plan.Stage) -> float:
    """Matmul and convolution FLOPs of a stage: query forward and backward, key forward."""
    forward, _ = _forward(stage.config.model, stage.config.image_size)
    return 4 * forward * stage.config.batch_size * stage.steps


def stage_bytes(stage: plan.Stage, keep: int = 2) -> float:
    """Bytes of a stage's checkpoints on disk: two encoders, momentum and queue in float32."""
    _, parameters = _forward(stage.config.model, stage.config.image_size)
    if not stage.trains:
        return 4.0 * parameters
    config, moco = stage.config, stage.config.moco
    width = ResNet(config.model.arch, config.model.width).features
    head = width * (width + moco.dim)
    return 4.0 * keep * (3 * (parameters + head) + moco.queue_size * moco.dim)


def seconds_left(asked: plan.Plan, workdir: Path) -> tuple[float, str]:
    """Seconds of the stages that are not done, and what the rate is taken from."""
    todo = done_flops = done_seconds = 0.0
    for stage in asked.stages:
        folder = stage_folder(workdir, stage.id)
        if not folder.is_done:
            todo += stage_flops(stage)
        elif stage.trains:
            done = read_json(folder.done)
            done_flops += stage_flops(stage) * done["steps_timed"] / stage.steps
            done_seconds += done["seconds"]
    if done_flops:
        return todo * done_seconds / done_flops, "at the rate of the stages done here"
    cores = os.cpu_count() or 1
    return todo / (GUESSED_FLOPS_PER_CORE * cores), f"a guess for {cores} CPU cores"


def time_left(asked: plan.Plan, workdir: Path) -> str:
    """The time of what is not done, in a line."""
    seconds, source = seconds_left(asked, workdir)
    return f"time left: about {seconds / 60:.1f} min of training ({source})"


def _evaluations_done(stage: plan.Stage, asked: plan.Plan, workdir: Path) -> int:
    folder = stage_folder(workdir, stage.id).path
    return sum((folder / f).is_file() for f in plan.evaluation_files(stage, asked).values())


def _absent(dataset: str, data_dir: str) -> str:
    """What stands for a dataset that is not there: its path, where it is a folder."""
    scheme, _, place = dataset.partition(":")
    path = Path(data_dir).expanduser() / Path(place).expanduser()
    return f"(not found: {path if scheme == 'folder' else dataset})"


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
            parts.append(
                config.init if Path(config.init).exists() else f"(not found: {config.init})"
            )
        lines.append(f"  {stage.id:28} {state:6} " + "  ".join(part for part in parts if part))
    lines.append("arms:")
    for run in asked.runs:
        chain = " -> ".join(stage.id for stage in run.stage.chain)
        lines.append(f"  {run.arm:12} seed {run.seed}: {chain}")
    target = asked.config.target
    if target:
        absent = asked.target_fingerprint == plan.UNKNOWN
        shown = _absent(target, asked.config.data_dir) if absent else target
        finished = [_evaluations_done(run.stage, asked, workdir) for run in asked.runs]
        counted = f"{sum(finished)} of {len(asked.config.evaluations) * len(finished)} done"
        lines.append(f"evaluations: {', '.join(asked.config.evaluations)} on {shown}, {counted}")
    lines.append(time_left(asked, workdir))
    size = sum(stage_bytes(stage) for stage in asked.stages) / 2**20
    lines.append(f"disk: about {size:.0f} MiB of checkpoints")
    return lines
