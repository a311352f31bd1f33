"""Fine-tuning: all weights and a new linear head, on labelled images.

As the authors' code has it (`finetune-*.py`): batches of 256 in batch-norm groups of 64, SGD with
momentum 0.9 and no decay, the head's rate a hundred times the backbone's, two tenfold drops, random
crops and flips; rates and schedules in a small grid. Where that code kept the best of the grid on
test, and counted the drops of one schedule in parts of a step, here validation chooses and drops
are where they are said to be.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from hpt_jax.config import Finetune
from hpt_jax.data.loader import Plan
from hpt_jax.errors import UserError
from hpt_jax.evaluate import features, linear_sgd
from hpt_jax.evaluate.metrics import score
from hpt_jax.evaluate.selection import Best, Selection
from hpt_jax.evaluate.subject import Subject
from hpt_jax.models.backbone import Backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import AXIS, Devices


@struct.dataclass
class Classifier:
    """A backbone and a linear head.

    Attributes:
      backbone: as in pretraining.
      head: {'weights': [d, classes], 'bias': [classes]}.
    """

    backbone: Backbone
    head: Any


def schedules(settings: Finetune, images: int) -> tuple[int, ...]:
    """The numbers of steps to choose from, for so many labelled images."""
    epoch = -(-images // settings.batch_size)
    return tuple(dict.fromkeys((*settings.steps, *(epoch * one for one in settings.epochs))))


def grid(settings: Finetune, images: int) -> tuple[tuple[float, int], ...]:
    """(learning rate, steps) of every candidate."""
    lengths = schedules(settings, images)
    return tuple((rate, steps) for steps in lengths for rate in settings.learning_rates)


def tune(
    subject: Subject, rows: np.ndarray, settings: Finetune, seed: int, tick: Callable[[], None]
) -> tuple[Classifier, Selection]:
    """Trains every candidate and keeps the best weights on validation.

    Args:
      subject: the backbone to start from, and images of which those of 'val' are looked at.
      rows: int64[n], the labelled images to train on, as rows of the store.
      settings: of the training.
      seed: of head, order, crops and flips.
      tick: called after each step.

    Returns:
      The best classifier and how it was chosen: rate, number of steps, step.

    Raises:
      UserError: every candidate diverged.
    """
    best: tuple[Classifier, Best] | None = None
    chosen: dict[str, float] = {}
    candidates = []
    for rate, steps in grid(settings, len(rows)):
        classifier, moment = _train(subject, rows, settings, rate, steps, seed, tick)
        one = {"learning_rate": rate, "steps": steps, "step": moment.step}
        candidates.append({**one, "value": max(moment.value, 0.0)})
        if moment.step and (best is None or moment.value > best[1].value):
            best, chosen = (classifier, moment), one
    if best is None:
        raise UserError(
            "finetune.learning_rates",
            settings.learning_rates,
            "a finite loss, but fine-tuning diverged with each",
            "Lower them.",
        )
    classifier, moment = best
    curve = tuple(moment.curve)
    return classifier, Selection(chosen, subject.metric, moment.value, tuple(candidates), curve)


def scores(subject: Subject, classifier: Classifier, rows: np.ndarray) -> np.ndarray:
    """Logits f32[n, classes] of the evaluation view of `rows`."""
    return linear_sgd.scores(classifier.head, subject.features_of(classifier.backbone, rows))


def _train(
    subject: Subject,
    rows: np.ndarray,
    settings: Finetune,
    rate: float,
    steps: int,
    seed: int,
    tick: Callable[[], None],
) -> tuple[Classifier, Best]:
    """One candidate: its best weights on validation; a diverged one has no best step."""
    feed, val = subject.feed, subject.splits["val"]
    model = subject.model.clone(layout=feed.devices.group_layout(settings.bn_groups))
    head = linear_sgd.init(seed, model.features, len(subject.classes))
    classifier = Classifier(subject.backbone, head)
    state = jax.tree.map(jnp.copy, (classifier, _no_momentum(classifier)))  # donated
    state = feed.devices.replicate(state)
    take_step = _compiled(model, settings.weight_decay, settings.head_multiplier, feed.devices)
    moment = Best(steps)
    for step, batch in enumerate(_batches(subject, rows, settings, steps, seed)):
        now = np.float32(rate * linear_sgd.drop(settings, step, steps))
        state, loss = take_step(state, batch, now)
        tick()
        done = step + 1
        if done % settings.eval_every and done != steps:
            continue
        found = scores(subject, state[0], val)
        # The loss is of the weights before this step.
        if not (np.isfinite(loss) and np.isfinite(found).all()):
            break
        value, _ = score(subject.metric, found, subject.labels[val])
        if moment.is_better(done, value):
            classifier = jax.device_get(state[0])
    return classifier, moment


def _batches(
    subject: Subject, rows: np.ndarray, settings: Finetune, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """'image', 'flip' and 'label' of each step, cut over the devices."""

    def plan_batch(step: int) -> Plan:
        shown = features.shown_rows(settings, seed, step, rows)
        views = features.plan_views(settings, seed, step, rows, subject.feed)
        return {**views, "label": subject.labels[shown]}

    dtype = jnp.promote_types(jnp.float32, subject.model.dtype)
    return subject.feed.batches(plan_batch, range(steps), subject.image_size, dtype)


def _no_momentum(classifier: Classifier) -> Any:
    return jax.tree.map(jnp.zeros_like, _parameters(classifier))


def _parameters(classifier: Classifier) -> dict[str, Any]:
    return {"backbone": classifier.backbone.params, "head": classifier.head}


@functools.cache
def _compiled(
    model: ResNet, weight_decay: float, head_multiplier: float, devices: Devices
) -> Callable[..., Any]:
    """((classifier, momentum), batch, rate) -> the same after one step, and the loss."""
    dtype = jnp.promote_types(jnp.float32, model.dtype)

    def step(
        state: tuple[Classifier, Any], batch: dict[str, jax.Array], rate: jax.Array
    ) -> tuple[tuple[Classifier, Any], jax.Array]:
        classifier, momentum = state
        backbone = classifier.backbone
        images = features.prepare(batch["image"], batch["flip"], backbone, dtype)

        def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, Any]:
            variables = {"params": params["backbone"], "batch_stats": backbone.batch_stats}
            found, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
            loss = linear_sgd.loss_of(params["head"], found, batch["label"])
            return loss, updates["batch_stats"]

        params = _parameters(classifier)
        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        loss, batch_stats, grads = lax.pmean((loss, batch_stats, grads), AXIS)
        momentum = jax.tree.map(
            lambda m, g, p: linear_sgd.MOMENTUM * m + g + weight_decay * p, momentum, grads, params
        )
        rates = {"backbone": rate, "head": rate * head_multiplier}
        params = {
            part: jax.tree.map(lambda p, m, r=rates[part]: p - r * m, params[part], momentum[part])
            for part in params
        }
        backbone = dataclasses.replace(backbone, params=params["backbone"], batch_stats=batch_stats)
        return (Classifier(backbone, params["head"]), momentum), loss

    return devices.map(step, (False, True, False), sharded_out=False, donate=True)
