"""What a view's colours become: jitter, grayscale, blur and normalisation.

Every function works on one float image [H, W, C] with values in [0, 1], and computes in its dtype;
callers `vmap`. Brightness, contrast and saturation are torchvision's: one blend
`clip(factor * image + (1 - factor) * reference)` with three different references.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hpt_jax.augment.geometric import between
from hpt_jax.augment.policies import Policy

JITTER_DRAWS = 8  # four amounts, and four places in the order

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114


def adjust_brightness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends an image [H, W, C] with black: 0 gives black, 1 the image."""
    return _blend(image, factor, _black(image))


def adjust_contrast(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends an image [H, W, C] with its mean grey: 0 gives one flat grey, 1 the image.

    The mean is that of the image's luma for three channels, else that of all its values.
    """
    return _blend(image, factor, _mean_grey(image))


def adjust_saturation(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends an image [H, W, 3] with its grey version: 0 gives grey, 1 the image."""
    return _blend(image, factor, _grey(image))


def adjust_hue(image: jax.Array, turn: ArrayLike) -> jax.Array:
    """Turns the hue of an image [H, W, 3] in HSV space, keeping saturation and value.

    Args:
      image: float[H, W, 3] in [0, 1].
      turn: the angle as a fraction of a full turn, in [-0.5, 0.5].

    Returns:
      float[H, W, 3] in [0, 1].
    """
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    low = jnp.minimum(jnp.minimum(red, green), blue)
    high = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = high - low
    safe = jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        high == red,
        (green - blue) / safe,
        jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * jnp.asarray(turn, image.dtype)

    # With saturation and value kept, each channel is low + chroma * (a trapezoid wave of the hue).
    def channel(offset: int) -> jax.Array:
        phase = sextant + offset
        phase = phase - 6 * jnp.floor(phase / 6)  # jnp.mod takes five times as long on a CPU
        return low + chroma * jnp.clip(jnp.abs(phase - 3) - 1, 0, 1)

    return jnp.stack([channel(0), channel(4), channel(2)], axis=-1)


def to_grayscale(image: jax.Array) -> jax.Array:
    """The image [H, W, 3] in grey (ITU-R 601 luma), as three equal channels."""
    return jnp.broadcast_to(_grey(image), image.shape)


def color_jitter(draws: jax.Array, image: jax.Array, policy: Policy) -> jax.Array:
    """Brightness, contrast, saturation and hue by random amounts, in random order.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], the hue's turn in [-hue, hue], and
    all orders of the operations with a strength above 0 are equally likely. (Torchvision's
    `ColorJitter`.)

    Args:
      draws: f32[JITTER_DRAWS], uniform in [0, 1): four amounts, four that decide the order.
      image: float[H, W, C] in [0, 1]; C must be 3 where saturation or hue is active.
      policy: its strengths are static; an operation of strength 0 costs nothing.

    Returns:
      float[H, W, C] in [0, 1].
    """
    # Each operation has its own draws, so that switching one off moves no other.
    amounts, places = draws[:4].astype(image.dtype), draws[4:]
    blends = {}
    for index, name in enumerate(_REFERENCES):
        if (strength := getattr(policy, name)) > 0:
            factor = between(amounts[index], max(0.0, 1 - strength), 1 + strength)
            blends[name] = (places[index], factor)
    if not policy.hue > 0:
        return _blends(image, blends)

    # Hue costs as much as several blends, so it is computed once, at its place in the order: each
    # blend is tried before and after it, and does nothing (factor 1) on one of the two occasions.
    turn, place = between(amounts[3], -policy.hue, policy.hue), places[3]
    before = {n: (p, jnp.where(p < place, factor, 1)) for n, (p, factor) in blends.items()}
    after = {n: (p, jnp.where(p < place, 1, factor)) for n, (p, factor) in blends.items()}
    return _blends(adjust_hue(_blends(image, before), turn), after)


def gaussian_blur(image: jax.Array, sigma: ArrayLike) -> jax.Array:
    """Gaussian blur with borders mirrored about the centre of the outermost pixels.

    Equals `scipy.ndimage.gaussian_filter(..., mode='mirror')` with a wide enough `truncate`, as
    long as the kernel's weight beyond the image's own size (16 pixels, if that is more) is nil.

    Args:
      image: float[H, W, C].
      sigma: standard deviation in pixels, may be traced; 0 returns the image itself.

    Returns:
      float[H, W, C].
    """
    sigma = jnp.asarray(sigma, image.dtype)
    # The default precision of an accelerator's product (bfloat16, TF32) would tint the image.
    exact = jax.lax.Precision.HIGHEST
    rows = _blur_matrix(image.shape[0], sigma)
    columns = rows if image.shape[0] == image.shape[1] else _blur_matrix(image.shape[1], sigma)
    blurred = jnp.einsum("ih,hwc->iwc", rows, image, precision=exact)
    blurred = jnp.einsum("jw,iwc->ijc", columns, blurred, precision=exact)
    return jnp.where(sigma > 0, blurred, image)


def normalize(image: jax.Array, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Subtracts `mean` f32[C] from an image [H, W, C] and divides it by `std` f32[C]."""
    return (image - jnp.asarray(mean, image.dtype)) / jnp.asarray(std, image.dtype)


def _blend(image: jax.Array, factor: ArrayLike, reference: jax.Array) -> jax.Array:
    factor = jnp.asarray(factor, image.dtype)
    return jnp.clip(factor * image + (1 - factor) * reference, 0, 1)


def _blends(image: jax.Array, blends: dict[str, tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Blends with the named references: {name: (place, factor)}, smallest place first."""
    if not blends:
        return image
    places = jnp.stack([place for place, _ in blends.values()])
    factors = jnp.stack([factor for _, factor in blends.values()])
    # Rank by counting: cheaper to compile than a sort. Equal places go in the order of names.
    index = jnp.arange(len(blends))
    equal_but_earlier = (places == places[:, None]) & (index < index[:, None])
    ranks = ((places < places[:, None]) | equal_but_earlier).sum(axis=1)

    def one_round(round_: jax.Array, image: jax.Array) -> jax.Array:
        reference = jnp.zeros((), image.dtype)
        for rank, name in zip(ranks, blends, strict=True):
            reference = jnp.where(rank == round_, _REFERENCES[name](image), reference)
        return _blend(image, jnp.where(ranks == round_, factors, 0).sum(), reference)

    # Unrolled rounds would be fused with what follows them, and XLA's CPU backend would compute
    # them anew for every channel that a later grey reads: four times as slow. One channel has no
    # such grey, and compiles faster unrolled.
    unroll = image.shape[-1] == 1
    return jax.lax.fori_loop(0, len(blends), one_round, image, unroll=unroll)


def _black(image: jax.Array) -> jax.Array:
    return jnp.zeros((), image.dtype)


def _grey(image: jax.Array) -> jax.Array:
    """Luma [H, W, 1] of three channels; of any other number, their mean."""
    if image.shape[-1] != 3:
        return image.mean(axis=-1, keepdims=True)
    return _RED * image[..., 0:1] + _GREEN * image[..., 1:2] + _BLUE * image[..., 2:3]


def _mean_grey(image: jax.Array) -> jax.Array:
    return _grey(image).mean()


_REFERENCES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "brightness": _black,
    "contrast": _mean_grey,
    "saturation": _grey,
}

# Eight standard deviations of the strongest blur that MoCo-v2 draws.
_REACH = 16


def _blur_matrix(length: int, sigma: jax.Array) -> jax.Array:
    """Row i holds the weight of every pixel in blurred pixel i, [length, length].

    Mirroring repeats a line of n pixels with period 2 (n - 1), each period holding the line and its
    reflection; the end pixels are their own reflections and count once.
    """
    if length == 1:
        return jnp.ones((1, 1), sigma.dtype)
    last = length - 1
    # The line `periods` to either side of its own covers (2 * periods + 1) * last pixels.
    periods = max(0, math.ceil((_REACH / last - 1) / 2))
    pixel = jnp.arange(length)
    inner = (pixel > 0) & (pixel < last)

    def weight(distance: jax.Array) -> jax.Array:
        # The least positive variance keeps 0 / 0 out; its quotients overflow to weights of zero.
        variance = jnp.maximum(sigma**2, jnp.finfo(sigma.dtype).tiny)
        return jnp.exp(-(distance.astype(sigma.dtype) ** 2) / (2 * variance))

    weights = jnp.zeros((length, length), sigma.dtype)
    for period in range(-periods, periods + 1):
        weights += weight(pixel[:, None] - pixel + 2 * last * period)
    for period in range(-periods - 1, periods + 1):
        weights += inner * weight(pixel[:, None] + pixel + 2 * last * period)
    return weights / weights.sum(axis=-1, keepdims=True)
