"""The paper's probe follows its recipe step by step, and chooses by validation alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.special import expit, softmax

from hpt_jax.config import LinearSGD
from hpt_jax.errors import UserError
from hpt_jax.evaluate import linear_sgd
from hpt_jax.evaluate.evaluations import Split
from hpt_jax.evaluate.metrics import score

CLASSES = 3
SHORT = LinearSGD(steps=40, batch_size=16, learning_rate=0.5, eval_every=4)


def split(n, multi_label, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=n)
    features = rng.normal(size=(n, 5)) + np.eye(CLASSES, 5)[labels]
    if multi_label:
        labels = (rng.random((n, CLASSES)) < 0.4).astype(np.uint8)
        features += labels @ np.eye(CLASSES, 5)
    return Split(features.astype(np.float32), labels)


def batches(multi_label, settings=SHORT):
    for step in range(settings.steps):
        made = split(settings.batch_size, multi_label, 100 + step)
        yield made.features, made.labels


def run(multi_label=False, settings=SHORT, val=None, test=None, seed=0):
    val = val or split(90, multi_label, 1)
    test = test or split(80, multi_label, 2)
    metric = "macro_auroc" if multi_label else "top1"
    given = batches(multi_label, settings)
    return linear_sgd.train(given, val, test, CLASSES, metric, settings, seed)


def numpy_probes(multi_label, settings=SHORT):
    """The weights after each step, in double precision."""
    start = linear_sgd._init(0, 5, CLASSES)
    weights, bias = (np.asarray(start[name], float) for name in ("weights", "bias"))
    velocity = [np.zeros_like(weights), np.zeros_like(bias)]
    for step, (features, labels) in enumerate(batches(multi_label, settings)):
        logits = features.astype(float) @ weights + bias
        if multi_label:
            error = (expit(logits) - labels) / labels.size
        else:
            error = (softmax(logits, axis=1) - np.eye(CLASSES)[labels]) / len(labels)
        gradients = features.T.astype(float) @ error, error.sum(axis=0)
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        rate = settings.learning_rate * 0.1 ** ((step >= 13) + (step >= 27))
        weights, bias = weights - rate * velocity[0], bias - rate * velocity[1]
        yield weights, bias


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_probe_is_plain_sgd_kept_at_its_best_step_of_the_second_half(multi_label):
    val, test = split(90, multi_label, 1), split(80, multi_label, 2)
    metric = "macro_auroc" if multi_label else "top1"
    found = run(multi_label)
    curve, tested = [], {}
    for step, (weights, bias) in enumerate(numpy_probes(multi_label), 1):
        if step % 4 == 0:
            curve.append((step, score(metric, val.features @ weights + bias, val.labels)[0]))
            tested[step] = score(metric, test.features @ weights + bias, test.labels)[0]
    assert [step for step, _ in found["selection"]["curve"]] == [step for step, _ in curve]
    np.testing.assert_allclose(
        [value for _, value in found["selection"]["curve"]],
        [value for _, value in curve],
        atol=1e-3 if multi_label else 1e-9,
    )
    late = [(value, -step) for step, value in found["selection"]["curve"] if step >= 20]
    best, chosen = max(late)
    assert (found["selection"]["chosen"], found["selection"]["value"]) == (-chosen, best)
    assert found["val"] == best
    assert found["test"] == pytest.approx(tested[-chosen], abs=1e-3)
    assert found["selected_by"] == "val"
    assert json.loads(json.dumps(found))["selection"]["metric"] == metric


def test_the_rate_drops_where_the_authors_code_drops_it():
    settings = LinearSGD()
    rates = [linear_sgd.learning_rate(settings, step) for step in range(settings.steps)]
    assert np.flatnonzero(np.diff(rates)).tolist() == [1650, 3332]
    np.testing.assert_allclose([rates[0], rates[1651], rates[3333]], [30, 3, 0.3])


def test_test_labels_choose_nothing():
    test = split(80, False, 2)
    shuffled = Split(test.features, np.random.default_rng(0).permutation(test.labels))
    one, other = run(test=test), run(test=shuffled)
    assert one["selection"] == other["selection"]
    assert one["val"] == other["val"]
    assert one["test"] != other["test"]


def test_the_same_seed_gives_the_same_result_and_another_does_not():
    assert run(seed=3) == run(seed=3)
    settings = dataclasses.replace(SHORT, learning_rate=0.001)
    one, other = (run(settings=settings, seed=seed) for seed in (3, 4))
    assert one["selection"]["curve"] != other["selection"]["curve"]


def test_a_probe_that_diverges_says_so():
    settings = dataclasses.replace(SHORT, learning_rate=1e38)
    with pytest.raises(UserError, match=r"linear_sgd\.learning_rate"):
        run(settings=settings)
