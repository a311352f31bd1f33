"""The command that takes one step of a run again: `python -m hpt_jax.replay DIR/stages/ID STEP`.

A checkpoint and the number of the step are all it needs, since a batch is a function of seed and
step. It writes nothing but `replay-STEP.json` and a contact sheet `replay-STEP.png` beside the
stage's other files.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hpt_jax import (
    checkpoints,
    handover,
    mirror,
    parallel,
    pictures,
    plan,
    remote,
    run,
    training,
)
from hpt_jax.config import SHARED
from hpt_jax.errors import UserError
from hpt_jax.library import Library
from hpt_jax.report import results
from hpt_jax.telemetry.display import Display
from hpt_jax.workdir import StageFolder, stage_folder, write_json

SHOWN = 10  # steps before it whose metrics are printed


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m hpt_jax.replay", description=__doc__)
    parser.add_argument("stage", help="a stage's folder, DIR/stages/ID")
    parser.add_argument("step", type=int, help="as metrics.csv counts: the first one is 1")
    asked = parser.parse_args(arguments)
    try:
        replay(_here(asked.stage), asked.step, Display())
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    return 0


def _here(stage: str) -> Path:
    """The folder of a stage; of one at an address that in the mirror of its workdir."""
    workdir, _, name = stage.rstrip("/").rpartition("/stages/")
    return mirror.home_of(workdir) / "stages" / name if remote.is_address(stage) else Path(stage)


def replay(path: Path, step: int, display: Display) -> dict[str, Any]:
    """Takes the steps from the last checkpoint before `step` to it, and looks at it.

    Args:
      path: the stage's folder.
      step: from 1.
      display: where its metrics are told.

    Returns:
      The content of `replay-STEP.json`: 'step'; 'metrics', of it and of those before it; 'bad', the
      names of what is not finite after it; 'images', the files of its batch in the order of the
      contact sheet, which shows 'images_a_row', each as (query, key).

    Raises:
      UserError: there is no such stage or step.
    """
    path = path.resolve()
    folder, root = StageFolder(path), path.parent.parent
    stage, asked = _find(folder, root, display)
    options = asked.config.parallel
    devices = parallel.make_devices(options.devices, options.map, options.deterministic)
    data = Library(asked.config.data_dir, devices, display).of_stage(stage)
    if data is None or stage.config.trainable == "nothing":
        raise UserError("stage", str(path), "one that takes steps", "Choose another.")
    parts = training.Training(stage, data, devices)
    if not 1 <= step <= parts.steps:
        raise UserError("step", step, f"a step from 1 to {parts.steps}", "metrics.csv counts so.")

    start = checkpoints.newest_whole(folder.checkpoints, before=step) or 0
    if start:
        like = parts.saved_like()
        carry = parts.restored(checkpoints.restore(folder.checkpoints, start, like))
    else:
        carry = parts.initial(handover.initial_backbone(stage, root, data, devices)[0])
    display.line(f"{stage.id}: replays the steps {start + 1} to {step}")
    carry, history = _take(parts, carry, start, step)
    for row in history:
        display.line("  ".join(f"{name} {value:.6g}" for name, value in row.items()))
    bad = _not_finite({**history[-1], "backbone": carry.state.backbone})
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    display.line(f"not finite after step {step}: {shown or 'nothing'}")

    names = data.dataset.images.name_of
    rows = parts.rows(step - 1)
    found = {
        "step": step,
        "metrics": [
            {k: v if np.isfinite(v) else str(v) for k, v in row.items()} for row in history
        ],
        "bad": bad,
        "images": [names(int(data.store.index[row])) for row in rows],
        "images_a_row": pictures.across(stage.config.batch_size),
    }
    written = path / f"replay-{step}.json"
    if stage.trains:
        sheet = written.with_suffix(".png")
        pictures.write_contact_sheet(sheet, parts, carry.state.rng, step - 1)
        display.line(f"its images, as query and key saw them: {sheet}")
    write_json(written, found)
    display.line(f"their files: {written}")
    return found


def _take(
    parts: training.Training, carry: training.Carry, start: int, stop: int
) -> tuple[training.Carry, list[dict[str, float]]]:
    """Goes from after step `start` to after `stop`; with the metrics of the last ones, by step."""
    history: list[dict[str, float]] = []
    with contextlib.closing(parts.batches(start, stop)) as batches:
        for number, batch in enumerate(batches, start + 1):
            carry, metrics = parts.take(carry, batch, number - 1)
            history.append({"step": number, **{k: float(v) for k, v in metrics.items()}})
    return carry, history[-SHOWN - 1 :]


def _find(folder: StageFolder, root: Path, display: Display) -> tuple[plan.Stage, plan.Plan]:
    """A stage, and a plan that has it."""
    told = [
        one
        for one in results.plans(root, display.line)
        if any(folder.path.name in each["chain"] for each in one["runs"])
    ]
    for one in told:
        config = one["config"]
        # The resolved config is one of the template that every other becomes.
        shared = config.pop("shared", {})
        config |= {name: shared[name] for name in SHARED if name in shared}
        asked = run.make_plan(config | {"template": "stages"})
        for stage in asked.stages:
            if stage_folder(root, stage.id).path == folder.path:
                return stage, asked
    if told:
        expected = "the images and weights that it was begun with"
        raise UserError("stage", str(folder.path), expected, "Put them back where they were.")
    expected = "the folder of a stage that a plan of its workdir has"
    raise UserError("stage", str(folder.path), expected, "Write DIR/stages/ID.")


def _not_finite(tree: Any) -> list[str]:
    """The names of leaves that hold an infinite number or none at all."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not np.isfinite(np.asarray(leaf)).all()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
