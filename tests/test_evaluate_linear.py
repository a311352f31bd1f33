"""The linear probe solves its stated objective, and selection sees validation alone."""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpt_jax.evaluate import linear
from hpt_jax.evaluate.metrics import macro_auroc, top1


def digits(dtype=np.float32):
    x, y = load_digits(return_X_y=True)
    return x.astype(dtype), y


def objective(weights, bias, z, y, regularization):
    logits = z @ weights + bias
    loss = (logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]).sum()
    return loss + (weights**2).sum() / (2 * regularization)


def best_objective(z, y, classes, regularization):
    d = z.shape[1]

    def of(flat):
        return objective(
            flat[: d * classes].reshape(d, classes), flat[d * classes :], z, y, regularization
        )

    return minimize(of, np.zeros((d + 1) * classes), method="BFGS").fun


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("regularization", [0.01, 1.0])
def test_fit_minimises_the_softmax_objective(classes, regularization):
    rng = np.random.default_rng(classes)
    y = rng.integers(classes, size=60)
    x = rng.normal(size=(60, 4)) * [1, 5, 0.1, 2] + 3 + y[:, None]
    probe = linear.fit(x, y, classes, regularization)
    z = (x - x.mean(0)) / x.std(0)
    found = objective(probe.weights, probe.bias, z, y, regularization)
    np.testing.assert_allclose(found, best_objective(z, y, classes, regularization), rtol=1e-5)


def test_scores_equal_a_sklearn_pipeline(monkeypatch):
    monkeypatch.setattr(linear, "_TOLERANCE", 1e-8)
    x, y = digits(np.float64)
    probe = linear.fit(x[:400], y[:400], 10, 0.1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000))
    expected = model.fit(x[:400], y[:400]).decision_function(x[400:600])
    np.testing.assert_allclose(linear.scores(probe, x[400:600]), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_features_get_scale_one_and_change_nothing(dtype):
    x, y = digits(dtype)
    # Rounding gives 300 times 0.1 a deviation that is not zero.
    wide = np.hstack([x, np.full((len(x), 1), 0.1, dtype)])
    without, probe = (linear.fit(some[:300], y[:300], 10, 0.1) for some in (x, wide))
    assert probe.scale[-1] == 1
    expected = linear.scores(without, x[300:600])
    np.testing.assert_allclose(linear.scores(probe, wide[300:600]), expected, atol=0.02)


def test_classes_without_training_examples_have_a_column_that_never_wins():
    x, y = digits()
    keep = np.isin(y, (1, 4, 7))
    probe = linear.fit(x[keep], y[keep], 12, 0.1)
    scores = linear.scores(probe, x)
    assert scores.shape == (len(x), 12)
    assert np.isfinite(scores).all()
    assert set(scores.argmax(axis=1)) == {1, 4, 7}


def test_a_single_class_is_always_predicted():
    x, _ = digits()
    probe = linear.fit(x[:5], np.full(5, 2), 4, 1.0)
    assert set(linear.scores(probe, x).argmax(axis=1)) == {2}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_features_dtype_is_kept(dtype):
    x, y = digits(dtype)
    probe = linear.fit(x[:200], y[:200], 10, 0.1)
    assert {getattr(probe, f.name).dtype for f in dataclasses.fields(probe)} == {np.dtype(dtype)}
    assert linear.scores(probe, x).dtype == dtype


def test_the_same_input_gives_the_same_probe():
    x, y = digits()
    one, other = (linear.fit(x[:500], y[:500], 10, 1.0) for _ in range(2))
    np.testing.assert_array_equal(one.weights, other.weights)


def test_selection_takes_the_best_of_the_whole_grid_on_validation():
    x, y = digits()
    train, val = slice(0, 60), slice(60, 400)
    probe, selection = linear.select(x[train], y[train], x[val], y[val], 10)
    curve = {
        c: top1(linear.scores(linear.fit(x[train], y[train], 10, c), x[val]), y[val])
        for c in linear.GRID
    }
    assert {one["C"]: one["value"] for one in selection.candidates} == curve
    assert len(set(curve.values())) > 2, "the grid must matter for this test to mean anything"
    assert selection.value == max(curve.values())
    chosen = min(c for c in curve if curve[c] == selection.value)
    assert selection.chosen == {"C": chosen}
    np.testing.assert_array_equal(probe.weights, linear.fit(x[train], y[train], 10, chosen).weights)
    record = json.loads(json.dumps(dataclasses.asdict(selection)))
    assert record["chosen"] == selection.chosen
    assert record["metric"] == "top1"


def test_of_equally_good_values_the_strongest_regularisation_wins():
    x = np.array([[-1.0], [-1.1], [1.0], [1.1]])
    _, selection = linear.select(x, [0, 0, 1, 1], x, [0, 0, 1, 1], 2)
    assert {one["value"] for one in selection.candidates} == {1.0}
    assert selection.chosen == {"C": min(linear.GRID)}


def test_selection_has_no_way_in_for_test_data():
    expected = ["train_x", "train_y", "val_x", "val_y", "num_classes", "metric"]
    assert list(inspect.signature(linear.select).parameters) == expected


def test_a_fit_that_stops_early_warns_nobody(monkeypatch):
    monkeypatch.setattr(linear, "_MAX_ITERATIONS", 2)
    x, y = digits()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = linear.fit(x[:200], y[:200], 10, 10.0)
    assert np.any(probe.weights != 0)


@pytest.mark.parametrize(
    ("x", "y"),
    [([[1.0], [np.nan]], [0, 1]), ([[1.0], [2.0]], [0, 3]), ([[1.0], [2.0]], [0])],
    ids=["nan", "label", "shape"],
)
def test_bad_features_and_labels_are_refused(x, y):
    with pytest.raises(ValueError):
        linear.fit(x, y, 3, 1.0)


def several(n=200, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    y = (x @ rng.normal(size=(6, classes)) + rng.normal(size=(n, classes)) > 0.5).astype(np.uint8)
    return x, y


def test_several_labels_an_image_are_sklearns_regression_of_each_class(monkeypatch):
    monkeypatch.setattr(linear, "_TOLERANCE", 1e-8)
    x, y = several()
    probe = linear.fit(x, y, 4, 0.3)
    for index in range(4):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=5000))
        expected = model.fit(x, y[:, index]).decision_function(x)
        np.testing.assert_allclose(linear.scores(probe, x)[:, index], expected, atol=1e-4)


def test_a_class_that_every_or_no_image_has_gets_one_score_for_all():
    x, y = several()
    y[:, 1], y[:, 2] = 0, 1
    found = linear.scores(linear.fit(x, y, 4, 1.0), x)
    assert np.isfinite(found).all()
    assert (found[:, 1:3] == found[:1, 1:3]).all()


@pytest.mark.parametrize("multi_label", [False, True])
def test_selection_goes_by_the_metric_it_is_given(multi_label):
    x, y = several(300) if multi_label else digits(np.float64)
    classes = y.shape[1] if multi_label else 10
    train, val = slice(0, 40), slice(40, 300)
    _, selection = linear.select(x[train], y[train], x[val], y[val], classes, "macro_auroc")
    for strength, value in (one.values() for one in selection.candidates):
        probe = linear.fit(x[train], y[train], classes, strength)
        assert value == macro_auroc(linear.scores(probe, x[val]), y[val])[0]
    assert selection.metric == "macro_auroc"
    assert selection.value == max(one["value"] for one in selection.candidates)
