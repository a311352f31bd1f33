"""The kNN classifier agrees with brute force and never holds all similarities."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from hpt_jax.evaluate import knn


def brute_force(train_x, train_y, x, num_classes, k, temperature):
    unit = train_x / np.linalg.norm(train_x, axis=1, keepdims=True)
    votes = np.zeros((len(x), num_classes))
    for i, query in enumerate(x):
        similarity = unit @ (query / np.linalg.norm(query))
        nearest = np.argsort(-similarity, kind="stable")[:k]
        total = np.exp(similarity[nearest] / temperature).sum()
        for j in nearest:
            weight = np.exp(similarity[j] / temperature)
            if train_y.ndim == 1:
                votes[i, train_y[j]] += weight / total
            else:
                votes[i] += weight / total * train_y[j]
    return votes


def blobs(n, m, d=6, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, d))
    labels = rng.integers(num_classes, size=n + m)
    x = (centres[labels] + 0.7 * rng.normal(size=(n + m, d))).astype(np.float32)
    return x[:n], labels[:n], x[n:], labels[n:]


# 301 queries take several blocks, the last of them partial.
@pytest.mark.parametrize(("n", "m", "k"), [(150, 301, 20), (50, 7, 1), (9, 130, 20)])
def test_votes_equal_brute_force(n, m, k):
    train_x, train_y, x, _ = blobs(n, m)
    votes = knn.predict(train_x, train_y, x, 4, k=k)
    assert votes.dtype == np.float32
    expected = brute_force(train_x.astype(np.float64), train_y, x.astype(np.float64), 4, k, 0.07)
    np.testing.assert_allclose(votes, expected, rtol=2e-4)


def test_predictions_equal_sklearns_weighted_neighbours():
    train_x, train_y, x, _ = blobs(200, 100, seed=1)
    oracle = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07)
    ).fit(train_x, train_y)
    predicted = knn.predict(train_x, train_y, x, 4).argmax(axis=1)
    np.testing.assert_array_equal(predicted, oracle.predict(x))


def test_length_of_features_does_not_matter():
    train_x, train_y, x, _ = blobs(60, 20)
    stretched = train_x * np.linspace(0.5, 8, 60, dtype=np.float32)[:, None]
    one, other = (knn.predict(t, train_y, x, 4) for t in (train_x, stretched))
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_votes_for_several_labels_an_image_equal_brute_force():
    train_x, _, x, _ = blobs(90, 40, seed=3)
    labels = np.random.default_rng(0).integers(0, 2, (90, 5), dtype=np.uint8)
    votes = knn.predict(train_x, labels, x, 5, k=7)
    expected = brute_force(train_x.astype(float), labels, x.astype(float), 5, 7, 0.07)
    np.testing.assert_allclose(votes, expected, rtol=2e-4, atol=1e-6)


def test_zero_features_vote_alike_and_never_nan():
    votes = knn.predict(np.zeros((3, 2), np.float32), [0, 1, 1], np.ones((1, 2), np.float32), 3)
    np.testing.assert_allclose(votes, [[1 / 3, 2 / 3, 0]], rtol=1e-6)


def test_equally_near_neighbours_are_taken_in_training_order():
    train_x = np.ones((6, 3), np.float32)
    votes = knn.predict(train_x, [2, 0, 0, 1, 1, 1], np.ones((1, 3), np.float32), 3, k=3)
    np.testing.assert_allclose(votes, [[2 / 3, 0, 1 / 3]], rtol=1e-6)


def test_blocks_do_not_change_the_votes_and_bound_the_similarities(monkeypatch):
    train_x, train_y, x, _ = blobs(64, 50)
    whole = knn.predict(train_x, train_y, x, 4)
    monkeypatch.setattr(knn, "_BLOCK_ELEMENTS", 64 * 8)
    # Compiled programs remember the blocks that they were made for.
    jax.clear_caches()
    program = jax.make_jaxpr(lambda q: knn._votes(train_x, train_y, q, 4, 20, 0.07))(x)
    assert largest(program.jaxpr) < 64 * 50
    np.testing.assert_allclose(knn.predict(train_x, train_y, x, 4), whole, rtol=1e-5)
    jax.clear_caches()


def largest(jaxpr):
    """Size of the largest array that a program and its inner programs compute."""
    sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        sizes += [largest(program) for program in inner if hasattr(program, "eqns")]
    return max(sizes)


def test_float64_stays_float64():
    train_x, train_y, x, _ = (a.astype(np.float64) for a in blobs(80, 30))
    with jax.enable_x64(True):
        votes = knn.predict(train_x, train_y.astype(int), x, 4, k=5)
    assert votes.dtype == np.float64
    expected = brute_force(train_x, train_y.astype(int), x, 4, 5, 0.07)
    np.testing.assert_allclose(votes, expected, rtol=1e-12)


def test_one_class_that_an_image_has_or_has_not_is_voted_for():
    x = np.eye(4, dtype=np.float32)
    votes = knn.predict(x, np.array([[1], [0], [0], [1]], np.uint8), x, 1, k=1)
    np.testing.assert_allclose(votes, [[1], [0], [0], [1]])


@pytest.mark.parametrize(
    ("train_y", "k"),
    [([[0, 0, 0, 2], [0, 0, 0, 1]], 1), ([0, 4], 1), ([-1, 0], 1), ([0], 1), ([0, 1], 0)],
    ids=str,
)
def test_bad_labels_and_k_are_refused(train_y, k):
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError):
        knn.predict(x, train_y, x, 4, k=k)
