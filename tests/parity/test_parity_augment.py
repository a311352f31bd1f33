"""Augmentations equal torchvision's and Pillow's, image by image and in distribution.

Torchvision works on float tensors by the formulas, and on Pillow's images in uint8, as the original
did: with those the difference is their rounding, and stated in grey levels. Hyper-parameters of
their side are written here, from the paper and the original, and not read from the policies.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
import math
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
from hpt_jax.config import LinearSGD
from hpt_jax.data import order

torch = pytest.importorskip("torch")
transforms = pytest.importorskip("torchvision.transforms")
from torchvision.transforms import _functional_tensor  # noqa: E402
from torchvision.transforms import functional as F  # noqa: E402

pytestmark = pytest.mark.torch
# On images this small threads cost much more than they save.
torch.set_num_threads(1)

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
HUES = {"moco_v2": 0.1, "faithful": 0.4}
# The same formula in doubles, whose sums may be taken in another order.
EXACT = 1e-13


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """u8[height, width, 3]: two gradients of strong colours, a bright square, some noise."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width] / [[[height]], [[width]]]
    colors = rng.uniform(0, 255, (3, 3))
    image = colors[0] + down[..., None] * colors[1] + across[..., None] * (colors[2] - colors[0])
    image[height // 4 : height // 2, width // 3 : width // 2] = rng.choice([0.0, 255.0], 3)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """u8[height, width, 3], uniform: the worst case of everything that rounds or blurs."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


KINDS: dict[str, Callable[[int, int, int], np.ndarray]] = {"picture": picture, "noise": noise}
SIDES = {"picture": 64, "noise": 37}


def views_of(kind: str, count: int) -> np.ndarray:
    return np.stack([KINDS[kind](seed, SIDES[kind], SIDES[kind]) for seed in range(count)])


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
        # A function of its own, so that nothing compiled with other constants is reused.
        return np.asarray(jax.jit(lambda *given: fn(*given))(*arguments))


@pytest.fixture
def same_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away the two ways in which torchvision's tensors are not what Pillow computes.

    Their grey has .2989 red, where Pillow's, the original's and ours has .299; and they turn hues
    in single precision, whatever they are given.
    """
    monkeypatch.setattr(photometric, "_RED", 0.2989)
    monkeypatch.setattr(_functional_tensor, "convert_image_dtype", lambda image, dtype: image)


def torch_blur(image: Any, sigma: float) -> Any:
    """Torchvision's blur with a kernel of at least 8 sigma to each side, one axis at a time."""
    across = F.gaussian_blur(image, [33, 1], [sigma, sigma])
    return F.gaussian_blur(across, [1, 33], [sigma, sigma])


def pillow_blur(image: Image.Image, sigma: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma))


# What Pillow's rounding makes, in grey levels: the largest difference of a pixel, and the mean over
# the worst image. Its hue has 256 steps, and its blur is made of boxes.
PILLOW = {
    ("brightness", "picture"): (1.0, 0.6),
    ("brightness", "noise"): (1.0, 0.6),
    ("contrast", "picture"): (1.3, 0.6),
    ("contrast", "noise"): (1.3, 0.6),
    ("saturation", "picture"): (1.4, 0.6),
    ("saturation", "noise"): (1.4, 0.6),
    ("hue", "picture"): (12.0, 0.8),
    ("hue", "noise"): (14.0, 1.7),
    ("jitter", "picture"): (28.0, 3.8),
    ("jitter", "noise"): (28.0, 3.2),
    ("view", "picture"): (20.0, 3.6),
    ("view", "noise"): (72.0, 11.0),
}


def assert_near_pillow(found: np.ndarray, pillows: Any, largest: float, mean: float) -> None:
    difference = 255 * np.abs(found - array(pillows))
    assert difference.max() <= largest + 1e-6
    assert difference.mean() <= mean


def adjusted(operation: str, image: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    adjust = getattr(photometric, f"adjust_{operation}")
    return double(jax.vmap(adjust, (None, 0)), image / 255, amounts)


def amounts_of(operation: str) -> np.ndarray:
    return np.linspace(-0.5, 0.5, 11) if operation == "hue" else np.linspace(0.3, 1.8, 11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_adjustment_is_torchvisions(same_constants: None, operation: str, kind: str) -> None:
    image, amounts = KINDS[kind](0, 64, 45), amounts_of(operation)
    theirs = getattr(F, f"adjust_{operation}")
    for amount, found in zip(amounts, adjusted(operation, image, amounts), strict=True):
        assert np.abs(found - array(theirs(tensor(image), amount))).max() <= EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_adjustment_is_pillows_but_for_its_rounding(operation: str, kind: str) -> None:
    image, amounts = KINDS[kind](0, 64, 45), amounts_of(operation)
    theirs = getattr(F, f"adjust_{operation}")
    for amount, found in zip(amounts, adjusted(operation, image, amounts), strict=True):
        pillows = theirs(Image.fromarray(image), amount)
        assert_near_pillow(found, pillows, *PILLOW[operation, kind])


@pytest.mark.parametrize("kind", KINDS)
def test_grey_is_pillows_and_torchvisions_but_for_its_red(
    kind: str, request: pytest.FixtureRequest
) -> None:
    image = KINDS[kind](1, 33, 64)
    found = double(photometric.to_grayscale, image / 255)
    rounded = array(F.to_grayscale(Image.fromarray(image), 3))
    # Half a level of rounding: .2989 would differ by .52.
    assert 255 * np.abs(found - rounded).max() <= 0.501
    theirs = array(F.rgb_to_grayscale(tensor(image), 3))
    assert np.abs(found - theirs).max() <= 1e-4

    request.getfixturevalue("same_constants")
    found = double(photometric.to_grayscale, image / 255)
    assert np.abs(found - theirs).max() <= EXACT


def spans(hue: float) -> tuple[np.ndarray, np.ndarray]:
    """The least amount of each operation, and how much more the largest is: f64[4] each."""
    return np.array([0.6, 0.6, 0.6, -hue]), np.array([0.8, 0.8, 0.8, 2 * hue])


def jitter_draws(which: list[int], amounts: list[float], hue: float) -> np.ndarray:
    """The draws that make `color_jitter` do what torchvision's `ColorJitter` was told to."""
    draws = np.zeros(photometric.JITTER_DRAWS)
    least, more = spans(hue)
    draws[:4] = (amounts - least) / more
    draws[4:][which] = np.arange(4) / 4
    return draws


def drawn_by_torchvision(count: int, hue: float, seed: int) -> list[tuple[list[int], list[float]]]:
    """The orders and amounts of `count` jitters of strengths .4 and `hue`."""
    one = transforms.ColorJitter(0.4, 0.4, 0.4, hue)
    torch.manual_seed(seed)
    drawn = [
        one.get_params(one.brightness, one.contrast, one.saturation, one.hue) for _ in range(count)
    ]
    return [(which.tolist(), amounts) for which, *amounts in drawn]


def jittered(image: Any, which: list[int], amounts: list[float]) -> Any:
    """Torchvision's adjustments in the order that `which` says, each by its own amount."""
    for index in which:
        image = getattr(F, f"adjust_{OPERATIONS[index]}")(image, amounts[index])
    return image


def jitters(name: str, kind: str) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """150 images of a kind, ours of them, and what torchvision is told to do to them."""
    policy, images = POLICIES[name], views_of(kind, 150)
    asked = drawn_by_torchvision(len(images), HUES[name], seed=0)
    assert len({tuple(which) for which, _ in asked}) == 24
    draws = np.stack([jitter_draws(*one, HUES[name]) for one in asked])
    jitter = functools.partial(photometric.color_jitter, policy=policy)
    return double(jax.vmap(jitter), draws, images / 255), images, asked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HUES)
def test_jitter_in_every_order_is_torchvisions(same_constants: None, name: str, kind: str) -> None:
    for found, image, asked in zip(*jitters(name, kind), strict=True):
        assert np.abs(found - array(jittered(tensor(image), *asked))).max() <= EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HUES)
def test_jitter_in_every_order_is_pillows_but_for_its_rounding(name: str, kind: str) -> None:
    for found, image, asked in zip(*jitters(name, kind), strict=True):
        pillows = jittered(Image.fromarray(image), *asked)
        assert_near_pillow(found, pillows, *PILLOW["jitter", kind])


# By sigma, in grey levels: how far Pillow's three boxes are from a Gaussian, the largest and the
# mean of pixels inside; and the largest of all, for Pillow repeats the outermost pixels.
BOXES = {
    "picture": {
        0.1: (0.0, 0.0, 0.0),
        0.2: (12.0, 0.2, 12.0),
        0.3: (20.0, 0.7, 20.0),
        0.5: (4.0, 0.7, 5.0),
        0.8: (9.0, 0.8, 9.0),
        1.0: (6.0, 0.6, 6.0),
        1.5: (5.0, 0.5, 5.0),
        2.0: (5.0, 0.5, 5.0),
    },
    "noise": {
        0.1: (6.0, 0.6, 6.0),
        0.2: (18.0, 6.0, 18.0),
        0.3: (33.0, 11.0, 33.0),
        0.5: (5.0, 1.0, 24.0),
        0.8: (12.0, 3.5, 48.0),
        1.0: (4.0, 0.9, 42.0),
        1.5: (4.0, 1.0, 29.0),
        2.0: (3.0, 0.6, 28.0),
    },
}


def blurs_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """An image, and ours of it by each sigma of `BOXES`."""
    image = KINDS[kind](3, 64, 45)
    blur = jax.vmap(photometric.gaussian_blur, (None, 0))
    return image, double(blur, image / 255, np.array(list(BOXES[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_blur_is_torchvisions_gaussian(kind: str) -> None:
    image, made = blurs_of(kind)
    for sigma, found in zip(BOXES[kind], made, strict=True):
        assert np.abs(found - array(torch_blur(tensor(image), sigma))).max() <= EXACT, sigma


@pytest.mark.parametrize("kind", KINDS)
def test_blur_is_pillows_but_for_its_boxes_and_borders(kind: str) -> None:
    image, made = blurs_of(kind)
    for (sigma, (largest, mean, of_all)), found in zip(BOXES[kind].items(), made, strict=True):
        difference = 255 * np.abs(found - array(pillow_blur(Image.fromarray(image), sigma)))
        assert difference[8:-8, 8:-8].max() <= largest + 1e-6, sigma
        assert difference[8:-8, 8:-8].mean() <= mean + 1e-6, sigma
        assert difference.max() <= of_all + 1e-6, sigma


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_torchvisions_and_pillows_but_for_rounding(kind: str) -> None:
    image = KINDS[kind](4, 91, 70)
    torch.manual_seed(3)
    crop = transforms.RandomResizedCrop(32, scale=(0.02, 1.0), ratio=(0.2, 5.0))
    drawn = [crop.get_params(tensor(image), crop.scale, crop.ratio) for _ in range(40)]
    boxes = np.array([(0, 0, 91, 70), (50, 60, 1, 10), *drawn])
    ours = functools.partial(geometric.crop_and_resize, size=32, dtype=jnp.float64)
    made = double(jax.vmap(ours, (None, 0)), image, boxes.astype(np.float32))
    for box, found in zip(boxes.tolist(), made, strict=True):
        rounded, exact = (
            F.resized_crop(one, *box, [32, 32], antialias=True)
            for one in (Image.fromarray(image), tensor(image))
        )
        assert np.abs(found.astype(int) - np.asarray(rounded, int)).max() <= 1
        # Rounded to the nearest level, with the margin that ties need.
        assert np.abs(found - 255 * array(exact)).max() <= 0.5 + 1e-4 + 1e-9


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
    image, mean, std = noise(5, 9, 8), np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    flipped = double(geometric.flip, image / 255, True)
    np.testing.assert_array_equal(flipped, array(F.hflip(tensor(image))))
    np.testing.assert_array_equal(flipped, array(F.hflip(Image.fromarray(image))))
    found = double(photometric.normalize, image / 255, mean, std)
    theirs = F.normalize(tensor(image), mean.tolist(), std.tolist())
    # A division is compiled to another one of the same value but for the last bit.
    np.testing.assert_array_max_ulp(found, array(theirs), maxulp=2)


def composed(image: Any, draws: np.ndarray, hue: float, blur: Callable[..., Any]) -> Any:
    """The original's pipeline after the crop, in torchvision, with a view's draws."""
    if draws[views._JITTER_YES] < 0.8:
        least, more = spans(hue)
        amounts = least + more * draws[views._JITTER][:4]
        image = jittered(image, np.argsort(draws[views._JITTER][4:]).tolist(), amounts.tolist())
    if draws[views._GRAYSCALE_YES] < 0.2:
        image = F.rgb_to_grayscale(image, 3)
    if draws[views._BLUR_YES] < 0.5:
        image = blur(image, 0.1 + 1.9 * float(draws[views._BLUR_SIGMA]))
    return F.hflip(image) if draws[views._FLIP_YES] < 0.5 else image


def whole_views(name: str, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """100 views of a kind of image, the images and the draws."""
    images = views_of(kind, 100)
    draws = np.random.default_rng(6).random((len(images), views.DRAWS))
    distort = functools.partial(views.distort, policy=POLICIES[name], dtype=jnp.float64)
    return double(jax.vmap(distort), draws, images), images, draws


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HUES)
def test_whole_views_are_torchvisions(same_constants: None, name: str, kind: str) -> None:
    for found, image, draws in zip(*whole_views(name, kind), strict=True):
        theirs = composed(tensor(image), draws, HUES[name], torch_blur)
        assert np.abs(found - array(theirs)).max() <= EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HUES)
def test_whole_views_are_pillows_but_for_its_rounding_and_boxes(name: str, kind: str) -> None:
    for found, image, draws in zip(*whole_views(name, kind), strict=True):
        pillows = composed(Image.fromarray(image), draws, HUES[name], pillow_blur)
        assert_near_pillow(found, pillows, *PILLOW["view", kind])


# Distributions: ours from the draws of a real step, recovered from pictures of which they are the
# only unknown; torchvision's from its own samplers.
COUNT = 8000


def seen(
    policy: Policy, image: np.ndarray, fixed: Callable[[jax.Array], jax.Array] = lambda draws: draws
) -> np.ndarray:
    """One image u8[h, w, 3] as `COUNT` examples of a step see it, with some draws maybe fixed."""
    key = jax.random.key(11)

    def one(slot: jax.Array) -> jax.Array:
        return views.distort(fixed(views.view_draws(key, 3, slot, 1)), image, policy)

    return np.asarray(jax.jit(jax.vmap(one))(np.arange(COUNT)), np.float64)


def only(name: str, *kept: str, **changes: Any) -> Policy:
    """A policy's named fields, everything else off; then `changes`."""
    off = dict.fromkeys(OPERATIONS, 0.0) | {
        f"{each}_probability": 0.0 for each in ("jitter", "grayscale", "blur", "flip")
    }
    return Policy(**{**off, **{field: getattr(POLICIES[name], field) for field in kept}, **changes})


def recovered(name: str, operation: str) -> np.ndarray:
    """The amounts of one adjustment, from two grey or coloured pixels."""
    pixels = {
        "brightness": [(128, 128, 128), (128, 128, 128)],
        "contrast": [(100, 100, 100), (156, 156, 156)],
        "saturation": [(150, 100, 100), (150, 100, 100)],
        "hue": [(200, 50, 50), (200, 50, 50)],
    }[operation]
    image = np.array([pixels], np.uint8)
    policy = only(name, operation, jitter_probability=1.0)
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
    found, index = recovered(name, operation), OPERATIONS.index(operation)
    theirs = [amounts[index] for _, amounts in drawn_by_torchvision(COUNT, HUES[name], seed=1)]
    assert stats.ks_2samp(found, theirs, method="asymp").pvalue > 1e-3


def test_all_orders_of_jitter_are_as_frequent() -> None:
    # Amounts that clip, for without clipping only the hue's place shows.
    shares = np.float32([0.9, 0.8, 0.9, 0.7])
    least, more = spans(HUES["moco_v2"])
    amounts = (least + more * shares).tolist()
    image = picture(0, 6, 6)
    known = [jittered(tensor(image), list(o), amounts) for o in itertools.permutations(range(4))]
    known = np.stack([array(one) for one in known])
    assert (np.abs(known[:, None] - known).max(axis=(2, 3, 4)) + np.eye(24)).min() > 1e-3

    policy = only("moco_v2", *OPERATIONS, jitter_probability=1.0)
    made = seen(policy, image, lambda draws: draws.at[:4].set(shares))
    distance = np.stack([np.abs(made - one).max(axis=(1, 2, 3)) for one in known], axis=1)
    assert distance.min(axis=1).max() < 2e-4
    counts = np.bincount(distance.argmin(axis=1), minlength=24)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_blurs_are_distributed_as_the_originals() -> None:
    image = np.zeros((17, 17, 3), np.uint8)
    image[8, 8] = 255
    made = seen(only("moco_v2", "blur_sigma", blur_probability=1.0), image)[:, 8, :, 0]
    # Neighbours in a Gaussian's row differ by exp(-1 / (2 sigma^2)).
    found = np.sqrt(-0.5 / np.log(made[:, 9] / made[:, 8]))
    assert stats.kstest(found, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_operations_are_as_frequent_as_the_originals_and_independent() -> None:
    rates = {"jitter": 0.8, "grayscale": 0.2, "blur": 0.5, "flip": 0.5}
    # Always seen: a factor is never exactly 1, and the least blur moves an edge.
    amounts = {"jitter": {"brightness": 0.4}, "blur": {"blur_sigma": (1.0, 2.0)}}
    image = np.array([[(200, 10, 20), (20, 200, 10)]] * 2, np.uint8)
    outcomes, expected = np.zeros(COUNT, int), np.ones(1)
    for name, rate in rates.items():
        made = seen(only("moco_v2", f"{name}_probability", **amounts.get(name, {})), image)
        happened = np.abs(made - image / 255).max(axis=(1, 2, 3)) > 1e-6
        assert stats.binomtest(int(happened.sum()), COUNT, rate).pvalue > 1e-3, name
        outcomes = 2 * outcomes + happened
        expected = np.outer(expected, [1 - rate, rate]).ravel()
    counts = np.bincount(outcomes, minlength=16)
    assert stats.chisquare(counts, COUNT * expected).pvalue > 1e-3


# Ours beside torchvision's: of pretraining, and of the probe and fine-tuning.
CROPS = {
    "pretraining": (POLICIES["moco_v2"].crop_scale, {"scale": (0.2, 1.0)}),
    "probe": (LinearSGD().crop_scale, {}),
}
RATIO = POLICIES["moco_v2"].crop_ratio
# Of the last, a third (the probe: a tenth) are the fall-back: one attempt too few would show.
SIZES = [(64, 64), (97, 41), (30, 110)]


def boxes_of(
    of: str, size: tuple[int, int], count: int
) -> tuple[np.ndarray, np.ndarray, Callable[[], tuple[int, ...]]]:
    """Ours, the draws they are made of, and torchvision's sampler for the same image."""
    scale, theirs = CROPS[of]
    draws = order.uniforms(5, 7, 1, (count, geometric.BOX_DRAWS))
    boxes = geometric.random_resized_crop_boxes(draws, np.tile(size, (count, 1)), scale, RATIO)
    crop, blank = transforms.RandomResizedCrop(224, **theirs), torch.zeros(3, *size)
    return boxes, draws, lambda: crop.get_params(blank, list(crop.scale), list(crop.ratio))


@pytest.mark.parametrize("of", CROPS)
@pytest.mark.parametrize("size", SIZES)
def test_the_same_random_numbers_make_torchvisions_boxes(
    size: tuple[int, int], of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, draws, torchvisions = boxes_of(of, size, 500)

    def uniform(self: Any, low: Any, high: Any) -> Any:
        return self.fill_(low + (high - low) * next(attempts))

    def randint(low: int, high: int, size: tuple[int]) -> Any:
        return torch.full(size, math.floor(low + (high - low) * next(corner)))

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
    monkeypatch.setattr(torch, "randint", randint)
    torch.set_default_dtype(torch.float64)
    theirs = []
    try:
        for draw in draws:
            # An area and a ratio at each attempt, and the corner's two numbers at the end.
            attempts, corner = iter(draw[:-2].reshape(2, -1).T.ravel()), iter(draw[-2:])
            theirs.append(torchvisions())
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(boxes, theirs)


@pytest.mark.parametrize("of", CROPS)
@pytest.mark.parametrize("size", SIZES)
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], of: str) -> None:
    ours, _, torchvisions = boxes_of(of, size, COUNT)
    torch.manual_seed(2)
    theirs = np.array([torchvisions() for _ in range(COUNT)])
    (our_top, our_left, our_h, our_w), (top, left, h, w) = ours.T.astype(float), theirs.T
    for what, found, expected in [
        ("area", our_h * our_w, h * w),
        ("ratio", our_w / our_h, w / h),
        ("top", our_top, top),
        ("left", our_left, left),
        ("bottom", our_top + our_h, top + h),
        ("right", our_left + our_w, left + w),
    ]:
        assert stats.ks_2samp(found, expected, method="asymp").pvalue > 1e-3, what
    # No box has five times the image's area.
    fallback = transforms.RandomResizedCrop.get_params(torch.zeros(3, *size), (5.0, 6.0), RATIO)
    counts = [int((boxes == fallback).all(axis=1).sum()) for boxes in (ours, theirs)]
    table = [counts, [COUNT - count for count in counts]]
    assert stats.fisher_exact(table).pvalue > 1e-3
