"""MoCo-v2: each part by its formula, then whole steps against the parts put together by hand."""

from __future__ import annotations

import collections
import dataclasses
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp

from hpt_jax import config, moco, training
from hpt_jax.augment import policies, views
from hpt_jax.models import resnet
from hpt_jax.models.backbone import abstract_backbone, init_backbone, jit_once
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import Devices, make_devices

# What is random by slot, and quick to compile.
FLIPS = policies.Policy(jitter_probability=0, grayscale_probability=0, blur_probability=0)


def settings_of(**changes):
    stage = config.Stage(batch_size=16, image_size=8, moco=config.MoCo(queue_size=20, dim=4))
    model = changes.pop("model", ResNet("resnet10", 2, "small"))
    return dataclasses.replace(moco.make_settings(stage, model, 3), **changes)


def unit_vectors(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_is_the_cross_entropy_of_finding_the_positive(temperature):
    queries, queue = unit_vectors(0, 12, 4), unit_vectors(1, 9, 4)
    noise = np.linspace(0.1, 3, 12)[:, None]  # from sure hits to sure misses
    positives = queries + noise * unit_vectors(2, 12, 4)
    positives /= np.sqrt((positives**2).sum(-1, keepdims=True))
    with jax.enable_x64(True):
        loss, metrics = moco.info_nce(
            *(jnp.asarray(x) for x in (queries, positives, queue)), temperature
        )
    losses, hits, positive, negative = [], [], [], []
    for query, key in zip(queries, positives, strict=True):
        similarities = [float(query @ other) for other in (key, *queue)]
        logits = np.array(similarities) / temperature
        losses.append(logsumexp(logits) - logits[0])
        hits.append(np.argmax(similarities) == 0)
        positive.append(similarities[0])
        negative += similarities[1:]
    assert 0 < np.mean(hits) < 1
    expected = {
        "loss": np.mean(losses),
        "accuracy": np.mean(hits),
        "positive_similarity": np.mean(positive),
        "negative_similarity": np.mean(negative),
    }
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-12)
    assert metrics.keys() == expected.keys()
    assert {value.dtype for value in metrics.values()} == {np.dtype(np.float64)}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12, err_msg=name)


def test_masked_negatives_are_as_if_they_were_not_there():
    queries, positives, queue = (unit_vectors(seed, n, 4) for seed, n in enumerate((5, 5, 9)))
    own = np.random.default_rng(3).random((5, 9)) < 0.5
    own[0], own[1] = True, False
    with jax.enable_x64(True):
        loss, metrics = moco.info_nce(
            *(jnp.asarray(x) for x in (queries, positives, queue)), 0.2, jnp.asarray(own)
        )
    losses, hits, similarities = [], [], []
    for query, key, mine in zip(queries, positives, own, strict=True):
        kept = queue[~mine]
        logits = np.array([query @ key, *(kept @ query)]) / 0.2
        losses.append(logsumexp(logits) - logits[0])
        hits.append(np.argmax(logits) == 0)
        similarities += (kept @ query).tolist()
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits), rtol=1e-12)
    expected = np.mean(similarities)
    np.testing.assert_allclose(metrics["negative_similarity"], expected, rtol=1e-12)


def test_a_queue_of_nothing_but_own_keys_teaches_nothing_and_breaks_nothing():
    x = jnp.asarray(unit_vectors(0, 4, 3), jnp.float32)
    everything = jnp.ones((4, 4), bool)

    def loss(x):
        return moco.info_nce(x, x, x, 0.2, everything)[0]

    value, gradient = jax.value_and_grad(loss)(x)
    assert value == 0
    assert not gradient.any()
    assert moco.info_nce(x, x, x, 0.2, everything)[1]["negative_similarity"] == 0
    none = moco.hardness(x, x, 0.2, ~everything)
    some = moco.hardness(x, x, 0.2, everything)
    assert moco.queue_gap(some, none) == moco.queue_gap(none, some) == 0


def test_the_queue_gap_is_how_much_harder_fresh_negatives_are():
    queries, keys, queue = (unit_vectors(seed, n, 4) for seed, n in enumerate((6, 6, 9)))
    others = ~np.eye(6, dtype=bool)
    counted = np.random.default_rng(3).random((6, 9)) < 0.7
    counted[2] = False  # a query without any is left out

    def hard(query, kept):
        return np.log(np.mean(np.exp(kept @ query / 0.2)))

    gaps = [
        hard(query, keys[others[place]]) - hard(query, queue[counted[place]])
        for place, query in enumerate(queries)
        if place != 2
    ]
    with jax.enable_x64(True):
        fresh = moco.hardness(queries, keys, 0.2, jnp.asarray(others))
        old = moco.hardness(queries, queue, 0.2, jnp.asarray(counted))
        found = moco.queue_gap(fresh, old)
    np.testing.assert_allclose(found, np.mean(gaps), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 4, 7, 10])
def test_the_queue_forgets_its_oldest_keys_first(count):
    queue = unit_vectors(0, 10, 3).astype(np.float32)
    oldest_first = collections.deque(queue.copy(), maxlen=10)
    pointer = fill = jnp.zeros((), jnp.int32)
    enqueue = jax.jit(moco.enqueue)
    for step in range(12):
        keys = unit_vectors(step + 1, count, 3).astype(np.float32)
        queue, pointer, fill = enqueue(queue, pointer, fill, keys)
        oldest_first.extend(keys)
        np.testing.assert_array_equal(np.roll(queue, -int(pointer), 0), np.stack(oldest_first))
        assert int(fill) == min(count * (step + 1), 10)


def test_momentum_update_follows_equation_2():
    rng = np.random.default_rng(0)
    keys = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    queries = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    with jax.enable_x64(True):
        found = moco.momentum_update(*jax.tree.map(jnp.asarray, (keys, queries)), 0.99)
    for name in keys:
        expected = 0.99 * keys[name] + 0.01 * queries[name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_momentum_update_leaves_equal_weights_bit_identical():
    weights = jax.random.normal(jax.random.key(0), (10_000,))
    for momentum in (0.9, 0.99, 0.999):
        found = moco.momentum_update(weights, weights, momentum)
        np.testing.assert_array_equal(found, weights)
        # The other form of the equation would not do.
        assert (momentum * weights + (1 - momentum) * weights != weights).any()


def test_unshuffle_brings_every_key_back_to_its_slot():
    keys = np.arange(20.0, dtype=np.float32).reshape(10, 2)
    permutation = np.random.default_rng(0).permutation(10)
    assert (permutation[permutation] != np.arange(10)).any()  # not its own inverse
    found = moco.unshuffle(jnp.asarray(keys[permutation]), jnp.asarray(permutation))
    np.testing.assert_array_equal(found, keys)


def planned(settings, seed=0, step=0):
    """What a batch of 1200 x 900 px images shows; its rows are 100, 101, ..."""
    rows = np.arange(100, 100 + settings.batch_size)
    sizes = np.tile([1200, 900], (settings.batch_size, 1))
    return moco.plan_batch(settings, seed, step, rows, sizes)


@pytest.mark.parametrize("block", [4, 16, 64])
def test_keys_are_shuffled_within_their_block_alone(block):
    found = planned(settings_of(batch_size=64, shuffle_block=block))["key_slots"]
    blocks = found.reshape(-1, block)
    np.testing.assert_array_equal(np.sort(blocks, 1), np.arange(64).reshape(-1, block))
    assert (found != np.arange(64)).any()
    within = blocks - blocks.min(1, keepdims=True)
    assert block == 64 or (within != within[0]).any()


def test_the_shuffle_follows_the_seed_and_the_step():
    settings = settings_of(batch_size=64, shuffle_block=64)

    def permutation(seed, step):
        return tuple(planned(settings, seed, step)["key_slots"])

    assert permutation(0, 0) == permutation(0, 0)
    assert len({permutation(seed, step) for seed in (0, 1) for step in range(4)}) == 8


def test_a_batch_shows_each_example_as_a_query_and_as_a_key():
    made = planned(settings_of(batch_size=64, shuffle_block=64))
    np.testing.assert_array_equal(made["query"].rows, np.arange(100, 164))
    np.testing.assert_array_equal(made["key"].rows, 100 + made["key_slots"])


def test_shuffling_changes_no_view():
    some, other = (
        planned(settings_of(batch_size=64, shuffle_block=block), step=3) for block in (64, 16)
    )
    assert (some["key_slots"] != other["key_slots"]).any()
    np.testing.assert_array_equal(some["query"].boxes, other["query"].boxes)
    by_slot = [made["key"].boxes[np.argsort(made["key_slots"])] for made in (some, other)]
    np.testing.assert_array_equal(*by_slot)


def test_crops_differ_by_slot_step_seed_and_view():
    settings = settings_of(batch_size=64, shuffle_block=64)
    boxes = [
        planned(settings, seed, step)[view].boxes
        for seed in (0, 1)
        for step in (0, 1)
        for view in ("query", "key")
    ]
    draws = np.concatenate(boxes)
    assert len(np.unique(draws, axis=0)) == len(draws)


def test_a_shuffle_block_of_zero_is_the_whole_batch():
    assert settings_of().shuffle_block == 16
    stage = config.Stage(batch_size=16, moco=config.MoCo(shuffle_block=8))
    assert moco.make_settings(stage, ResNet(), 3).shuffle_block == 8


def fresh_state(settings, channels=3):
    pixel = np.full(channels, 0.5, np.float32)
    backbone = init_backbone(settings.model, jax.random.key(0), pixel, pixel)
    return moco.init(settings, jax.random.key(1), backbone)


@pytest.mark.parametrize("trainable", ["all", "batch_norm"])
def test_what_trains_is_everything_or_batch_norm_and_the_head(trainable):
    model = ResNet("resnet50", 4)
    kernel, pair = {"kernel": 0}, {"scale": 0, "bias": 0}
    dense = {"kernel": 0, "bias": 0}
    params = {
        "backbone": {"conv1": kernel, "bn1": pair, "layer1_0_downsample_bn": pair},
        "head": {"fc1": dense, "fc2": dense},
    }
    trained, frozen = moco.split_trainable(params, trainable)
    convolutions = {("backbone", "conv1", "kernel")}
    assert set(frozen) == (convolutions if trainable == "batch_norm" else set())
    assert len(trained) + len(frozen) == 9
    assert not set(trained) & set(frozen)

    settings = settings_of(model=model, trainable=trainable)
    backbone = abstract_backbone(model, 3)
    state = jax.eval_shape(lambda b: moco.init(settings, jax.random.key(0), b), backbone)
    assert len(jax.tree.leaves(state.opt_state)) == (2 * 53 + 4 if frozen else 3 * 53 + 4)


def test_a_fresh_state_copies_the_query_and_has_an_empty_queue_of_unit_vectors(monkeypatch):
    monkeypatch.setitem(resnet.ARCHITECTURES, "fresh", (False, (1,)))
    state = fresh_state(settings_of(model=ResNet("fresh", 4, "small")))
    query = {"backbone": state.backbone.params, "head": state.head}
    jax.tree.map(np.testing.assert_array_equal, state.key_params, query)
    jax.tree.map(np.testing.assert_array_equal, state.key_batch_stats, state.backbone.batch_stats)
    np.testing.assert_allclose(np.linalg.norm(state.queue, axis=1), np.ones(20), rtol=1e-6)
    assert len(np.unique(state.queue)) == state.queue.size
    assert (int(state.step), int(state.queue_pointer), int(state.queue_fill)) == (0, 0, 0)
    # Both are donated with the state: one buffer in two places would be an error there.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((query, state.key_params))]
    assert len(set(pointers)) == len(pointers)


def numpy_sgd(param, gradients, rates, decay, momentum):
    """Coupled weight decay, then momentum, then the rate, as torch.optim.SGD."""
    buffer = np.zeros_like(param)
    for gradient, rate in zip(gradients, rates, strict=True):
        buffer = momentum * buffer + gradient + decay * param
        param = param - rate * buffer
    return param


def test_the_optimizer_is_sgd_with_coupled_decay_and_momentum():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=6), rng.normal(size=(4, 6))
    rates = [0.1, 0.5, 0.0, 0.3]
    with jax.enable_x64(True):
        optimizer = settings_of(weight_decay=0.02, sgd_momentum=0.8).optimizer
        param, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
        for gradient, rate in zip(gradients, rates, strict=True):
            update, state = optimizer.update(jnp.asarray(gradient), state, param)
            param = param - rate * update
    expected = numpy_sgd(start, gradients, rates, 0.02, 0.8)
    np.testing.assert_allclose(param, expected, rtol=1e-12)


def make_prepared(settings):
    """Every example's view, in the order of slots, distorted and normalised."""

    def prepared(rng, step, images, view):
        def one(slot, image):
            draws = views.view_draws(rng, step, slot, view)
            return views.distort(draws, image, settings.policy, jnp.float64)

        return (jax.vmap(one)(jnp.arange(len(images)), images) - 0.5) / 0.5

    return jit_once(prepared)


def make_reference(settings, groups):
    """Encoding and loss of whole batches on one device, each group by itself."""
    model = settings.model.clone(layout=resnet.GroupLayout())

    def encode(params, batch_stats, images):
        def one_group(images):
            features, updates = model.apply(
                {"params": params["backbone"], "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            embeddings = settings.head.apply({"params": params["head"]}, features)
            lengths = jnp.sqrt((embeddings**2).sum(1, keepdims=True))
            return embeddings / lengths, updates["batch_stats"]

        grouped = images.reshape(groups, -1, *images.shape[1:])
        embeddings, updates = jax.vmap(one_group)(grouped)
        return embeddings.reshape(len(images), -1), jax.tree.map(lambda x: x.mean(0), updates)

    def loss_fn(params, batch_stats, images, positives, queue):
        queries, updated = encode(params, batch_stats, images)
        everyone = queries @ jnp.concatenate([positives, queue]).T / settings.temperature
        others = everyone[:, len(positives) :]
        logits = jnp.concatenate([jnp.diag(everyone)[:, None], others], 1)
        labels = jnp.zeros(len(queries), jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    return jit_once(encode), jit_once(jax.value_and_grad(loss_fn, has_aux=True))


def layout_of(devices, groups, in_turn):
    return dataclasses.replace(devices.group_layout(groups), in_turn=in_turn)


def mapped_step(settings, devices):
    return devices.map(
        lambda state, batch, rate: moco.train_step(settings, state, batch, rate),
        (False, True, False),
        sharded_out=False,
        donate=False,
    )


@pytest.mark.parametrize(("count", "in_turn"), [(2, False), (1, True)])
def test_three_steps_equal_their_parts_put_together_by_hand(monkeypatch, count, in_turn):
    """Two groups, views flipped at random, a queue that wraps, in float64."""
    monkeypatch.setitem(resnet.ARCHITECTURES, "steps", (False, (1,)))
    devices, rates = make_devices(count), [0.5, 0.3, 0.1]
    images = np.random.default_rng(0).integers(256, size=(3, 2, 8, 6, 6, 3), dtype=np.uint8)
    with jax.enable_x64(True):
        settings = settings_of(
            model=ResNet("steps", 4, "small", 1, jnp.float64, layout_of(devices, 2, in_turn)),
            batch_size=8,
            shuffle_block=8,
            policy=FLIPS,
            momentum=0.9,
            weight_decay=0.01,
        )
        fresh = fresh_state(settings)
        state, rng = devices.replicate(fresh), fresh.rng
        prepared = make_prepared(settings)
        encode, value_and_grad = make_reference(settings, 2)
        step = mapped_step(settings, devices)
        query = jax.device_get({"backbone": state.backbone.params, "head": state.head})
        key, buffers = query, jax.tree.map(np.zeros_like, query)
        query_stats = key_stats = jax.device_get(state.backbone.batch_stats)
        queue = collections.deque(np.asarray(state.queue), maxlen=20)
        queue_images = collections.deque([-1] * 20, maxlen=20)
        shown = [np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32) - 3 * index for index in range(3)]
        for index, (query_images, key_images) in enumerate(images):
            permutation = np.random.default_rng(index).permutation(len(query_images))
            query_views = prepared(rng, index, query_images, moco.QUERY)
            key_views = np.asarray(prepared(rng, index, key_images, moco.KEY))
            batch = {
                "query": query_images,
                "key": key_images[permutation],
                "images": shown[index],
                "key_slots": permutation.astype(np.int32),
            }
            state, metrics = step(state, devices.shard(batch), np.float64(rates[index]))

            key = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * q, key, query)
            shuffled, key_stats = jax.device_get(encode(key, key_stats, key_views[permutation]))
            keys = shuffled[np.argsort(permutation)]
            own = np.array([[image == other for other in queue_images] for image in shown[index]])
            np.testing.assert_allclose(metrics["own_keys"], own.sum(1).mean())
            np.testing.assert_allclose(metrics["queue_fill"], min(8 * index, 20) / 20)
            (loss, query_stats), gradient = jax.device_get(
                value_and_grad(query, query_stats, query_views, keys, np.stack(queue))
            )
            buffers = jax.tree.map(lambda b, g, p: 0.9 * b + g + 0.01 * p, buffers, gradient, query)
            query = jax.tree.map(lambda p, b, rate=rates[index]: p - rate * b, query, buffers)
            queue.extend(keys)
            queue_images.extend(shown[index])
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)
            np.testing.assert_allclose(
                metrics["gradient_norm"],
                math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient))),
                rtol=1e-10,
            )
        assert metrics.keys() == set(moco.METRICS)
        assert (int(state.step), int(state.queue_pointer), int(state.queue_fill)) == (3, 4, 20)
        found = {
            "query": {"backbone": state.backbone.params, "head": state.head},
            "query_stats": state.backbone.batch_stats,
            "key": state.key_params,
            "key_stats": state.key_batch_stats,
            "queue": np.roll(state.queue, -4, 0),
        }
        np.testing.assert_array_equal(np.roll(state.queue_images, -4), queue_images)
        expected = {
            "query": query,
            "query_stats": query_stats,
            "key": key,
            "key_stats": key_stats,
            "queue": np.stack(queue),
        }
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float64)}
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected
        )


@pytest.mark.parametrize(
    ("count", "mapping", "trainable", "masked"),
    [
        (1, "shard_map", "all", False),
        (1, "shard_map", "batch_norm", True),
        (2, "pmap", "all", True),
    ],
)
def test_groups_that_come_one_after_another_change_no_number(
    monkeypatch, count, mapping, trainable, masked
):
    monkeypatch.setitem(resnet.ARCHITECTURES, "turns", (False, (1,)))
    devices, rng = make_devices(count, mapping), np.random.default_rng(0)
    images = rng.integers(256, size=(2, 2, 16, 6, 6, 3), dtype=np.uint8)
    shown = rng.integers(6, size=(2, 16), dtype=np.int32)  # own keys in the queue, and the batch

    def trained(in_turn):
        settings = settings_of(
            model=ResNet("turns", 8, "small", 1, jnp.float64, layout_of(devices, 4, in_turn)),
            policy=FLIPS,
            trainable=trainable,
            mask_own_keys=masked,
        )
        state, metrics = devices.replicate(fresh_state(settings)), []
        step = mapped_step(settings, devices)
        for index, (query, key) in enumerate(images):
            slots = np.random.default_rng(index).permutation(16).astype(np.int32)
            batch = {"query": query, "key": key[slots], "images": shown[index], "key_slots": slots}
            state, found = step(state, devices.shard(batch), np.float64(0.3))
            metrics.append(found)
        return jax.device_get((state.replace(rng=None), metrics))

    with jax.enable_x64(True):
        at_once, in_turn = trained(False), trained(True)
    last = at_once[1][1]
    assert min(last["own_keys"], last["embedding_std"]) > 0.01
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), in_turn, at_once
    )


@pytest.mark.parametrize(("count", "groups", "loops"), [(1, 4, 2), (1, 1, 0), (8, 4, 0)])
def test_only_several_groups_on_a_device_need_a_loop(monkeypatch, count, groups, loops):
    monkeypatch.setitem(resnet.ARCHITECTURES, "turns", (False, (1,)))
    devices = make_devices(count)

    def count_loops(in_turn):
        layout = layout_of(devices, groups, in_turn)
        model = ResNet("turns", 4, "small", 1, layout=layout)
        settings = settings_of(model=model, policy=policies.POLICIES["crop"])
        return str(training.traced_step(moco, settings, devices, 3).jaxpr).count(" scan[")

    assert count_loops(True) - count_loops(False) == loops  # convolutions have some of their own


def test_groups_come_one_after_another_on_a_tpu_alone():
    """As a compiler for TPUs sees it; nothing else of such devices is needed."""
    mesh = mock.Mock(size=2, devices=np.array([mock.Mock(platform="tpu")] * 2))
    assert Devices(mesh).group_layout(8).turns == 4
    assert Devices(mesh).group_layout(1).turns == 1
    assert make_devices(2).group_layout(8).turns == 1


def rates(steps, **fields):
    optimizer = config.Optimizer(learning_rate=0.3, **fields)
    return [training.learning_rate(optimizer, step, steps) for step in range(steps)]


def test_the_learning_rate_falls_along_the_papers_cosine():
    found = rates(50)
    expected = 0.15 * (1 + np.cos(np.pi * np.arange(50) / 50))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[0] == 0.3
    # One step before the zero of the cosine.
    np.testing.assert_allclose(found[-1], 0.3 * math.sin(math.pi / 100) ** 2, rtol=1e-9)


def test_warm_up_climbs_in_equal_steps_and_the_cosine_takes_the_rest():
    found = rates(12, warmup_steps=4)
    np.testing.assert_allclose(found[:4], [0.075, 0.15, 0.225, 0.3], rtol=1e-12)
    np.testing.assert_allclose(found[4:], rates(8), rtol=1e-12)


def test_a_constant_rate_stays_at_its_peak_after_the_warm_up():
    assert rates(6, schedule="constant", warmup_steps=2) == [0.15, *[0.3] * 5]


def test_a_warm_up_longer_than_the_stage_is_cut_off():
    np.testing.assert_allclose(rates(3, warmup_steps=10), [0.03, 0.06, 0.09], rtol=1e-12)
