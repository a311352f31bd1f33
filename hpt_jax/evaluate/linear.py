"""The fast linear probe: regularised softmax regression on cached frozen features.

The objective is sum_i CE(softmax(z_i W + b), y_i) + |W|^2 / (2 C) on standardised features z,
with the strength C chosen by the metric on validation. Where an image may have several labels, each
class has a logistic regression of its own. Nothing here ever takes test data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpt_jax.evaluate.metrics import score
from hpt_jax.evaluate.selection import Selection

# Strongest first. Aerial scenes (256 and 512 dimensions, 7 and 30 classes) peak at 0.1 and lose
# points on both sides; digits (128 to 2,048 dimensions) gain a point at most above 0.1.
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

# At 1e-4, rounding noise of 1e-6 in the features moves at most 2 of 1,400 predictions; at 1e-3 it
# moves up to 16, and 1e-5 takes up to 1.6 times as long.
_TOLERANCE = 1e-4
_MAX_ITERATIONS = 2000
# Below this many products a pass, one thread: a second one slowed the fit by a factor of six on a
# busy machine of two cores, and the number of cores would change the order of summation.
_ONE_THREAD_PRODUCTS = 1 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier of standardised features.

    Attributes:
      mean: float [d], subtracted from the features.
      scale: float [d], by which they are then divided.
      weights: float [d, classes].
      bias: float [classes]; the dtype's lowest number for a class without training examples.
    """

    mean: NDArray[np.floating]
    scale: NDArray[np.floating]
    weights: NDArray[np.floating]
    bias: NDArray[np.floating]


def fit(
    train_x: ArrayLike, train_y: ArrayLike, num_classes: int, regularization: float
) -> LinearProbe:
    """Train a probe to convergence; the same input gives the same probe.

    Args:
      train_x: float [n, d] features. float64 is solved in float64, all else in float32.
      train_y: int [n], labels in [0, num_classes), or zeros and ones [n, num_classes]; classes may
        be absent.
      num_classes: number of columns of the probe.
      regularization: C, the inverse strength as in scikit-learn: smaller is stronger.

    Raises:
      ValueError: shapes disagree, there is no example, a feature is not finite, or a label lies
        outside [0, num_classes).
    """
    x, y = np.asarray(train_x), np.asarray(train_y)
    if x.ndim != 2 or y.shape not in (x.shape[:1], (len(x), num_classes)) or not y.size:
        expected = f"train_x [n, d], train_y [n] or [n, {num_classes}], n > 0"
        raise ValueError(f"need {expected}: {x.shape=}, {y.shape=}")
    if y.min() < 0 or y.max() >= (num_classes if y.ndim == 1 else 2):
        raise ValueError(f"labels span {y.min()}..{y.max()}: {num_classes=}")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} feature values are not finite")
    dtype = np.result_type(x.dtype, np.float32)
    mean, scale = _standardisation(x, dtype)
    if y.ndim == 2:
        weights, bias = _solve_each((x - mean) / scale, y, regularization)
        return LinearProbe(mean, scale, weights, bias)
    present, weights, bias = _solve((x - mean) / scale, y, num_classes, regularization)
    all_weights = np.zeros((x.shape[1], num_classes), dtype)
    all_bias = np.full(num_classes, np.finfo(dtype).min, dtype)
    all_weights[:, present], all_bias[present] = weights, bias
    return LinearProbe(mean, scale, all_weights, all_bias)


def scores(probe: LinearProbe, x: ArrayLike) -> NDArray[np.floating]:
    """Logits, float [m, classes], of features `x`, float [m, d]."""
    return ((np.asarray(x) - probe.mean) / probe.scale) @ probe.weights + probe.bias


def select(
    train_x: ArrayLike,
    train_y: ArrayLike,
    val_x: ArrayLike,
    val_y: ArrayLike,
    num_classes: int,
    metric: str = "top1",
) -> tuple[LinearProbe, Selection]:
    """Train on train with every C of `GRID` and keep the best on validation.

    Of equally good values the strongest regularisation wins. The probe is not trained again
    with validation data.

    Args:
      train_x: float [n, d] features.
      train_y: int [n], labels in [0, num_classes), or zeros and ones [n, num_classes].
      val_x: float [m, d] features.
      val_y: labels of the same kind.
      num_classes: number of columns of the probe.
      metric: 'top1' or 'macro_auroc', on validation.

    Raises:
      ValueError: as `fit`, or validation is empty or of another shape.
    """
    probes = [fit(train_x, train_y, num_classes, candidate) for candidate in GRID]
    values = [score(metric, scores(probe, val_x), val_y)[0] for probe in probes]
    best = int(np.argmax(values))
    candidates = tuple({"C": c, "value": value} for c, value in zip(GRID, values, strict=True))
    return probes[best], Selection({"C": GRID[best]}, metric, values[best], candidates)


def _standardisation(
    x: NDArray[np.floating], dtype: np.dtype
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and population standard deviation per feature; constant features get scale 1."""
    # By the range, because rounding gives constant columns a tiny deviation.
    constant = x.max(axis=0) == x.min(axis=0)
    scale = np.where(constant, 1, x.std(axis=0, dtype=np.float64))
    return x.mean(axis=0, dtype=np.float64).astype(dtype), scale.astype(dtype)


def _solve_each(
    z: NDArray[np.floating], y: NDArray[np.integer], regularization: float
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Weights [d, classes] and biases [classes] of one logistic regression for each class."""
    weights = np.zeros((z.shape[1], y.shape[1]), z.dtype)
    bias = np.zeros(y.shape[1], z.dtype)
    for index, positive in enumerate(y.T):
        if positive.min() == positive.max():
            continue  # nothing to tell apart: a constant score
        # Half of softmax's strength: its two columns -w/2 and w/2 are one column w here.
        _, both, biases = _solve(z, positive, 2, regularization / 2)
        weights[:, index], bias[index] = both[:, 1] - both[:, 0], biases[1] - biases[0]
    return weights, bias


def _solve(
    z: NDArray[np.floating], y: NDArray[np.integer], num_classes: int, regularization: float
) -> tuple[NDArray[np.integer], NDArray[np.floating], NDArray[np.floating]]:
    """The classes present [c], their weights [d, c] and biases [c]."""
    # Imported late: a second of start-up that only this function needs.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    present = np.unique(y)
    if len(present) == 1:
        return present, np.zeros((z.shape[1], 1), z.dtype), np.zeros(1, z.dtype)
    # For two classes scikit-learn penalises the difference w of the columns, |w|^2 / (2 C), where
    # softmax regression penalises the columns -w/2 and w/2, |w|^2 / (4 C).
    strength = regularization * (2 if len(present) == 2 else 1)
    model = LogisticRegression(C=strength, tol=_TOLERANCE, max_iter=_MAX_ITERATIONS)
    small = z.size * num_classes < _ONE_THREAD_PRODUCTS
    with contextlib.ExitStack() as stack:
        if small:
            stack.enter_context(threadpool_limits(1))
        stack.enter_context(warnings.catch_warnings())
        # Where rounding stalls the last digits of float32, the iterate is as good as any.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Few labels of many classes are what semi-supervised probes are about.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(z, y)
    weights, bias = model.coef_.T, model.intercept_
    if len(present) == 2:
        weights, bias = np.hstack([-weights, weights]) / 2, np.hstack([-bias, bias]) / 2
    return present, weights, bias
