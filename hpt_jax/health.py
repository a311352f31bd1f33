"""How a stage is doing, in plain words and without labels: pure functions of its curves.

docs/health.md says what each number means; `benchmarks/broken_runs.py` shows what the limits see.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from hpt_jax import plan

Rows = Sequence[dict[str, float]]
LEVELS = ("healthy", "watch", "alarm")

# Limits, each far from what healthy runs show.
COLLAPSED_SPREAD = 0.15  # of embeddings; healthy runs have 0.2 to 1
STALE_GAP = 0.3  # of `queue_gap` times the temperature; healthy runs have at most 0.2
TOO_EASY = 0.97  # share of positives that beat all negatives
TOO_ALIKE = 0.97  # of `retrieval` before training; healthy runs have at most 0.5
ABOVE_CHANCE = 0.5  # nats
LEARNED = 0.02  # nats below chance
PATIENCE = 20, 100  # steps until there is something to judge: a quarter of the stage, within these
FLAT_UNIFORMITY = -0.05  # above: all images are alike to the features
LOST_RANK = 0.4  # share of the rank before training
LOST_RETRIEVAL = 0.02  # below that before training; healthy runs are hardly ever
OWN_KEYS = 2.0  # of an image among its own negatives


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the curves are judged against.

    Attributes:
      queue_size: number of negatives.
      batch_size: global batch, in examples.
      temperature: of the logits.
      masked: whether an image's own keys are left out of its negatives.
      bn_groups: batch-norm groups of the global batch.
      steps: of the stage.
      warmup_steps: of the learning rate.
    """

    queue_size: int
    batch_size: int
    temperature: float
    masked: bool
    bn_groups: int
    steps: int
    warmup_steps: int

    @property
    def patience(self) -> float:
        """Steps until there is something to judge."""
        least, most = PATIENCE
        return min(most, max(least, self.steps / 4))

    def chance(self, row: dict[str, float]) -> float:
        """The loss where all keys are equally near: ln(K + 1), masked keys not counted."""
        masked = row["own_keys"] if self.masked else 0.0
        return math.log(self.queue_size - min(masked, self.queue_size) + 1)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
      level: 'watch' or 'alarm'.
      text: what.
      advice: what to do.
    """

    level: str
    text: str
    advice: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the curves say up to a step.

    Attributes:
      step: the last that anything is known of.
      level: the worst of the findings', or 'healthy'.
      text: in one line.
      findings: the worst first.
    """

    step: int
    level: str
    text: str
    findings: tuple[Finding, ...]


def facts(stage: plan.Stage) -> Facts:
    """What the curves of a stage are judged against."""
    config, moco = stage.config, stage.config.moco
    return Facts(
        queue_size=moco.queue_size,
        batch_size=config.batch_size,
        temperature=moco.temperature,
        masked=moco.mask_own_keys,
        bn_groups=config.model.bn_groups,
        steps=stage.steps,
        warmup_steps=config.optimizer.warmup_steps,
    )


def judge(known: Facts, metrics: Rows, measures: Rows) -> Verdict:
    """The verdict on a stage.

    Args:
      known: of the stage.
      metrics: rows of its `metrics.csv`, oldest first; none where it is not trained by MoCo.
      measures: rows of its `measures.csv`, oldest first; of the two at least one has a row.
    """
    findings = [check(known, metrics, measures) for check in _CHECKS]
    found = sorted((one for one in findings if one), key=lambda one: -LEVELS.index(one.level))
    level = found[0].level if found else LEVELS[0]
    step = max(int(rows[-1]["step"]) for rows in (metrics, measures) if rows)
    says = "; ".join(one.text for one in found if one.level == level)
    summary = _summary(known, metrics, measures)
    judged = f": {level}{f' ({says})' if says else ''}" if metrics or found else ""
    text = f"{summary}{judged}"
    return Verdict(step, level, text, tuple(found))


def history(known: Facts, metrics: Rows, measures: Rows) -> list[Verdict]:
    """The verdict after each row of measures, oldest first."""
    return [
        judge(
            known,
            [row for row in metrics if row["step"] <= last["step"]],
            [row for row in measures if row["step"] <= last["step"]],
        )
        for last in measures
    ]


def as_json(now: Verdict, past: Sequence[Verdict], advice: str = "") -> dict[str, Any]:
    """The content of `health.json`.

    Args:
      now: the verdict.
      past: those before it, as `history` gives them.
      advice: what else there is to advise.
    """
    return {
        **_said(now),
        "history": [_said(one) for one in past],
        "recommendation": " ".join(
            [*(one.advice for one in now.findings), *filter(None, [advice])]
        ),
    }


def _said(one: Verdict) -> dict[str, Any]:
    return {"step": one.step, "level": one.level, "text": one.text}


def _summary(known: Facts, metrics: Rows, measures: Rows) -> str:
    parts = []
    if metrics:
        last = metrics[-1]
        parts.append("queue full" if last["queue_fill"] == 1 else _filling(last["queue_fill"]))
        parts.append(f"loss {last['loss']:.2f}, {_against_chance(known, last)}")
    if len(measures) > 1:
        parts.append(_features(measures))
    elif not metrics:
        parts.append(f"before training the features' rank is {measures[0]['rankme']:.0f}")
    return ", ".join(parts)


def _filling(share: float) -> str:
    return f"queue {100 * share:.0f} % full (until it is, the loss says little)"


def _against_chance(known: Facts, row: dict[str, float]) -> str:
    distance = row["loss"] - known.chance(row)
    where = "at" if abs(distance) < LEARNED else "below" if distance < 0 else "above"
    return f"{where} chance ({known.chance(row):.2f})"


def _features(measures: Rows) -> str:
    first, last = measures[0], measures[-1]
    if first["step"]:
        return f"features of rank {last['rankme']:.0f}"
    change = last["uniformity"] - first["uniformity"]
    moves = "spreading" if change < -0.02 else "drawing together" if change > 0.02 else "steady"
    ranks = f"rank {last['rankme']:.0f}, {first['rankme']:.0f} before"
    return f"features {moves} ({ranks})"


def _full(metrics: Rows) -> list[dict[str, float]]:
    """The rows of intervals that saw nothing but a full queue."""
    return [row for row in metrics if row["queue_fill"] == 1]


def _settled(known: Facts, metrics: Rows) -> list[dict[str, float]]:
    """The last rows, once the loss has had time; at first it rises, as real keys come in."""
    full = _full(metrics)
    began = max(full[0]["step"], known.warmup_steps) if full else math.inf
    if not full or full[-1]["step"] - began < known.patience:
        return []
    return [row for row in full[1:] if row["step"] > full[-1]["step"] - known.patience]


def _has_begun(known: Facts, metrics: Rows, measures: Rows) -> bool:
    """Whether what does not depend on the queue can be judged."""
    rows = metrics or measures
    return bool(_full(metrics) or (rows and rows[-1]["step"] >= known.patience))


def _collapsed(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    if not metrics or not _has_begun(known, metrics, measures):
        return None
    spread = metrics[-1]["embedding_std"]
    if spread >= COLLAPSED_SPREAD:
        return None
    text = f"the embeddings of all images are nearly alike (spread {spread:.2f}"
    advice = (
        "Embeddings collapse where the learning rate or the momentum of the key encoder is far off "
        "(usual: 0.03 at batch 256, 0.99 to 0.999), or the temperature is (0.07 to 0.2), or all "
        "images look the same."
    )
    return Finding("alarm", f"{text} of 1)", advice)


def _queue_unlike(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    full = _full(metrics)
    if not full or full[-1]["queue_gap"] * known.temperature < STALE_GAP:
        return None
    gap = full[-1]["queue_gap"]
    advice = (
        "Either the key encoder changes too fast for old keys (moco.momentum nearer to 1, a "
        "shorter moco.queue_size), or keys of one batch give themselves away (model.bn_groups of "
        "at least 2)."
    )
    text = f"the queue's keys are {gap:.1f} nats easier to tell apart than fresh ones: it is stale"
    return Finding("alarm", text, advice)


def _queue_empty(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    if len(metrics) < 3 or metrics[-1]["queue_fill"] == 1:
        return None
    # A row is the mean over its interval, so that it lags behind by up to two of them.
    since = metrics[-3]["step"]
    if since * known.batch_size < known.queue_size:
        return None
    text = f"the queue is {100 * metrics[-1]['queue_fill']:.0f} % full and should be full by now"
    return Finding("alarm", text, "Keys do not enter the queue: this is a mistake in the method.")


def _queue_too_long(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    keys = known.steps * known.batch_size
    if not metrics or keys >= known.queue_size:
        return None
    text = f"the queue will not be full by the end: {keys:,} keys of {known.queue_size:,}"
    return Finding("watch", text, "Set a shorter moco.queue_size, or more steps.")


def _above_chance(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    settled = _settled(known, metrics)
    if not settled:
        return None
    above = settled[-1]["loss"] - known.chance(settled[-1])
    if above < ABOVE_CHANCE:
        return None
    text = f"the loss is {above:.1f} nats worse than chance"
    advice = "Lower optimizer.learning_rate, or set optimizer.warmup_steps."
    return Finding("alarm", text, advice)


def _not_learning(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    settled = _settled(known, metrics)
    if not settled or min(row["loss"] - known.chance(row) for row in settled) < -LEARNED:
        return None
    text = f"the loss was no better than chance in the last {known.patience:.0f} steps"
    advice = "Look at views.png: can a person tell which two views are of one image?"
    return Finding("alarm", text, advice)


def _too_easy(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    full = _full(metrics)
    if not full or full[-1]["accuracy"] < TOO_EASY:
        return None
    text = f"{100 * full[-1]['accuracy']:.0f} % of the images are found among all keys: too easy"
    advice = "Stronger augmentation or a longer queue leaves something to learn."
    return Finding("watch", text, advice)


def _features_alike(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    text = _alike(known, metrics, measures)
    if not text:
        return None
    # A network that begins at random weights may collapse for some steps, and come back.
    earlier = [row for row in metrics if row["step"] <= measures[-2]["step"]]
    level = "alarm" if _alike(known, earlier, measures[:-1]) else "watch"
    advice = "Look at the images: are they different? Else lower optimizer.learning_rate."
    return Finding(level, text, advice)


def _alike(known: Facts, metrics: Rows, measures: Rows) -> str:
    if len(measures) < 2 or not _has_begun(known, metrics, measures):
        return ""
    first, last = measures[0], measures[-1]
    if last["uniformity"] > FLAT_UNIFORMITY:
        return f"all images are alike to the features (uniformity {last['uniformity']:.3f} of 0)"
    if not first["step"] and last["rankme"] < LOST_RANK * first["rankme"]:
        return f"the features' rank fell from {first['rankme']:.0f} to {last['rankme']:.0f}"
    return ""


def _views_alike(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    if not measures or measures[0]["step"] or measures[0]["retrieval"] < TOO_ALIKE:
        return None
    text = "the two views of an image are found before anything is learned: they are too alike"
    return Finding("watch", text, "Look at views.png: stronger augmentation leaves more to learn.")


def _forgetting(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    if not measures or measures[0]["step"] or not _has_begun(known, metrics, measures):
        return None
    before, now = (measures[place]["retrieval"] for place in (0, -1))
    if now >= before - LOST_RETRIEVAL:
        return None
    text = f"views are found again less well than before (retrieval {now:.2f}, {before:.2f} before)"
    advice = (
        "Some of what it started from is lost: lower optimizer.learning_rate, and look at "
        "moco.momentum (usual: 0.99 to 0.999) and moco.temperature (0.07 to 0.2)."
    )
    return Finding("watch", text, advice)


def _one_group(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    if known.bn_groups > 1 or not metrics:
        return None
    text = "one batch-norm group: a query may know its key by their common statistics"
    return Finding("watch", text, "Set model.bn_groups to 2 or more.")


def _own_keys(known: Facts, metrics: Rows, measures: Rows) -> Finding | None:
    if known.masked or not metrics or metrics[-1]["own_keys"] < OWN_KEYS:
        return None
    text = f"each image meets {metrics[-1]['own_keys']:.1f} of its own keys as negatives"
    advice = "Set moco.mask_own_keys, or a shorter moco.queue_size."
    return Finding("watch", text, advice)


_CHECKS = (
    _collapsed,
    _features_alike,
    _queue_unlike,
    _queue_empty,
    _queue_too_long,
    _above_chance,
    _not_learning,
    _too_easy,
    _views_alike,
    _forgetting,
    _one_group,
    _own_keys,
)
