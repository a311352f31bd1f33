"""The evaluations by name: features and labels in, one small JSON-able result out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hpt_jax.evaluate import knn, linear
from hpt_jax.evaluate.metrics import top1


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Features f32[n, d] and labels i32[n] of one split."""

    features: np.ndarray
    labels: np.ndarray


def evaluate_linear(train: Split, val: Split, test: Split, classes: int) -> dict[str, Any]:
    """The fast linear probe: trained on train, regularisation chosen on val, tested once."""
    probe, selection = linear.select(
        train.features, train.labels, val.features, val.labels, classes
    )
    return {
        "val": selection.value,
        "test": top1(linear.scores(probe, test.features), test.labels),
        "selected_by": "val",
        "selection": dataclasses.asdict(selection),
    }


def evaluate_knn(train: Split, val: Split, test: Split, classes: int) -> dict[str, Any]:
    """Weighted kNN with fixed k and temperature: nothing is chosen."""

    def accuracy(split: Split) -> float:
        votes = knn.predict(train.features, train.labels, split.features, classes)
        return top1(votes, split.labels)

    return {"val": accuracy(val), "test": accuracy(test), "selected_by": "", "selection": None}


EVALUATIONS: dict[str, Callable[[Split, Split, Split, int], dict[str, Any]]] = {
    "linear": evaluate_linear,
    "knn": evaluate_knn,
}
