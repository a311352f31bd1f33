"""The paper's linear probe: SGD on frozen features of ever new views of the training images.

As the authors' code has it (`linear-eval-*.py`): 5,000 steps at batch 512, rate 30, momentum 0.9,
no decay, two tenfold drops, weights from N(0, 0.01^2), features as they are. Where that code chose
the step by validation and read the test score of every step beside it, here test is scored once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hpt_jax.config import LinearSGD
from hpt_jax.errors import UserError
from hpt_jax.evaluate.evaluations import Split, result
from hpt_jax.evaluate.linear import Selection
from hpt_jax.evaluate.metrics import score

MOMENTUM = 0.9
WEIGHT_STD = 0.01


def learning_rate(settings: LinearSGD, step: int) -> float:
    """The rate of step `step`, from 0: it falls tenfold after each share of the steps."""
    passed = sum(step >= round(share * settings.steps) for share in settings.drops)
    return settings.learning_rate * 0.1**passed


def train(
    batches: Iterable[tuple[Any, np.ndarray]],
    val: Split,
    test: Split,
    classes: int,
    metric: str,
    settings: LinearSGD,
    seed: int,
) -> dict[str, Any]:
    """Trains the probe, keeps the best weights on validation, and tests those once.

    The weights are taken from the second half of the steps, as in the authors' code; of equally
    good ones the earliest.

    Args:
      batches: for each step (features f32[b, d] of augmented training images, their labels i32[b]
        or u8[b, classes]); several labels an image are trained by binary cross-entropy.
      val: features of the evaluation view.
      test: the same; nothing is chosen by it.
      classes: number of columns of the probe.
      metric: 'top1' or 'macro_auroc'.
      settings: steps, rate, drops and how often validation is scored.
      seed: of the weights it starts from.

    Returns:
      The result, as `evaluations.result` has it; the curve is that of validation over steps.

    Raises:
      UserError: the loss is no longer finite.
    """
    probe = _init(seed, val.features.shape[1], classes)
    state = (probe, jax.tree.map(jnp.zeros_like, probe))
    update = _update(val.labels.ndim == 2)
    curve: list[tuple[float, float]] = []
    best, best_value, best_step = probe, -math.inf, 0
    for done, (features, labels) in enumerate(batches, 1):
        rate = np.float32(learning_rate(settings, done - 1))
        state, loss = update(state, jnp.asarray(features), jnp.asarray(labels), rate)
        if done % settings.eval_every and done != settings.steps:
            continue
        if not math.isfinite(loss):
            raise UserError(
                "linear_sgd.learning_rate",
                settings.learning_rate,
                f"a finite loss, but the probe diverged before step {done}",
                "Lower it.",
            )
        weights = jax.device_get(state[0])
        value, _ = score(metric, _scores(weights, val.features), val.labels)
        curve.append((done, value))
        if 2 * done >= settings.steps and value > best_value:
            best, best_value, best_step = weights, value, done
    tested = score(metric, _scores(best, test.features), test.labels)
    return result(best_value, tested, Selection(best_step, metric, best_value, tuple(curve)))


Probe = dict[str, Any]  # {'weights': [d, classes], 'bias': [classes]}


def _init(seed: int, features: int, classes: int) -> Probe:
    drawn = np.random.default_rng(seed).standard_normal((features, classes))
    return {
        "weights": jnp.asarray(WEIGHT_STD * drawn, jnp.float32),
        "bias": jnp.zeros(classes, jnp.float32),
    }


def _scores(probe: Probe, features: np.ndarray) -> np.ndarray:
    return features @ probe["weights"] + probe["bias"]


@functools.cache
def _update(multi_label: bool) -> Callable[..., tuple[tuple[Probe, Probe], jax.Array]]:
    """((probe, momentum), features, labels, rate) -> the same after one step, and the loss."""

    def loss_of(probe: Probe, features: jax.Array, labels: jax.Array) -> jax.Array:
        # The default precision of accelerators would lose what a rate of 30 amplifies.
        exact = jax.lax.Precision.HIGHEST
        logits = jnp.matmul(features, probe["weights"], precision=exact) + probe["bias"]
        if multi_label:
            return optax.sigmoid_binary_cross_entropy(logits, labels).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(
        state: tuple[Probe, Probe], features: jax.Array, labels: jax.Array, rate: jax.Array
    ) -> tuple[tuple[Probe, Probe], jax.Array]:
        probe, momentum = state
        loss, gradient = jax.value_and_grad(loss_of)(probe, features, labels)
        momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, gradient)
        return (jax.tree.map(lambda p, m: p - rate * m, probe, momentum), momentum), loss

    return jax.jit(update, donate_argnums=0)
