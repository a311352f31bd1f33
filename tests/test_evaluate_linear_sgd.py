"""The paper's probe follows its recipe step by step, and chooses by validation alone."""

from __future__ import annotations

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
from scipy.special import expit, softmax

from hpt_jax.config import LinearSGD
from hpt_jax.errors import UserError
from hpt_jax.evaluate import linear_sgd
from hpt_jax.evaluate.metrics import score

CLASSES = 3
SHORT = LinearSGD(steps=40, batch_size=16, learning_rates=(0.5,), eval_every=4)


def split(n, multi_label, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=n)
    features = rng.normal(size=(n, 5)) + np.eye(CLASSES, 5)[labels]
    if multi_label:
        labels = (rng.random((n, CLASSES)) < 0.4).astype(np.uint8)
        features += labels @ np.eye(CLASSES, 5)
    return features.astype(np.float32), labels


def batches(multi_label, settings=SHORT):
    for step in range(settings.steps):
        yield split(settings.batch_size, multi_label, 100 + step)


def run(multi_label=False, settings=SHORT, seed=0):
    metric = "macro_auroc" if multi_label else "top1"
    val, given = split(90, multi_label, 1), batches(multi_label, settings)
    return linear_sgd.train(given, *val, CLASSES, metric, settings, seed)


def numpy_probes(multi_label, settings=SHORT, seed=0):
    """The weights after each step, in double precision; of one rate and decay."""
    start = linear_sgd.init((seed, settings.seeds[0]), 5, CLASSES)
    weights, bias = (np.asarray(start[name], float) for name in ("weights", "bias"))
    velocity = [np.zeros_like(weights), np.zeros_like(bias)]
    (rate,), (decay,) = settings.learning_rates, settings.weight_decays
    for step, (features, labels) in enumerate(batches(multi_label, settings)):
        logits = features.astype(float) @ weights + bias
        if multi_label:
            error = (expit(logits) - labels) / labels.size
        else:
            error = (softmax(logits, axis=1) - np.eye(CLASSES)[labels]) / len(labels)
        gradients = features.T.astype(float) @ error + decay * weights, error.sum(0) + decay * bias
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        now = rate * 0.1 ** ((step >= 13) + (step >= 27))
        weights, bias = weights - now * velocity[0], bias - now * velocity[1]
        yield weights, bias


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_probe_is_plain_sgd_kept_at_its_best_step_of_the_second_half(multi_label):
    settings = dataclasses.replace(SHORT, weight_decays=(0.01,))
    features, labels = split(90, multi_label, 1)
    metric = "macro_auroc" if multi_label else "top1"
    ((probe, selection),) = run(multi_label, settings)
    curve, weights_at = [], {}
    for step, (weights, bias) in enumerate(numpy_probes(multi_label, settings), 1):
        weights_at[step] = weights
        if step % 4 == 0:
            curve.append((step, score(metric, features @ weights + bias, labels)[0]))
    assert [step for step, _ in selection.curve] == [step for step, _ in curve]
    np.testing.assert_allclose(
        [value for _, value in selection.curve],
        [value for _, value in curve],
        atol=1e-3 if multi_label else 1e-9,
    )
    best, chosen = max((value, -step) for step, value in selection.curve if step >= 20)
    assert selection.chosen == {"learning_rate": 0.5, "weight_decay": 0.01, "step": -chosen}
    assert (selection.value, selection.metric) == (best, metric)
    np.testing.assert_allclose(probe["weights"], weights_at[-chosen], atol=1e-4)


def test_probes_trained_side_by_side_are_those_trained_alone():
    rates, decays, seeds = (0.5, 0.05), (0.0, 0.1), (0, 7)
    many = dataclasses.replace(SHORT, learning_rates=rates, weight_decays=decays, seeds=seeds)
    together = run(settings=many)
    assert len(together) == len(seeds)
    for seed, (probe, selection) in zip(seeds, together, strict=True):
        alone = {}
        for rate, decay in itertools.product(rates, decays):
            one = dataclasses.replace(
                SHORT, learning_rates=(rate,), weight_decays=(decay,), seeds=(seed,)
            )
            ((alone_probe, alone_selection),) = run(settings=one)
            alone[rate, decay] = alone_probe, alone_selection
        values = [{**s.chosen, "value": s.value} for _, s in alone.values()]
        assert list(selection.candidates) == values
        best = max(alone, key=lambda key: alone[key][1].value)
        assert selection.chosen == alone[best][1].chosen
        np.testing.assert_allclose(probe["weights"], alone[best][0]["weights"], atol=1e-5)


def test_the_rate_drops_where_the_authors_code_drops_it():
    settings = LinearSGD()
    rates = [30 * linear_sgd.drop(settings, step, settings.steps) for step in range(settings.steps)]
    assert np.flatnonzero(np.diff(rates)).tolist() == [1650, 3332]
    np.testing.assert_allclose([rates[0], rates[1651], rates[3333]], [30, 3, 0.3])


def test_the_probe_has_no_way_in_for_test_data():
    expected = ["batches", "val_features", "val_labels", "classes", "metric", "settings", "seed"]
    assert list(inspect.signature(linear_sgd.train).parameters) == expected


def test_the_same_seed_gives_the_same_result_and_another_does_not():
    settings = dataclasses.replace(SHORT, learning_rates=(0.001,))
    one, same, other = (run(settings=settings, seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one[0]["weights"], same[0]["weights"])
    assert one[1] == same[1]
    assert one[1].curve != other[1].curve


def test_a_probe_that_diverges_loses_to_one_that_does_not():
    settings = dataclasses.replace(SHORT, learning_rates=(1e38, 0.5))
    ((_, selection),) = run(settings=settings)
    assert selection.chosen["learning_rate"] == 0.5
    assert selection.candidates[0]["value"] == 0


def test_probes_that_all_diverge_say_so():
    settings = dataclasses.replace(SHORT, learning_rates=(1e38,))
    with pytest.raises(UserError, match=r"linear_sgd\.learning_rates"):
        run(settings=settings)
