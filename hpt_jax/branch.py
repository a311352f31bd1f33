"""The schedule 'anytime': a stage goes on from where another one has been the same so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpt_jax import checkpoints, plan
from hpt_jax.errors import UserError
from hpt_jax.shapes import LINEAGE
from hpt_jax.telemetry import writers
from hpt_jax.workdir import StageFolder, read_json, stage_folder


def branch(stage: plan.Stage, root: Path, line: Callable[[str], None]) -> None:
    """Gives a stage that is not begun the latest checkpoint that is its own as well as another's.

    Stages of one trunk take the same steps up to the `branch_step` of the shorter one, bit for bit:
    the result is that of a run from its first step.

    Args:
      stage: that is about to be trained; its lock is held.
      root: the workdir.
      line: told of what it goes on from.
    """
    folder = stage_folder(root, stage.id)
    if checkpoints.numbered(folder.checkpoints):
        return
    for step, other in shared(stage, root):
        try:  # rows first: a checkpoint counts on them
            writers.copy_rows(other.metrics, folder.metrics, step)
            writers.copy_rows(other.measures, folder.measures, step)
        except UserError:
            continue
        if checkpoints.copy(other.checkpoints, step, folder.checkpoints):
            line(f"{stage.id}: the same as {other.path.name} up to step {step}")
            return


def shared(stage: plan.Stage, root: Path) -> list[tuple[int, StageFolder]]:
    """The checkpoints of other stages that are a stage's own too, the latest first."""
    if not stage.trunk:
        return []
    found = []
    for path in (root / "stages").glob("*/lineage.json"):
        lineage, folder = read_json(path, LINEAGE), StageFolder(path.parent)
        of_other = (lineage or {}).get("branch")
        if of_other and of_other["trunk"] == stage.trunk and folder.path.name != stage.id:
            limit = min(of_other["step"], stage.branch_step)
            steps = checkpoints.numbered(folder.checkpoints)
            found += [(step, folder) for step in steps if 0 < step <= limit]
    return sorted(found, key=lambda one: (-one[0], one[1].path.name))
