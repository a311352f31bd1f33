"""Batch norm over groups: the closed form per group, wherever the groups lie."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hpt_jax import bn_statistics
from hpt_jax.models import resnet
from hpt_jax.models.backbone import init_backbone
from hpt_jax.models.batch_norm import BatchNorm, GroupLayout
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import AXIS, make_devices

SHAPE = (16, 3, 2, 5)
LOSS_WEIGHTS = np.random.default_rng(2).normal(size=SHAPE)


def activations(seed=0, shape=SHAPE):
    """Of a mean and spread of its own in every example."""
    rng = np.random.default_rng(seed)
    each = (shape[0], 1, 1, shape[-1])
    return rng.normal(size=shape) * rng.uniform(0.5, 3, each) + rng.normal(size=each)


def variables(seed=1):
    rng = np.random.default_rng(seed)
    channels = SHAPE[-1]
    return {
        "params": {"scale": rng.uniform(0.5, 2, channels), "bias": rng.normal(size=channels)},
        "batch_stats": {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 2, channels)},
    }


def trained(module, given, x):
    """Output and updated running statistics."""
    out, updates = jax.jit(lambda v, x: module.apply(v, x, True, mutable=["batch_stats"]))(given, x)
    return out, updates["batch_stats"]


def by_hand(x, given, groups, momentum):
    """Output, running mean and running variance, one group after another."""
    outputs, means, variances = [], [], []
    for part in np.split(x, groups):
        rows = part.reshape(-1, x.shape[-1])
        count = len(rows)
        mean = rows.sum(0) / count
        squares = ((rows - mean) ** 2).sum(0)
        normal = (part - mean) / np.sqrt(squares / count + 1e-5)
        outputs.append(normal * given["params"]["scale"] + given["params"]["bias"])
        means.append(mean)
        variances.append(squares / (count - 1))
    old = given["batch_stats"]
    return (
        np.concatenate(outputs),
        (1 - momentum) * old["mean"] + momentum * np.mean(means, 0),
        (1 - momentum) * old["var"] + momentum * np.mean(variances, 0),
    )


@pytest.mark.parametrize(("groups", "momentum"), [(1, 0.1), (2, 0.1), (4, 0.1), (8, 0.3), (4, 1.0)])
def test_each_group_is_normalised_by_itself_and_their_statistics_are_averaged(groups, momentum):
    x, given = activations(), variables()
    with jax.enable_x64(True):
        out, kept = trained(BatchNorm(GroupLayout(groups), momentum), given, x)
    expected, mean, var = by_hand(x, given, groups, momentum)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kept["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(kept["var"], var, rtol=1e-12)
    assert out.dtype == kept["mean"].dtype == kept["var"].dtype == jnp.float64


def test_momentum_of_one_keeps_the_batchs_own_statistics():
    x, given = activations(), variables()
    with jax.enable_x64(True):
        _, kept = trained(BatchNorm(momentum=1.0), given, x)
    rows = x.reshape(-1, SHAPE[-1])
    np.testing.assert_allclose(kept["mean"], rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(kept["var"], rows.var(0, ddof=1), rtol=1e-12)


def test_training_leaves_the_arrays_it_is_given_as_they_are():
    x, given = activations(), variables()
    with jax.enable_x64(True):
        BatchNorm().apply(given, x, True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, given, variables())


def test_evaluation_uses_the_running_statistics_whatever_the_groups():
    x, given = activations(), variables()
    with jax.enable_x64(True):
        # Seven rows lie in no two groups, and no device need be mapped.
        out = BatchNorm(GroupLayout(2, AXIS)).apply(given, x[:7], False)
    kept, own = given["batch_stats"], given["params"]
    expected = (x[:7] - kept["mean"]) / np.sqrt(kept["var"] + 1e-5) * own["scale"] + own["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_normalised_with_float32_statistics():
    x = jnp.asarray(activations(), jnp.bfloat16)
    given = jax.tree.map(jnp.float32, variables())
    out, kept = trained(BatchNorm(GroupLayout(4)), given, x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.float32)}
    expected, mean, var = by_hand(np.asarray(x, np.float64), variables(), 4, 0.1)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8, atol=1e-5)
    # Statistics rounded to bfloat16 would be a thousand times further off.
    np.testing.assert_allclose(kept["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept["var"], var, rtol=1e-5)


def test_channels_that_are_constant_stay_finite():
    constants = np.linspace(900, 1100, 64, dtype=np.float32)
    x = np.broadcast_to(constants, (4, 3, 3, 64))
    zeros, ones = np.zeros(64, np.float32), np.ones(64, np.float32)
    given = {
        "params": {"scale": ones, "bias": zeros},
        "batch_stats": {"mean": zeros, "var": ones},
    }
    out, kept = trained(BatchNorm(), given, x)
    assert np.isfinite(out).all()
    assert (np.asarray(kept["var"]) > 0).all()


def losses_program(layout):
    """One device's part of a loss that every activation of its group has a say in."""

    def program(x, weights, given):
        def loss_fn(params, x):
            out, updates = BatchNorm(layout).apply(
                {**given, "params": params}, x, True, mutable=["batch_stats"]
            )
            return (jnp.sin(out) * weights).sum((1, 2, 3)).mean(), (out, updates)

        (loss, (out, updates)), (of_params, of_x) = jax.value_and_grad(
            loss_fn, (0, 1), has_aux=True
        )(given["params"], x)
        same = lax.pmean((loss, updates["batch_stats"], of_params), AXIS)
        # The gradient of the mean over devices, as the train step takes it.
        return out, of_x / lax.axis_size(AXIS), jax.tree.map(lambda leaf: leaf[None], same)

    return program


@functools.cache
def results_of(devices, groups):
    """Of the one problem that the tests below share, in float64."""
    x, given = activations(), variables()
    program = devices.map(
        losses_program(devices.group_layout(groups)),
        (True, True, False),
        sharded_out=True,
        donate=False,
    )
    with jax.enable_x64(True):
        return devices.gather(program(devices.shard(x), devices.shard(LOSS_WEIGHTS), given))


@pytest.mark.parametrize(
    ("count", "groups", "mapping"),
    [
        (2, 1, "shard_map"),
        (2, 1, "pmap"),
        (4, 1, "shard_map"),
        (4, 2, "shard_map"),
        (4, 2, "pmap"),
        (2, 4, "shard_map"),
        (8, 4, "shard_map"),
    ],
)
def test_groups_give_the_same_numbers_on_any_number_of_devices(count, groups, mapping):
    x, given = activations(), variables()
    out, of_x, same = results_of(make_devices(count, mapping), groups)
    one = results_of(make_devices(1), groups)
    np.testing.assert_allclose(out, one[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_x, one[1], rtol=0, atol=1e-12)
    assert np.abs(of_x).max() > 1e-3
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(
            found, np.broadcast_to(expected, found.shape), rtol=0, atol=1e-12
        ),
        same,
        one[2],
    )
    _, statistics, _ = same
    expected, mean, var = by_hand(x, given, groups, 0.1)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics["mean"][0], mean, rtol=1e-12)
    np.testing.assert_allclose(statistics["var"][0], var, rtol=1e-12)


def test_gradients_reach_every_example_of_a_group_and_no_other():
    """Central differences of the whole loss, two groups over four devices."""
    x, given = activations(), variables()

    def loss(x):
        return (np.sin(by_hand(x, given, 2, 0.1)[0]) * LOSS_WEIGHTS).sum((1, 2, 3)).mean()

    _, of_x, _ = results_of(make_devices(4), 2)
    step = 1e-6
    for index in [(0, 0, 0, 0), (7, 2, 1, 4), (8, 1, 1, 2), (15, 2, 1, 4)]:
        nudge = np.zeros(SHAPE)
        nudge[index] = step
        difference = (loss(x + nudge) - loss(x - nudge)) / (2 * step)
        np.testing.assert_allclose(of_x[index], difference, rtol=1e-6, atol=1e-9)


def test_reestimated_statistics_are_the_average_over_batches(monkeypatch):
    monkeypatch.setitem(resnet.ARCHITECTURES, "one_stage", (False, (1,)))
    batches = np.random.default_rng(0).integers(256, size=(3, 8, 6, 6, 3), dtype=np.uint8)
    devices = make_devices(2)
    with jax.enable_x64(True):
        model = ResNet("one_stage", 4, "small", 1, jnp.float64, devices.group_layout(4))
        pixel = np.array([0.2, 0.5, 0.7], np.float32)
        backbone = init_backbone(model, jax.random.key(0), pixel, pixel / 2)
        settings = bn_statistics.Settings(model, 6, 0.875, 8)
        start = bn_statistics.init(settings, jax.random.key(1), backbone)
        step = devices.map(
            lambda state, batch: bn_statistics.train_step(settings, state, batch, 0.0)[0],
            (False, True),
            sharded_out=False,
            donate=False,
        )
        state = start
        for batch in batches:
            state = step(state, devices.shard({"image": batch}))
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, state.backbone.params, backbone.params)

    # The first batch norm sees the stem alone, which is linear.
    kernel = np.asarray(backbone.params["conv1"]["kernel"])
    groups = ((batches / 255 - pixel) / (pixel / 2)).reshape(12, 2, 6, 6, 3)
    padded = np.pad(groups, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    rows = np.einsum("gbhwcij,ijco->gbhwo", patches, kernel).reshape(12, -1, 4)
    found = state.backbone.batch_stats["bn1"]
    np.testing.assert_allclose(found["mean"], rows.mean(1).mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["var"], rows.var(1, ddof=1).mean(0), rtol=1e-9)
