"""The paper's linear probe: SGD on frozen features of ever new views of the training images.

As the authors' code has it (`linear-eval-*.py`): 5,000 steps at batch 512, rate 30, momentum 0.9,
no decay, two tenfold drops, weights from N(0, 0.01^2), features as they are. Where that code chose
the step by validation and read the test score of every step beside it, no test data comes here.

Rates, decays and seeds are trained side by side on the same features, which are nearly all of the
cost.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hpt_jax.config import Finetune, LinearSGD
from hpt_jax.errors import UserError
from hpt_jax.evaluate.metrics import score
from hpt_jax.evaluate.selection import Best, Selection

MOMENTUM = 0.9
WEIGHT_STD = 0.01
# The default precision of accelerators would lose what a rate of 30 amplifies.
_EXACT = jax.lax.Precision.HIGHEST

Probe = dict[str, Any]  # {'weights': [d, classes], 'bias': [classes]}


def drop(settings: LinearSGD | Finetune, step: int, steps: int) -> float:
    """The factor of the rate at step `step`, from 0: it falls tenfold after each of the drops."""
    return 0.1 ** sum(step >= round(share * steps) for share in settings.drops)


def train(
    batches: Iterable[tuple[Any, np.ndarray]],
    val_features: np.ndarray,
    val_labels: np.ndarray,
    classes: int,
    metric: str,
    settings: LinearSGD,
    seed: int,
) -> list[tuple[Probe, Selection]]:
    """Trains all probes at once and keeps, of each seed, the best weights on validation.

    Args:
      batches: for each step (features f32[b, d] of augmented training images, their labels i32[b]
        or u8[b, classes]); several labels an image are trained by binary cross-entropy.
      val_features: f32[n, d] of the evaluation view.
      val_labels: i32[n] or u8[n, classes].
      classes: number of columns of a probe.
      metric: 'top1' or 'macro_auroc'.
      settings: steps, rates, decays, seeds, drops and how often validation is scored.
      seed: of the pretraining; joins the probes' own.

    Returns:
      For each of the probe's seeds its weights and how they were chosen: rate, decay and step.

    Raises:
      UserError: the loss of every probe of a seed is no longer finite.
    """
    grid = list(itertools.product(settings.seeds, settings.learning_rates, settings.weight_decays))
    starts = [init((seed, own), val_features.shape[1], classes) for own, _, _ in grid]
    probes = {
        "weights": jnp.stack([one["weights"].T for one in starts]),  # [k, classes, d]
        "bias": jnp.stack([one["bias"] for one in starts]),
    }
    state = (probes, jax.tree.map(jnp.zeros_like, probes))
    rates, decays = (np.array([one[i] for one in grid], np.float32) for i in (1, 2))
    moments = [Best(settings.steps) for _ in grid]
    kept = list(starts)
    for done, (features, labels) in enumerate(batches, 1):
        rate = rates * np.float32(drop(settings, done - 1, settings.steps))
        state, losses = _update(state, jnp.asarray(features), jnp.asarray(labels), rate, decays)
        if done % settings.eval_every and done != settings.steps:
            continue
        now = jax.device_get(state[0])
        for number, loss in enumerate(np.asarray(losses)):
            probe = {"weights": now["weights"][number].T, "bias": now["bias"][number]}
            found = scores(probe, val_features)
            # The loss is of the weights before this step.
            if not (np.isfinite(loss) and np.isfinite(found).all()):
                continue
            value, _ = score(metric, found, val_labels)
            if moments[number].is_better(done, value):
                kept[number] = probe
    per_seed = len(grid) // len(settings.seeds)
    return [
        _best_of(range(first, first + per_seed), grid, moments, kept, metric)
        for first in range(0, len(grid), per_seed)
    ]


def _best_of(
    numbers: range,
    grid: list[tuple[int, float, float]],
    moments: list[Best],
    kept: list[Probe],
    metric: str,
) -> tuple[Probe, Selection]:
    """The best of the probes of one seed; of equally good ones the first."""
    best = max(numbers, key=lambda number: moments[number].value)
    if not moments[best].step:
        raise UserError(
            "linear_sgd.learning_rates",
            tuple(grid[number][1] for number in numbers),
            "a finite loss, but the probe diverged",
            "Lower them.",
        )
    settings = [{"learning_rate": grid[n][1], "weight_decay": grid[n][2]} for n in numbers]
    candidates = tuple(
        {**one, "step": moments[n].step, "value": max(moments[n].value, 0.0)}
        for one, n in zip(settings, numbers, strict=True)
    )
    chosen = {**settings[best - numbers.start], "step": moments[best].step}
    curve = tuple(moments[best].curve)
    return kept[best], Selection(chosen, metric, moments[best].value, candidates, curve)


def init(seed: int | tuple[int, ...], features: int, classes: int) -> Probe:
    """Weights [features, classes] from N(0, 0.01^2), and a bias [classes] of zero."""
    drawn = np.random.default_rng(seed).standard_normal((features, classes))
    return {
        "weights": jnp.asarray(WEIGHT_STD * drawn, jnp.float32),
        "bias": jnp.zeros(classes, jnp.float32),
    }


def scores(probe: Probe, features: np.ndarray) -> np.ndarray:
    """Logits [n, classes] of features [n, d]."""
    return features @ np.asarray(probe["weights"]) + np.asarray(probe["bias"])


def loss_of(probe: Probe, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of labels i32[n], or mean binary one of u8[n, classes]."""
    logits = jnp.matmul(features, probe["weights"], precision=_EXACT) + probe["bias"]
    if labels.ndim == 2:
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _losses(probes: Probe, features: jax.Array, labels: jax.Array) -> jax.Array:
    """`loss_of` each of k stacked probes: f32[k]."""
    weights, bias = probes["weights"], probes["bias"]
    # One product for all, in the order in which neither it nor its gradient has to be transposed.
    logits = jnp.matmul(weights.reshape(-1, weights.shape[-1]), features.T, precision=_EXACT)
    logits = logits.reshape(*bias.shape, -1) + bias[:, :, None]  # [k, classes, n]
    if labels.ndim == 2:
        return optax.sigmoid_binary_cross_entropy(logits, labels.T).mean((1, 2))
    labels = jnp.broadcast_to(labels, (len(bias), len(labels)))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=1)
    return losses.mean(1)


@functools.partial(jax.jit, donate_argnums=0)
def _update(
    state: tuple[Probe, Probe], features: jax.Array, labels: jax.Array, rates: Any, decays: Any
) -> tuple[tuple[Probe, Probe], jax.Array]:
    """(probes, momenta), features, labels, rates [k], decays [k] -> after one step, and losses."""

    def each(factors: jax.Array, leaf: jax.Array) -> jax.Array:
        return factors.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf

    probes, momenta = state
    losses, pull = jax.vjp(lambda probes: _losses(probes, features, labels), probes)
    (gradients,) = pull(jnp.ones_like(losses))
    momenta = jax.tree.map(
        lambda m, g, p: MOMENTUM * m + g + each(decays, p), momenta, gradients, probes
    )
    probes = jax.tree.map(lambda p, m: p - each(rates, m), probes, momenta)
    return (probes, momenta), losses
