"""What saving and checking cost a stage's loop.

    python benchmarks/saving.py [resnet10 | resnet50]

The same steps of one stage in turn: as they are, with one save after the first of them, and without
the check that all numbers are finite. The cost of a save is the difference, in seconds: what blocks
the loop, and what writing, hashing and flushing in the background take from it. As a share it is
told for the default `save_every_minutes`. Medians of alternating rounds in one process; results
stand in docs/reliability.md.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hpt_jax import checkpoints, config, parallel, plan, training
from hpt_jax.library import Library
from hpt_jax.models.backbone import init_backbone
from hpt_jax.telemetry.display import Display

ROUNDS = 7
STAGES = {  # and the steps of a round, which must take longer than a save
    "resnet10": (
        config.Stage(
            batch_size=128,
            image_size=32,
            model=config.Model("resnet10", 16, "small", 2, 4),
            moco=config.MoCo(queue_size=4096),
        ),
        40,
    ),
    "resnet50": (config.Stage(batch_size=16, image_size=64), 12),
}


def make_parts(stage: config.Stage, root: Path) -> training.Training:
    """The stage's loop on 256 images of noise."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for index in range(256):
        pixels = rng.integers(0, 256, (72, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    stage = dataclasses.replace(stage, dataset="folder:images", steps=10**6)
    planned = plan.Stage("target", "target-0", stage, 0, None, "f", "random")
    devices = parallel.make_devices(1)
    data = Library(str(root), devices, Display()).of_stage(planned)
    assert data is not None
    return training.Training(planned, data, devices)


def seconds(
    parts: training.Training,
    carry: training.Carry,
    take: Callable[..., Any],
    steps: int,
    saver: checkpoints.Checkpoints | None,
) -> tuple[training.Carry, float, float]:
    """The next carry, the seconds of some steps and of what blocked them, to save once or never."""
    began, blocked, previous = time.perf_counter(), 0.0, None
    for step, batch in enumerate(parts.batches(0, steps)):
        carry, metrics = take(carry, batch, np.float32(1e-3))
        jax.block_until_ready(previous)
        previous = metrics
        if step == 0 and saver is not None:
            since = time.perf_counter()
            saver.save(1, training.saved(carry))
            blocked = time.perf_counter() - since
    jax.block_until_ready(carry)
    took = time.perf_counter() - began
    if saver is not None:
        saver.wait()
    return carry, took, blocked


def main(name: str) -> None:
    """Prints what a save and the check cost."""
    stage, steps = STAGES[name]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        parts = make_parts(stage, root)
        data = parts.data
        backbone = init_backbone(
            parts.settings.model, jax.random.key(0), data.pixel_mean, data.pixel_std
        )
        carry = parts.initial(backbone)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(training.saved(carry)))
        compiled = training._compiled_step.__wrapped__
        key = (parts.method, parts.settings, parts.devices)
        plain_step = compiled(*key)
        programs = {"plain": plain_step, "saving": plain_step, "unchecked": compiled(*key)}
        with mock.patch.object(training, "all_finite", return_value=jnp.bool_(True)):
            carry, *_ = seconds(parts, carry, programs["unchecked"], 1, None)
        found: dict[str, list[float]] = {each: [] for each in programs}
        blocks = []
        for number in range(ROUNDS + 1):  # the first one compiles
            for each, take in programs.items():
                folder = root / f"{number}"
                saver = checkpoints.Checkpoints(folder) if each == "saving" else None
                carry, took, blocked = seconds(parts, carry, take, steps, saver)
                if saver is not None:
                    saver.close()
                if number:
                    found[each].append(took)
                    blocks += [blocked] if saver is not None else []
    plain = statistics.median(found["plain"])
    more = statistics.median(b - a for a, b in zip(found["plain"], found["saving"], strict=True))
    check = statistics.median(
        a / b for a, b in zip(found["plain"], found["unchecked"], strict=True)
    )
    interval = 60 * config.Config().save_every_minutes
    print(f"{name}: state of {size / 2**20:.0f} MiB, {plain / steps:.3f} s a step")
    print(
        f"a save: {statistics.median(blocks):.2f} s blocked, {more:.2f} s in all, "
        f"{100 * more / interval:.2f} % of the loop at one in {interval:.0f} s"
    )
    print(f"a step with the check, by one without: {check:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["resnet10"])
