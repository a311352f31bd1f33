"""How a stage is doing, in plain words, without labels: pure functions of its curves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from hpt_jax import plan

Rows = Sequence[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the curves are judged against."""

    queue_size: int
    batch_size: int
    images: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the curves say up to a step."""

    step: int
    level: str
    text: str


def facts(stage: plan.Stage, images: int) -> Facts:
    config = stage.config
    return Facts(config.moco.queue_size, config.batch_size, images, stage.steps)


def judge(known: Facts, metrics: Rows, measures: Rows) -> Verdict:
    step = int(max(rows[-1]["step"] for rows in (metrics, measures) if rows))
    chance = math.log(known.queue_size + 1)
    text = f"step {step}"
    if metrics:
        last = metrics[-1]
        text += f", loss {last['loss']:.2f} (chance {chance:.2f})"
    if measures:
        text += ", " + ", ".join(f"{k} {v:.4g}" for k, v in measures[-1].items() if k != "step")
    return Verdict(step, "healthy", text)


def as_json(found: Verdict) -> dict[str, Any]:
    """The content of `health.json`."""
    return dataclasses.asdict(found) | {"history": [], "recommendation": ""}
