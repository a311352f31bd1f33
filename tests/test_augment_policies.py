"""Promises of the policies and of a view's randomness."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from scipy import stats

from hpt_jax.augment import photometric, policies, views
from hpt_jax.augment.policies import POLICIES, Policy

MOCO = Policy()
PROBABILITIES = {
    "jitter": "jitter_probability",
    "grayscale": "grayscale_probability",
    "blur": "blur_probability",
    "flip": "flip_probability",
}


def only(name, probability):
    """MoCo-v2's policy with all but one operation switched off."""
    off = dict.fromkeys(PROBABILITIES.values(), 0.0)
    return Policy(**{**off, PROBABILITIES[name]: probability})


@functools.partial(jax.jit, static_argnums=(2, 3))
def distorted(draws, images, policy, dtype=jnp.float32):
    return jax.vmap(lambda d, image: views.distort(d, image, policy, dtype))(draws, images)


@jax.jit
def draws_of(seed, step, slots, view):
    rng = jax.random.key(seed)
    return jax.vmap(lambda slot: views.view_draws(rng, step, slot, view))(slots)


def example(seed, count, side=6, channels=3):
    rng = np.random.default_rng(seed)
    draws = rng.random((count, views.DRAWS), np.float32)
    return draws, rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def test_moco_v2_has_the_papers_numbers():
    assert dataclasses.asdict(POLICIES["moco_v2"]) == {
        "crop_scale": (0.2, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "jitter_probability": 0.8,
        "grayscale_probability": 0.2,
        "blur_sigma": (0.1, 2.0),
        "blur_probability": 0.5,
        "flip_probability": 0.5,
    }


def test_every_policy_is_moco_v2_without_some_operations():
    operations = {
        "no_grayscale": {"jitter", "blur", "flip"},
        "no_color": {"grayscale", "blur", "flip"},
        "crop_blur": {"blur"},
        "crop": set(),
    }
    assert POLICIES.keys() == operations.keys() | {"moco_v2", "faithful"}
    for name, kept in operations.items():
        off = {field: 0.0 for op, field in PROBABILITIES.items() if op not in kept}
        assert POLICIES[name] == dataclasses.replace(MOCO, **off)
    assert POLICIES["faithful"] == dataclasses.replace(MOCO, hue=0.4)


def test_three_channels_keep_the_whole_policy():
    assert policies.for_channels(MOCO, 3) == (MOCO, ())


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_switch_off_what_needs_rgb_and_name_it(channels):
    policy, names = policies.for_channels(MOCO, channels)
    off = {"saturation": 0.0, "hue": 0.0, "grayscale_probability": 0.0}
    assert policy == dataclasses.replace(MOCO, **off)
    assert names == ("saturation", "hue", "grayscale")
    for already_off, expected in [
        ({"hue": 0.0}, ("saturation", "grayscale")),
        ({"jitter_probability": 0.0}, ("grayscale",)),
        ({"grayscale_probability": 0.0, "saturation": 0.0}, ("hue",)),
    ]:
        _, names = policies.for_channels(dataclasses.replace(MOCO, **already_off), channels)
        assert names == expected


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels_are_jittered_blurred_and_flipped(channels):
    policy, _ = policies.for_channels(dataclasses.replace(MOCO, jitter_probability=1.0), channels)
    draws, images = example(channels, 16, channels=channels)
    made = np.asarray(distorted(draws, images, policy, jnp.float32))
    assert made.shape == images.shape
    assert (made >= 0).all()
    assert (made <= 1).all()
    assert (np.abs(made - images / 255).max(axis=(1, 2, 3)) > 0.01).all()


def operation_alone(name, draws, image):
    """The named operation on a float image, with amounts from the view's draws."""
    if name == "jitter":
        return photometric.color_jitter(draws[views._JITTER], image, MOCO)
    if name == "blur":
        return photometric.gaussian_blur(image, 0.1 + 1.9 * draws[views._BLUR_SIGMA])
    if name == "grayscale":
        return photometric.to_grayscale(image)
    return image[:, ::-1]


@pytest.mark.parametrize("name", PROBABILITIES)
def test_an_operation_happens_as_often_as_its_probability_says(name):
    draws, images = example(3, 600)
    draws[:, views._BLUR_SIGMA] = 0.5 + draws[:, views._BLUR_SIGMA] / 2  # blurs are seen
    plain = np.float32(images) / 255
    done = jax.jit(jax.vmap(functools.partial(operation_alone, name)))(draws, plain)
    assert np.abs(done - plain).max(axis=(1, 2, 3)).min() > 1e-4

    never = distorted(draws, images, only(name, 0.0), jnp.float32)
    np.testing.assert_allclose(never, plain, rtol=1e-6)
    always = distorted(draws, images, only(name, 1.0), jnp.float32)
    np.testing.assert_allclose(always, done, atol=3e-6)
    sometimes = np.asarray(distorted(draws, images, only(name, 0.3), jnp.float32))
    happened = np.abs(sometimes - plain).max(axis=(1, 2, 3)) > 1e-5
    expected = np.where(happened[:, None, None, None], done, plain)
    np.testing.assert_allclose(sometimes, expected, atol=3e-6)
    assert stats.binomtest(int(happened.sum()), len(happened), 0.3).pvalue > 1e-3


def test_jitter_comes_before_grayscale_and_both_before_blur_and_flip():
    certain = dict.fromkeys(PROBABILITIES.values(), 1.0)
    draws, images = example(4, 24)
    ours = distorted(draws, images, Policy(**certain), jnp.float32)

    def one(draw, image):
        for name in PROBABILITIES:
            image = operation_alone(name, draw, image)
        return image

    expected = jax.jit(jax.vmap(one))(draws, np.float32(images) / 255)
    np.testing.assert_allclose(ours, expected, atol=3e-6)
    assert np.ptp(ours, axis=-1).max() == 0


def test_switching_an_operation_off_leaves_the_draws_of_the_others():
    # The blur of crop_blur is that of moco_v2 wherever that neither jitters nor drops colour.
    draws, images = example(5, 12)
    draws[:, [views._JITTER_YES, views._GRAYSCALE_YES]] = 0.99
    full = distorted(draws, images, MOCO, jnp.float32)
    less = distorted(draws, images, POLICIES["crop_blur"], jnp.float32)
    unflipped = draws[:, views._FLIP_YES] >= MOCO.flip_probability
    assert 0 < unflipped.sum() < 12
    expected = np.where(unflipped[:, None, None, None], full, full[:, :, ::-1])
    np.testing.assert_allclose(less, expected, atol=1e-6)


def test_draws_are_uniform_and_those_of_different_operations_unrelated():
    draws = np.asarray(draws_of(0, 7, np.arange(4000), 0))
    assert draws.shape == (4000, views.DRAWS)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    correlations = np.corrcoef(draws.T) - np.eye(views.DRAWS)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_every_operation_reads_its_own_draws():
    used = list(range(views.DRAWS)[views._JITTER])
    for part in ("_JITTER_YES", "_GRAYSCALE_YES", "_BLUR_YES", "_BLUR_SIGMA", "_FLIP_YES"):
        used.append(getattr(views, part))
    assert sorted(used) == list(range(views.DRAWS))
    assert len(range(views.DRAWS)[views._JITTER]) == photometric.JITTER_DRAWS


def test_another_seed_step_slot_or_view_gives_other_draws():
    slots = np.array([0, 1, 2, 255, 256, 2**24 - 1])
    vectors = [
        np.asarray(draws_of(seed, step, slots, view))
        for seed in (0, 1)
        for step in (0, 1, 2)
        for view in (0, 1, 127)
    ]
    vectors = np.concatenate(vectors)
    assert len(np.unique(vectors, axis=0)) == len(vectors) == 2 * 3 * 3 * 6
    # Not even one number is shared but by chance.
    assert np.unique(vectors).size > 0.999 * vectors.size


@jax.jit
def views_of(slots, images):
    rng = jax.random.key(3)

    def one(slot, image):
        draws = views.view_draws(rng, 11, slot, 1)
        return views.distort(draws, image, MOCO)

    return jax.vmap(one)(slots, images)


def test_a_view_is_the_same_in_any_place_of_any_batch():
    rng = np.random.default_rng(6)
    slots = np.arange(100, 112)
    images = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    made = views_of(slots, images)
    some = np.array([7, 0, 11, 4, 2])
    np.testing.assert_allclose(views_of(slots[some], images[some]), made[some], atol=1e-6)
    others = np.asarray(views_of(slots[some] + 1, images[some]))
    assert (np.abs(others - made[some]) > 1e-3).any(axis=(1, 2, 3)).all()


def test_double_precision_goes_through_and_changes_no_view():
    draws, images = example(8, 12)
    single = distorted(draws, images, MOCO, jnp.float32)
    with jax.enable_x64(True):
        double = distorted(draws, images, MOCO, jnp.float64)
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, atol=1e-5)


def test_the_blur_of_a_double_view_is_exact():
    draws, images = example(9, 12)
    with jax.enable_x64(True):
        made = distorted(draws, images, only("blur", 1.0), jnp.float64)
    low, high = MOCO.blur_sigma
    for draw, image, view in zip(draws, images, made, strict=True):
        sigma = low + (high - low) * float(draw[views._BLUR_SIGMA])
        expected = scipy.ndimage.gaussian_filter(
            image / 255, (sigma, sigma, 0), mode="mirror", radius=16
        )
        np.testing.assert_allclose(view, expected, atol=1e-12)
