"""Metrics agree with scikit-learn and refuse what would mislead."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from hpt_jax.evaluate.metrics import top1


def test_top1_equals_sklearns_accuracy():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 5)), rng.integers(5, size=200)
    assert top1(scores, labels) == accuracy_score(labels, scores.argmax(axis=1))
    assert type(top1(scores, labels)) is float


def test_nan_scores_are_refused_not_counted_as_a_class():
    scores = np.array([[0.1, np.nan], [0.9, 0.1]])
    with pytest.raises(ValueError, match="1 examples have NaN"):
        top1(scores, np.array([1, 0]))


@pytest.mark.parametrize(("scores", "labels"), [((0, 3), 0), ((2, 3), 3), ((2,), 2)])
def test_missing_or_mismatched_examples_are_refused(scores, labels):
    with pytest.raises(ValueError, match="need scores"):
        top1(np.zeros(scores), np.zeros(labels, int))
