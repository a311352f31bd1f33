"""What happens to keys, queue and batch statistics within a step, against a slow oracle."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpt_jax import config as config_lib
from hpt_jax import moco, parallel, training
from hpt_jax.augment.policies import Policy
from hpt_jax.augment.views import distort, view_draws
from hpt_jax.data import loader
from hpt_jax.data import store as store_lib
from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.feed import Feed
from hpt_jax.models.backbone import init_backbone
from hpt_jax.models.batch_norm import GroupLayout
from hpt_jax.models.resnet import ResNet

BATCH, GROUPS, QUEUE, STEPS = 8, 4, 20, 5  # the queue is no multiple of the batch, and wraps
LEARNING_RATE = 0.05


@dataclasses.dataclass
class Trace:
    """Everything around each step: states before and after, views, metrics."""

    settings: moco.Settings
    before: list[Any]
    after: list[Any]
    batches: list[dict[str, np.ndarray]]
    metrics: list[dict[str, float]]


@pytest.fixture(scope="module")
def trace() -> Trace:
    with jax.enable_x64(True):
        return run_steps()


def run_steps() -> Trace:
    stage = config_lib.Stage(
        batch_size=BATCH,
        image_size=16,
        model=config_lib.Model("two_blocks", 4, "small", 2, GROUPS, "float64"),
        moco=config_lib.MoCo(queue_size=QUEUE, dim=8, momentum=0.9),
        augment=Policy(blur_probability=1.0),
    )
    devices = parallel.make_devices(2)
    model = training.make_model(stage.model, devices)
    settings = moco.make_settings(stage, model, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    everything = Dataset("noise", ArrayImages("noise", pixels), {"train": np.arange(30)}, "0")
    store = store_lib.load(everything, store_lib.Reading(0, 0), 0.0, float("inf"))
    feed = Feed(store, devices, devices.replicate(store.pixels))
    half = np.full(3, 0.5, np.float32)
    backbone = init_backbone(model, jax.random.key(1), half, half)
    carry = devices.replicate(training.initial_carry(moco, settings, jax.random.key(2), backbone))
    take_step = training._compiled_step(moco, settings, devices)

    def plan_batch(step: int) -> loader.Plan:
        rows = np.random.default_rng(step).permutation(30)[:BATCH]
        return moco.plan_batch(settings, 2, step, rows, store.sizes[rows])

    trace = Trace(settings, [], [], [], [])
    for batch in feed.batches(plan_batch, range(STEPS), 16, np.float64):
        trace.batches.append(devices.gather(batch))
        trace.before.append(as_numpy(carry.state))
        carry, metrics = take_step(carry, batch, np.asarray(LEARNING_RATE))
        trace.after.append(as_numpy(carry.state))
        trace.metrics.append({name: float(value) for name, value in metrics.items()})
    return trace


def as_numpy(state: moco.State) -> moco.State:
    """A copy on the host, for the step gives its input's buffers up; the key stays a key."""
    rng = jax.random.wrap_key_data(np.asarray(jax.random.key_data(state.rng)))
    return jax.tree.map(np.asarray, state.replace(rng=None)).replace(rng=rng)


@functools.cache
def encode(model: ResNet) -> Any:
    """(variables, images) -> features and updated statistics, in training mode."""
    return jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))


@functools.cache
def distorted(policy: Policy) -> Any:
    """One image at a time, where the step distorts a whole batch."""
    return jax.jit(lambda draws, image: distort(draws, image, policy, jnp.float64))


def view(trace: Trace, step: int, name: str, place: int, slot: int, which: int) -> jax.Array:
    """One normalised view, from the draws of the slot of its example."""
    draws = view_draws(trace.before[step].rng, step, slot, which)
    return (distorted(trace.settings.policy)(draws, trace.batches[step][name][place]) - 0.5) / 0.5


def oracle_keys(trace: Trace, step: int, permutation: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Keys in slot order, and each group's running statistics, one BN group after another."""
    settings, state = trace.settings, trace.before[step]
    model = dataclasses.replace(settings.model, layout=GroupLayout(), parent=None)
    keys, statistics = np.zeros((BATCH, settings.dim)), []
    momentum = settings.momentum
    query = {"backbone": state.backbone.params, "head": state.head}
    params = jax.tree.map(lambda k, q: momentum * k + (1 - momentum) * q, state.key_params, query)
    for group in np.split(np.arange(BATCH), GROUPS):
        images = [
            view(trace, step, "key", place, int(permutation[place]), moco.KEY) for place in group
        ]
        variables = {"params": params["backbone"], "batch_stats": state.key_batch_stats}
        features, updates = encode(model)(variables, jnp.stack(images))
        embedded = np.asarray(settings.head.apply({"params": params["head"]}, features))
        keys[permutation[group]] = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
        statistics.append(updates["batch_stats"])
    return keys, statistics


@pytest.fixture(scope="module")
def keys(trace: Trace) -> list[tuple[np.ndarray, list[Any], np.ndarray]]:
    """For each step: the oracle's keys, group statistics, and the permutation."""
    with jax.enable_x64(True):
        made = []
        for step in range(STEPS):
            permutation = trace.batches[step]["key_slots"]
            made.append((*oracle_keys(trace, step, permutation), permutation))
        return made


def test_queue_holds_exactly_the_last_keys_in_order(trace: Trace, keys: Any) -> None:
    ring = collections.deque(trace.before[0].queue, maxlen=QUEUE)
    for step in range(STEPS):
        ring.extend(keys[step][0])
        after = trace.after[step]
        oldest_first = np.roll(after.queue, -int(after.queue_pointer), axis=0)
        np.testing.assert_allclose(oldest_first, np.array(ring), rtol=0, atol=1e-10)
        assert int(after.queue_fill) == min(QUEUE, BATCH * (step + 1))
        assert int(after.queue_pointer) == BATCH * (step + 1) % QUEUE


def test_a_fresh_queue_holds_unit_vectors(trace: Trace) -> None:
    np.testing.assert_allclose(np.linalg.norm(trace.before[0].queue, axis=1), 1, atol=1e-12)


def test_shuffling_changes_what_the_key_encoders_batch_statistics_see(
    trace: Trace, keys: Any
) -> None:
    for step in range(STEPS):
        _, statistics, permutation = keys[step]
        assert sorted(permutation) == list(range(BATCH))
        groups = np.arange(BATCH) // (BATCH // GROUPS)
        # Some key is normalised in another group than its query ...
        assert np.any(groups[np.argsort(permutation)] != groups)
        # ... and the statistics are those of the groups that the shuffle made.
        mean = jax.tree.map(lambda *parts: np.mean(parts, 0), *statistics)
        for expected, got in zip(
            jax.tree.leaves(mean), jax.tree.leaves(trace.after[step].key_batch_stats), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)
    with jax.enable_x64(True):
        unshuffled, _ = oracle_keys(trace, 0, np.arange(BATCH))
    assert not np.allclose(unshuffled, keys[0][0], atol=1e-3)


def test_shuffling_leaves_the_positives_matched(trace: Trace, keys: Any) -> None:
    """The loss, from queries and keys that the oracle pairs by slot."""
    for step in range(STEPS):
        settings, state = trace.settings, trace.before[step]
        model = dataclasses.replace(settings.model, layout=GroupLayout(GROUPS), parent=None)
        with jax.enable_x64(True):
            images = [view(trace, step, "query", slot, slot, moco.QUERY) for slot in range(BATCH)]
            features, _ = encode(model)(state.backbone.variables, jnp.stack(images))
            embedded = np.asarray(settings.head.apply({"params": state.head}, features))
        queries = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
        positive = np.sum(queries * keys[step][0], 1)
        logits = np.concatenate([positive[:, None], queries @ state.queue.T], 1) / 0.2
        loss = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
        assert trace.metrics[step]["loss"] == pytest.approx(loss, abs=1e-10)
        assert trace.metrics[step]["positive_similarity"] == pytest.approx(
            positive.mean(), abs=1e-10
        )


def test_the_key_encoder_follows_the_query_of_before_the_step(trace: Trace) -> None:
    for before, after in zip(trace.before, trace.after, strict=True):
        query = {"backbone": before.backbone.params, "head": before.head}
        expected = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * q, before.key_params, query)
        for want, got in zip(
            jax.tree.leaves(expected), jax.tree.leaves(after.key_params), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
