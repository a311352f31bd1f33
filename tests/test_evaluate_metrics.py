"""Metrics agree with scikit-learn and refuse what would mislead."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from hpt_jax.errors import UserError
from hpt_jax.evaluate.metrics import check_metric, macro_auroc, score, top1


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


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_macro_auroc_equals_sklearns(multi_label, ties):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(150, 5))
    if ties:
        scores = np.round(scores)
    one_hot = rng.random((150, 5)) < 0.3
    labels = one_hot.astype(np.uint8)
    if not multi_label:
        labels = rng.integers(5, size=150)
        one_hot = labels[:, None] == np.arange(5)
    value, undefined = macro_auroc(scores, labels)
    assert value == pytest.approx(roc_auc_score(one_hot, scores, average="macro"), abs=1e-12)
    assert type(value) is float
    assert undefined == ()


def test_classes_without_a_positive_or_a_negative_are_left_out_and_told():
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=(60, 5)), rng.integers(0, 2, (60, 5), dtype=np.uint8)
    labels[:, 1], labels[:, 4] = 0, 1
    value, undefined = macro_auroc(scores, labels)
    kept = [0, 2, 3]
    assert value == pytest.approx(roc_auc_score(labels[:, kept], scores[:, kept]), abs=1e-12)
    assert undefined == (1, 4)
    assert score("macro_auroc", scores, labels) == (value, undefined)


def test_a_split_of_one_class_alone_is_a_users_mistake():
    with pytest.raises(UserError, match="positive and with negative"):
        macro_auroc(np.ones((4, 3)), np.full(4, 2))


def test_auroc_refuses_nan_and_shapes_that_disagree():
    with pytest.raises(ValueError, match="NaN"):
        macro_auroc(np.array([[np.nan, 1.0], [0.0, 1.0]]), [0, 1])
    for labels in (np.zeros((2, 3)), np.zeros(3), np.zeros((0, 2))):
        with pytest.raises(ValueError, match="need scores"):
            macro_auroc(np.zeros((2, 2)), labels)


def test_top1_of_several_labels_an_image_is_a_mistake_that_says_what_to_set():
    with pytest.raises(UserError, match=r"--config\.metric=macro_auroc"):
        check_metric("top1", True)
    check_metric("macro_auroc", True)
    check_metric("top1", False)
