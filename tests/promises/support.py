"""Generated image folders, and the smallest config that trains on them for real."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import config_dict
from PIL import Image

from hpt_jax import checkpoints, plan, run
from hpt_jax.config import default_config
from hpt_jax.models.resnet import ARCHITECTURES
from hpt_jax.workdir import StageFolder, stage_folder

# ResNet-10's train step takes twice as long to compile.
TWO_BLOCKS = ("two_blocks", (False, (1, 1)))


def write_images(folder: Path, classes: int, count: int, size: int, seed: int) -> Path:
    """`<folder>/<class>/<index>.png`: noise around one colour and one stripe width a class."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        color = rng.uniform(40, 215, 3)
        stripes = 60 * np.sign(np.sin(np.arange(size) * (label + 1)))[:, None, None]
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(count):
            noise = rng.normal(0, 25, (size, size, 3))
            pixels = np.clip(color + stripes + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index:03d}.png")
    return folder


def tiny_config(images: Path) -> config_dict.ConfigDict:
    """A network of width 4 at 16 px, batches of 8 in 4 groups; no stages and no arms yet."""
    ARCHITECTURES.update([TWO_BLOCKS])  # for processes that tests start; conftest.py takes it back
    config = default_config()
    config.name = "tiny"
    config.data_dir = str(images)
    config.image_size = 16
    config.batch_size = 8
    config.model.update(arch="two_blocks", width=4, stem="small", stem_stride=2)
    config.moco.update(queue_size=20, dim=8, momentum=0.9)
    config.optimizer.learning_rate = 0.1
    config.log_every_steps = 2
    config.parallel.devices = 1
    return config


def folder_of(config: config_dict.ConfigDict, workdir: Path, arm: str) -> StageFolder:
    """The folder of the stage at the end of an arm's first run."""
    return stage_folder(workdir, last_stage(config, arm).id)


def last_stage(config: config_dict.ConfigDict, arm: str) -> plan.Stage:
    """The stage at the end of an arm's first run."""
    asked = run.make_plan(config)
    return next(one.stage for one in asked.runs if one.arm == arm)


def steps_in(folder: Path) -> list[int]:
    """All whole checkpoints below a folder, oldest first."""
    found: list[int] = []
    while (step := checkpoints.newest_whole(folder, found[0] if found else None)) is not None:
        found.insert(0, step)
    return found


def saved(folder: StageFolder, part: str) -> dict[str, np.ndarray]:
    """One part ('backbone' or 'state') of a stage's newest checkpoint, flat, by path."""
    step = steps_in(folder.checkpoints)[-1]
    tree = checkpoints.restore_subtree(folder.checkpoints, step, part)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
