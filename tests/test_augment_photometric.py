"""Promises of colour jitter, grayscale, blur and normalisation."""

import colorsys
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance
from scipy import stats

from hpt_jax.augment import photometric
from hpt_jax.augment.policies import Policy

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
ADJUST = [getattr(photometric, f"adjust_{name}") for name in OPERATIONS]
FACTORS = np.float32([0, 0.3, 0.6, 1, 1.4, 1.9])


@functools.partial(jax.jit, static_argnums=0)
def adjusted(operation, image, factors):
    return jax.vmap(ADJUST[OPERATIONS.index(operation)], (None, 0))(image, factors)


@functools.partial(jax.jit, static_argnums=2)
def jittered(draws, image, policy):
    return jax.vmap(lambda draw: photometric.color_jitter(draw, image, policy))(draws)


@jax.jit
def blurred(image, sigmas):
    return jax.vmap(photometric.gaussian_blur, (None, 0))(image, sigmas)


def colourful(seed, *shape):
    """u8 noise that leans to green and is darker on the left, so that no average is neutral."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.3, 1, shape[1])[:, None] * [0.6, 1.0, 0.3]
    return (rng.integers(0, 256, (*shape, 3)) * ramp).astype(np.uint8)


@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_a_blend_equals_pillows_enhancer_within_one_grey_level(operation, enhancer):
    pixels = colourful(0, 16, 20)
    ours = np.asarray(adjusted(operation, np.float32(pixels) / 255, FACTORS)) * 255
    for our, factor in zip(ours, FACTORS, strict=True):
        pillow = np.asarray(enhancer(Image.fromarray(pixels)).enhance(float(factor)), float)
        # Pillow truncates its result, and rounds the reference that it blends with.
        assert np.abs(our - pillow).max() <= 1 + abs(1 - factor) / 2 + 1e-3


def test_a_blend_equals_its_closed_form():
    image = np.float32(colourful(1, 5, 7)) / 255
    luma = image @ [0.299, 0.587, 0.114]
    references = {"brightness": 0.0, "contrast": luma.mean(), "saturation": luma[..., None]}
    for operation, reference in references.items():
        for our, factor in zip(adjusted(operation, image, FACTORS), FACTORS, strict=True):
            expected = np.clip(factor * image + (1 - factor) * reference, 0, 1)
            np.testing.assert_allclose(our, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 5])
def test_contrast_of_other_channels_blends_with_the_mean_of_all_values(channels):
    image = np.random.default_rng(channels).random((4, 6, channels), np.float32)
    ours = adjusted("contrast", image, FACTORS)
    for our, factor in zip(ours, FACTORS, strict=True):
        expected = np.clip(factor * image + (1 - factor) * image.mean(), 0, 1)
        np.testing.assert_allclose(our, expected, atol=1e-6)


def test_hue_turns_as_in_colorsys():
    levels = (0.0, 0.25, 0.6, 1.0)
    corners = list(itertools.product(levels, repeat=3))  # with all greys and all ties of maxima
    pixels = np.concatenate([corners, np.random.default_rng(2).random((64, 3))])
    turns = [-0.5, -0.37, -0.1, 0, 0.1, 0.25, 0.4, 0.5]
    ours = adjusted("hue", pixels.astype(np.float32)[None], np.float32(turns))
    for our, turn in zip(ours, turns, strict=True):
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
        expected = [colorsys.hsv_to_rgb((hue + turn) % 1, s, v) for hue, s, v in hsv]
        np.testing.assert_allclose(our[0], expected, atol=1e-5)


def test_grayscale_has_the_weights_of_itu_r_601_in_three_equal_channels():
    grey = photometric.to_grayscale(jnp.eye(3)[None])
    expected = np.repeat([[[0.299], [0.587], [0.114]]], 3, axis=2)
    np.testing.assert_allclose(grey, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 3), (32, 9, 1), (1, 17, 5)])
def test_blur_equals_scipys_gaussian(shape):
    image = np.random.default_rng(3).random(shape, np.float32)
    sigmas = np.float32([0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
    for our, sigma in zip(blurred(image, sigmas), sigmas, strict=True):
        expected = scipy.ndimage.gaussian_filter(
            image.astype(float), (sigma, sigma, 0), mode="mirror", truncate=12
        )
        np.testing.assert_allclose(our, expected, atol=3e-6)


def test_blur_of_sigma_zero_is_the_image_itself():
    image = np.random.default_rng(4).random((8, 8, 3), np.float32)
    ours = blurred(image, np.float32([0, 1e-30, 1e-5, 0, 1, 2]))
    np.testing.assert_array_equal(ours[0], image)
    np.testing.assert_array_equal(ours[3], image)
    # Nor is there anything in a vanishing sigma that could become NaN.
    np.testing.assert_allclose(ours[1:3], [image, image], atol=1e-6)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    image = np.random.default_rng(5).random((4, 5, 3), np.float32)
    mean, std = np.float32([0.1, 0.5, 0.9]), np.float32([0.5, 0.25, 2])
    expected = np.stack([(image[..., c] - mean[c]) / std[c] for c in range(3)], axis=-1)
    np.testing.assert_allclose(photometric.normalize(image, mean, std), expected, rtol=1e-6)


@jax.jit
def one_after_another(image, order, factors):
    """The four adjustments in the given order; -1 in it stands for none."""
    for operation in order:
        branches = [lambda x, f: x, *ADJUST]
        image = jax.lax.switch(operation + 1, branches, image, factors[operation])
    return image


STRONG = Policy(brightness=0.7, contrast=1.6, saturation=0.9, hue=0.5)


@pytest.mark.parametrize(
    "active", [OPERATIONS, OPERATIONS[:3], ("brightness", "contrast", "hue"), ("hue",), ()]
)
def test_jitter_applies_the_active_operations_in_the_order_of_their_places(active):
    strengths = {name: getattr(STRONG, name) if name in active else 0.0 for name in OPERATIONS}
    rng = np.random.default_rng(6)
    image = np.float32(colourful(7, 6, 6)) / 255
    orders = list(itertools.permutations(range(4)))
    draws = rng.random((len(orders), photometric.JITTER_DRAWS), np.float32)
    for draw, order in zip(draws, orders, strict=True):
        draw[4:][list(order)] = np.sort(draw[4:])
    ours = jittered(draws, image, Policy(**strengths))

    expected = []
    for draw, order in zip(draws, orders, strict=True):
        factors = []
        for amount, (name, strength) in zip(draw, strengths.items(), strict=False):
            low = -strength if name == "hue" else max(0, 1 - strength)
            high = strength if name == "hue" else 1 + strength
            factors.append(low + (high - low) * amount)
        kept = [i if OPERATIONS[i] in active else -1 for i in order]
        expected.append(one_after_another(image, np.int32(kept), np.float32(factors)))
    if len(active) == 4:  # else the test could not tell orders apart
        assert np.abs(np.array(expected)[1:] - expected[0]).max(axis=(1, 2, 3)).min() > 0.01
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_jitter_of_grey_images_applies_brightness_and_contrast_in_order():
    image = np.random.default_rng(8).random((5, 5, 1), np.float32)
    policy = Policy(saturation=0.0, hue=0.0)
    draws = np.full((2, photometric.JITTER_DRAWS), 0.9, np.float32)
    draws[:, 4:6] = [(0.2, 0.6), (0.6, 0.2)]
    ours = jittered(draws, image, policy)
    factor = 0.6 + 0.8 * 0.9

    def brighter(x):
        return np.clip(factor * x, 0, 1)

    def contrasted(x):
        return np.clip(factor * x + (1 - factor) * x.mean(), 0, 1)

    expected = [contrasted(brighter(image)), brighter(contrasted(image))]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_all_orders_are_equally_likely():
    image = np.float32(colourful(9, 6, 6)) / 255
    orders = list(itertools.permutations(range(4)))
    draws = np.random.default_rng(10).random((2400, photometric.JITTER_DRAWS), np.float32)
    amounts = np.float32([0.9, 0.8, 0.9, 0.7])
    draws[:, :4] = amounts
    low, high = np.array([0.6, 0.6, 0.6, -0.1]), np.array([1.4, 1.4, 1.4, 0.1])
    factors = np.float32(low + (high - low) * amounts)
    known = np.stack([one_after_another(image, np.int32(order), factors) for order in orders])
    apart = np.abs(known[:, None] - known).max(axis=(2, 3, 4)) + np.eye(24)
    assert apart.min() > 1e-4

    ours = np.asarray(jittered(draws, image, Policy()))
    distance = np.abs(ours[:, None] - known).max(axis=(2, 3, 4))
    assert distance.min(axis=1).max() < 1e-5
    counts = np.bincount(distance.argmin(axis=1), minlength=24)
    assert stats.chisquare(counts).pvalue > 1e-3


@jax.jit
def each_once(image):
    return (
        photometric.adjust_contrast(image, 0.3),
        photometric.adjust_hue(image, 0.2),
        photometric.gaussian_blur(image, 1.3),
    )


def test_operations_stay_in_double_precision():
    image = np.random.default_rng(11).random((9, 9, 3))
    with jax.enable_x64(True):
        contrasted, turned, blur = each_once(image)
    luma = image @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(contrasted, 0.3 * image + 0.7 * luma.mean(), rtol=1e-13)
    hue, saturation, value = colorsys.rgb_to_hsv(*image[0, 0])
    expected = colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value)
    np.testing.assert_allclose(turned[0, 0], expected, rtol=1e-12)
    expected = scipy.ndimage.gaussian_filter(image, (1.3, 1.3, 0), mode="mirror", truncate=12)
    np.testing.assert_allclose(blur, expected, rtol=1e-12)
