"""The evaluations of cached features by name: features and labels in, one small result out.

`linear_sgd`, which sees new views of the images at every step, is a module of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hpt_jax.evaluate import knn, linear
from hpt_jax.evaluate.metrics import score


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Features f32[n, d] of one split, and labels: i32[n], or u8[n, classes] zeros and ones."""

    features: np.ndarray
    labels: np.ndarray


def result(
    val: float, test: tuple[float, tuple[int, ...]], selection: linear.Selection | None
) -> dict[str, Any]:
    """What a file of one finished evaluation holds.

    Args:
      val: the metric on validation.
      test: the metric on test, and the classes that it leaves out.
      selection: what was chosen on validation, if anything was.
    """
    value, undefined = test
    return {
        "val": val,
        "test": value,
        "undefined_classes": list(undefined),
        "selected_by": "val" if selection else "",
        "selection": dataclasses.asdict(selection) if selection else None,
    }


def evaluate_linear(
    train: Split, val: Split, test: Split, classes: int, metric: str
) -> dict[str, Any]:
    """The fast linear probe: trained on train, regularisation chosen on val, tested once."""
    probe, selection = linear.select(
        train.features, train.labels, val.features, val.labels, classes, metric
    )
    tested = score(metric, linear.scores(probe, test.features), test.labels)
    return result(selection.value, tested, selection)


def evaluate_knn(
    train: Split, val: Split, test: Split, classes: int, metric: str
) -> dict[str, Any]:
    """Weighted kNN with fixed k and temperature: nothing is chosen."""

    def judged(split: Split) -> tuple[float, tuple[int, ...]]:
        votes = knn.predict(train.features, train.labels, split.features, classes)
        return score(metric, votes, split.labels)

    return result(judged(val)[0], judged(test), None)


EVALUATIONS: dict[str, Callable[[Split, Split, Split, int, str], dict[str, Any]]] = {
    "linear": evaluate_linear,
    "knn": evaluate_knn,
}
