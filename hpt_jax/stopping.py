"""Whether more steps are worth their time, told without labels: by how well views are found again.

docs/stopping.md compares what is said with a labelled probe (`benchmarks/stopping.py`).
"""

from __future__ import annotations

import math

from hpt_jax import plan
from hpt_jax.health import Rows

GAIN = 0.02  # of `retrieval` while the steps grow fourfold; with less it has levelled off
PASSES = 10  # over the images, before which nothing is said


def advice(stage: plan.Stage, images: int, measures: Rows) -> str:
    """When to stop, or to go on; '' where there is nothing to say yet.

    Args:
      stage: that is trained.
      images: that it trains on.
      measures: rows of its `measures.csv`, oldest first.
    """
    last, anytime = int(measures[-1]["step"]), bool(stage.trunk)
    # The fall of the rate alone raises retrieval, which says nothing of more steps.
    steady = [row for row in measures if not anytime or row["step"] <= stage.branch_step]
    gained = gain(steady)
    if gained is None or steady[-1]["step"] * stage.config.batch_size < PASSES * images:
        return ""
    told = f"Retrieval rose by {100 * gained:.1f} points while the steps grew fourfold"
    if gained < GAIN:
        if last >= stage.steps:
            return f"{told}: it has levelled off, and more steps are unlikely to help much."
        steady_share = 1 - stage.config.optimizer.decay
        enough = math.ceil(last / steady_share) if anytime and steady_share else stage.steps
        if enough < stage.steps:
            return (
                f"{told}: it has levelled off. To end here, stop and set the steps to {enough:,}."
            )
    elif last >= stage.steps:
        rest = f", and go on from step {stage.branch_step:,}" if anytime else ""
        return f"{told}: more steps are likely to help{rest}."
    return ""


def gain(measures: Rows) -> float | None:
    """What retrieval gained since a quarter of the steps; None where there was no look then.

    Over a single doubling it often rests, and rises again.

    Args:
      measures: rows of `measures.csv`, oldest first.
    """
    if not measures:
        return None
    now = measures[-1]
    before = [row for row in measures if 0 < row["step"] <= math.ceil(now["step"] / 4)]
    return now["retrieval"] - before[-1]["retrieval"] if before else None
