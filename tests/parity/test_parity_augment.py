"""Augmentations equal torchvision's and Pillow's, image by image and in distribution.

Torchvision works on float tensors by the formulas, and on Pillow's images in uint8, as the original
did: with those the difference is their rounding, and stated in grey levels.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import stats

from hpt_jax.augment import geometric, photometric, views
from hpt_jax.augment.policies import POLICIES, Policy
from hpt_jax.data import order

torch = pytest.importorskip("torch")
transforms = pytest.importorskip("torchvision.transforms")
from torchvision.transforms import functional as F  # noqa: E402

pytestmark = pytest.mark.torch

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
# Torchvision's grey of a float tensor has .2989 red; Pillow's, the original's and ours has .299.
LUMA = 1e-4


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """u8[height, width, 3]: two gradients of strong colours, a bright square, some noise."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width] / [[[height]], [[width]]]
    colors = rng.uniform(0, 255, (3, 3))
    image = colors[0] + down[..., None] * colors[1] + across[..., None] * (colors[2] - colors[0])
    image[height // 4 : height // 2, width // 3 : width // 2] = rng.choice([0.0, 255.0], 3)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def pictures(count: int) -> np.ndarray:
    return np.stack([picture(seed, 64, 64) for seed in range(count)])


def tensor(image: np.ndarray) -> Any:
    """u8[h, w, 3] as torch's double [3, h, w] in [0, 1]."""
    return torch.from_numpy(image).double().permute(2, 0, 1) / 255


def array(image: Any) -> np.ndarray:
    """Either kind of torchvision's images as float[h, w, 3] in [0, 1]."""
    if isinstance(image, Image.Image):
        return np.asarray(image, np.float64) / 255
    return image.permute(1, 2, 0).numpy()


def double(fn: Callable[..., Any], *arguments: Any) -> np.ndarray:
    """Compiled for these arguments, in double precision."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(fn)(*arguments))


def assert_near_pillow(found: np.ndarray, pillows: Any, what: str) -> None:
    difference = 255 * np.abs(found - array(pillows))
    largest, mean = PILLOW[what]
    assert difference.max() <= largest
    assert difference.mean() <= mean


# What Pillow's rounding makes, in grey levels: the largest difference of a pixel, and the mean over
# the worst picture. Its hue has 256 steps, and its blur is made of boxes.
PILLOW = {
    "brightness": (1.001, 0.6),
    "contrast": (1.3, 0.6),
    "saturation": (1.4, 0.6),
    "hue": (12.001, 1.5),
    "blur": (20.0, 0.75),
    "jitter": (26.0, 3.6),
    "view": (19.0, 3.4),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_adjustment_is_torchvisions(operation: str) -> None:
    ours, theirs = (getattr(one, f"adjust_{operation}") for one in (photometric, F))
    amounts = np.linspace(-0.5, 0.5, 11) if operation == "hue" else np.linspace(0.3, 1.8, 11)
    image = picture(0, 64, 45)
    made = double(jax.vmap(ours, (None, 0)), image / 255, amounts)
    for amount, found in zip(amounts, made, strict=True):
        grey = LUMA * abs(1 - amount) if operation in ("contrast", "saturation") else 0
        # Torchvision turns hues in single precision, whatever it is given.
        rounding = 5e-6 if operation == "hue" else 1e-12
        exact = array(theirs(tensor(image), amount))
        assert np.abs(found - exact).max() <= grey + rounding
        assert_near_pillow(found, theirs(Image.fromarray(image), amount), operation)


def test_grey_is_torchvisions_and_pillows() -> None:
    image = picture(1, 33, 64)
    found = double(photometric.to_grayscale, image / 255)
    exact = array(F.rgb_to_grayscale(tensor(image), 3))
    assert np.abs(found - exact).max() <= LUMA
    rounded = array(F.to_grayscale(Image.fromarray(image), 3))
    assert 255 * np.abs(found - rounded).max() <= 0.501


def jitter_draws(which: Any, amounts: list[float], policy: Policy) -> np.ndarray:
    """The draws that make `color_jitter` do what torchvision's `ColorJitter` was told to."""
    draws = np.zeros(photometric.JITTER_DRAWS)
    for index, (name, amount) in enumerate(zip(OPERATIONS, amounts, strict=True)):
        strength = getattr(policy, name)
        low = -strength if name == "hue" else 1 - strength
        draws[index] = (amount - low) / (2 * strength)
        draws[4 + index] = list(which).index(index) / 4
    return draws


@pytest.mark.parametrize("name", ["moco_v2", "faithful"])
def test_jitter_in_every_order_is_torchvisions(name: str) -> None:
    policy, count = POLICIES[name], 150
    jitter = transforms.ColorJitter(
        policy.brightness, policy.contrast, policy.saturation, policy.hue
    )
    torch.manual_seed(0)
    asked = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(count)
    ]
    assert len({tuple(which.tolist()) for which, *_ in asked}) == 24
    images = pictures(count)
    draws = np.stack([jitter_draws(which.tolist(), list(rest), policy) for which, *rest in asked])
    made = double(
        jax.vmap(lambda draw, image: photometric.color_jitter(draw, image, policy)),
        draws,
        images / 255,
    )
    for found, image, (which, *amounts) in zip(made, images, asked, strict=True):
        exact, rounded = tensor(image), Image.fromarray(image)
        for index in which.tolist():
            adjust = getattr(F, f"adjust_{OPERATIONS[index]}")
            exact, rounded = (adjust(one, amounts[index]) for one in (exact, rounded))
        assert np.abs(found - array(exact)).max() <= 1.5 * LUMA
        assert_near_pillow(found, rounded, "jitter")


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, 1.0, 1.4, 2.0])
def test_blur_is_torchvisions_gaussian(sigma: float) -> None:
    image = picture(3, 48, 64)
    found = double(photometric.gaussian_blur, image / 255, sigma)
    exact = array(F.gaussian_blur(tensor(image), [33, 33], [sigma, sigma]))
    assert np.abs(found - exact).max() <= 1e-12
    assert_near_pillow(
        found, Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), "blur"
    )


def test_crops_are_torchvisions() -> None:
    image = picture(4, 90, 70)
    boxes = np.array([(0, 0, 90, 70), (10, 5, 33, 64), (40, 20, 50, 7), (3, 60, 12, 10)])
    crop = functools.partial(geometric.crop_and_resize, size=32, dtype=jnp.float64)
    made = double(jax.vmap(crop, (None, 0)), image, boxes.astype(np.float32))
    for box, found in zip(boxes, made, strict=True):
        rounded, exact = (
            F.resized_crop(one, *box.tolist(), [32, 32], antialias=True)
            for one in (Image.fromarray(image), tensor(image))
        )
        assert np.abs(found.astype(int) - np.asarray(rounded, int)).max() <= 1
        assert np.abs(found - 255 * array(exact)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("height", "width", "largest", "mean"),
    [(256, 300, 0, 0), (310, 256, 0, 0), (200, 260, 24, 0.7)],
)
def test_the_evaluation_view_is_torchvisions(
    height: int, width: int, largest: float, mean: float
) -> None:
    """Short side to 256, central 224: nothing is resized where the short side is 256 as stored."""
    image = picture(6, height, width)
    [box] = geometric.center_crop_boxes(np.array([(height, width)]), 7 / 8)
    found = double(lambda x: geometric.crop_and_resize(x, box, 224, jnp.float64), image)
    resized = F.resize(Image.fromarray(image), 256)
    difference = np.abs(found.astype(int) - np.asarray(F.center_crop(resized, 224), int))
    assert difference.max() <= largest
    assert difference.mean() <= mean


def test_flip_and_normalisation_are_torchvisions() -> None:
    image, mean, std = picture(5, 9, 8), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    flipped = double(geometric.flip, image / 255, True)
    np.testing.assert_array_equal(flipped, array(F.hflip(tensor(image))))
    found = double(lambda x: photometric.normalize(x, mean, std), image / 255)
    np.testing.assert_allclose(found, array(F.normalize(tensor(image), mean, std)), rtol=1e-12)


def composed(image: Any, draws: np.ndarray, policy: Policy, blur: Callable[..., Any]) -> Any:
    """The original's pipeline after the crop, in torchvision, with a view's draws."""
    if draws[8] < policy.jitter_probability:
        for index in np.argsort(draws[4:8]):
            strength = getattr(policy, OPERATIONS[index])
            low = -strength if index == 3 else 1 - strength
            amount = low + 2 * strength * draws[index]
            image = getattr(F, f"adjust_{OPERATIONS[index]}")(image, amount)
    if draws[9] < policy.grayscale_probability:
        image = F.rgb_to_grayscale(image, 3)
    if draws[10] < policy.blur_probability:
        low, high = policy.blur_sigma
        image = blur(image, float(low + (high - low) * draws[11]))
    return F.hflip(image) if draws[12] < policy.flip_probability else image


@pytest.mark.parametrize("name", ["moco_v2", "faithful"])
def test_whole_views_are_torchvisions(name: str) -> None:
    policy, count = POLICIES[name], 100
    images = pictures(count)
    draws = np.random.default_rng(6).random((count, views.DRAWS))
    made = double(
        jax.vmap(lambda draw, image: views.distort(draw, image, policy, jnp.float64)),
        draws,
        images,
    )
    for found, image, draw in zip(made, images, draws, strict=True):
        exact = composed(
            tensor(image), draw, policy, lambda x, s: F.gaussian_blur(x, [33, 33], [s, s])
        )
        assert np.abs(found - array(exact)).max() <= 1.5 * LUMA
        rounded = composed(
            Image.fromarray(image), draw, policy, lambda x, s: x.filter(ImageFilter.GaussianBlur(s))
        )
        assert_near_pillow(found, rounded, "view")


# Distributions: ours from the draws of a real step, recovered from pictures of which they are the
# only unknown; torchvision's from its own samplers.
COUNT = 4000


def seen(policy: Policy, image: np.ndarray) -> np.ndarray:
    """One image u8[h, w, 3] as `COUNT` examples of a step see it, f64."""
    key = jax.random.key(11)

    def one(slot: Any) -> Any:
        draws = views.view_draws(key, 3, slot, 0)
        return views.distort(draws, image, policy, jnp.float64)

    return double(jax.vmap(one), np.arange(COUNT))


def only(**changes: Any) -> Policy:
    """MoCo-v2's policy with nothing on but what is named."""
    off = dict.fromkeys(OPERATIONS, 0.0) | {
        f"{name}_probability": 0.0 for name in ("jitter", "grayscale", "blur", "flip")
    }
    return Policy(**{**off, **changes})


@functools.cache
def sampled() -> dict[str, np.ndarray]:
    """What torchvision's jitter draws, by MoCo-v2's strengths and by the original's hue."""
    torch.manual_seed(1)
    found = {}
    for name, hue in (("moco_v2", 0.1), ("faithful", 0.4)):
        one = transforms.ColorJitter(0.4, 0.4, 0.4, hue)
        drawn = [
            one.get_params(one.brightness, one.contrast, one.saturation, one.hue)[1:]
            for _ in range(COUNT)
        ]
        amounts = np.array(drawn).T
        found |= {f"{name}.{op}": own for op, own in zip(OPERATIONS, amounts, strict=True)}
    return found


def recovered(operation: str, strength: float) -> np.ndarray:
    """The amounts of one adjustment, from two grey or coloured pixels."""
    pixels = {
        "brightness": [(128, 128, 128), (128, 128, 128)],
        "contrast": [(100, 100, 100), (156, 156, 156)],
        "saturation": [(150, 100, 100), (150, 100, 100)],
        "hue": [(200, 50, 50), (200, 50, 50)],
    }[operation]
    image = np.array([pixels], np.uint8)
    policy = only(**{operation: strength, "jitter_probability": 1.0})
    made, given = seen(policy, image)[:, 0], image[0] / 255
    if operation == "brightness":
        return made[:, 0, 0] / given[0, 0]
    if operation == "contrast":
        return (made[:, 1, 0] - made[:, 0, 0]) / (given[1, 0] - given[0, 0])
    if operation == "saturation":
        return (made[:, 0, 0] - made[:, 0, 1]) / (given[0, 0] - given[0, 1])
    turns = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in made[:, 0]])
    return (turns + 0.5) % 1 - 0.5


@pytest.mark.parametrize(
    ("name", "operation"), [*(("moco_v2", one) for one in OPERATIONS), ("faithful", "hue")]
)
def test_amounts_are_distributed_as_torchvisions(name: str, operation: str) -> None:
    found = recovered(operation, getattr(POLICIES[name], operation))
    assert stats.ks_2samp(found, sampled()[f"{name}.{operation}"]).pvalue > 1e-3


def test_blurs_are_distributed_as_the_originals() -> None:
    image = np.zeros((33, 33, 3), np.uint8)
    image[16, 16] = 255
    made = seen(only(blur_probability=1.0), image)[:, 16, :, 0]
    # Neighbours in a Gaussian's row differ by exp(-1 / (2 sigma^2)).
    found = np.sqrt(-0.5 / np.log(made[:, 17] / made[:, 16]))
    assert stats.kstest(found, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "rate"), [("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.5), ("flip", 0.5)]
)
def test_operations_are_as_frequent_as_the_originals(name: str, rate: float) -> None:
    field = f"{name}_probability"
    changes = {field: getattr(POLICIES["moco_v2"], field)}
    # Always seen: a factor is never exactly 1, and the least blur moves an edge.
    changes |= {"jitter": {"brightness": 0.4}, "blur": {"blur_sigma": (1.0, 2.0)}}.get(name, {})
    image = np.array([[(200, 10, 20), (20, 200, 10)]] * 2, np.uint8)
    changed = np.abs(seen(only(**changes), image) - image / 255).max(axis=(1, 2, 3)) > 1e-9
    assert stats.binomtest(int(changed.sum()), COUNT, rate).pvalue > 1e-3


@pytest.mark.parametrize("size", [(64, 64), (97, 41), (30, 150)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0)])
def test_crops_are_distributed_as_torchvisions(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    ratio = (3 / 4, 4 / 3)
    draws = order.uniforms(5, 7, 1, (COUNT, geometric.BOX_DRAWS))
    ours = geometric.random_resized_crop_boxes(draws, np.tile(size, (COUNT, 1)), scale, ratio)
    torch.manual_seed(2)
    blank = torch.zeros(3, *size)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(COUNT)]
    )
    (our_top, our_left, our_h, our_w), (top, left, h, w) = ours.T.astype(float), theirs.T
    for what, found, expected in [
        ("area", our_h * our_w, h * w),
        ("ratio", our_w / our_h, w / h),
        ("top", our_top, top),
        ("left", our_left, left),
        ("bottom", our_top + our_h, top + h),
        ("right", our_left + our_w, left + w),
    ]:
        assert stats.ks_2samp(found, expected).pvalue > 1e-3, what
    # The largest central box, where ten attempts do not fit.
    fallback = theirs[np.argmax(h * w)]
    counts = [int((boxes == fallback).all(axis=1).sum()) for boxes in (ours, theirs)]
    table = [counts, [COUNT - count for count in counts]]
    assert stats.fisher_exact(table).pvalue > 1e-3
