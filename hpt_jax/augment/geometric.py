"""Where a view looks: crop boxes, antialiased resizing and the horizontal flip.

Boxes are drawn on the host, for a whole batch; what works on pixels is jitted and takes one example
(callers `vmap`). A box is `f32[4]`: top, left, height, width, in pixels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

_ATTEMPTS = 10
BOX_DRAWS = 2 * _ATTEMPTS + 2  # areas, ratios, and the corner


def random_resized_crop_boxes(
    draws: np.ndarray,
    sizes: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Random crop boxes, as torchvision's `RandomResizedCrop.get_params` defines them.

    An area uniform in `scale` (as a fraction of the image) and a log-uniform aspect ratio are tried
    up to ten times, until the rounded box fits; its corner is then uniform over whole pixels. When
    none fits, the box is the largest central one whose ratio is the image's, clipped to `ratio`.

    On the host and in double precision, so that a box is the same whichever device or thread cuts
    it out.

    Args:
      draws: f64[n, BOX_DRAWS], uniform in [0, 1).
      sizes: int[n, 2], each image's (height, width), pixels.
      scale: smallest and largest area, fractions of the image's.
      ratio: smallest and largest width / height.

    Returns:
      f32[n, 4], whole numbers; both sides are at least 1 and the boxes lie inside the images.
    """
    height, width = np.asarray(sizes, np.float64).T[:, :, None]  # [n, 1] each
    area = height * width * _between(draws[:, :_ATTEMPTS], *scale)
    log_ratio = _between(
        draws[:, _ATTEMPTS : 2 * _ATTEMPTS], math.log(ratio[0]), math.log(ratio[1])
    )
    heights = np.round(np.sqrt(area * np.exp(-log_ratio)))
    widths = np.round(np.sqrt(area * np.exp(log_ratio)))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)

    whole = np.concatenate([height, width], axis=1)
    each, first = np.arange(len(draws)), fits.argmax(axis=1)
    drawn = np.stack([heights[each, first], widths[each, first]], axis=1)
    fallback = np.concatenate([np.round(width / min(ratio)), np.round(height * max(ratio))], axis=1)
    some_fit = fits.any(axis=1, keepdims=True)
    sides = np.where(some_fit, drawn, np.clip(fallback, 1, whole))
    slack = whole - sides
    corner = np.floor(draws[:, 2 * _ATTEMPTS :] * (slack + 1))
    corner = np.where(some_fit, corner, np.floor(slack / 2))
    return np.concatenate([corner, sides], axis=1).astype(np.float32)


def _between(draws: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * draws


def between(draws: jax.Array, low: ArrayLike, high: ArrayLike) -> jax.Array:
    """Draws that are uniform in [0, 1), made uniform in [low, high)."""
    low, high = jnp.asarray(low), jnp.asarray(high)
    return low + (high - low) * draws


def center_crop_boxes(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """The central square boxes whose sides are `fraction` of the images' shorter sides.

    With 7/8 they are what Resize(256) followed by CenterCrop(224) sees.

    Args:
      sizes: int[n, 2], each image's (height, width), pixels.
      fraction: side of the square over the image's shorter side, in (0, 1].

    Returns:
      f32[n, 4]; the numbers may be fractional.
    """
    sizes = np.asarray(sizes, np.float64)
    sides = np.repeat(fraction * sizes.min(axis=1, keepdims=True), 2, axis=1)
    return np.concatenate([(sizes - sides) / 2, sides], axis=1).astype(np.float32)


def crop_and_resize(
    image: jax.Array, box: jax.Array, size: int, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Cuts `box` out of an image and resizes it to a square, bilinear with antialiasing.

    The same filter as Pillow's `image.crop(box).resize((size, size), BILINEAR)`: a triangle that
    is stretched when reducing, cut off at the crop's borders and normalised there. Pillow rounds to
    uint8 between its two passes, this does not, so the two agree within one grey level. A box with
    fractional sides sees the whole of every pixel that it touches, as Pillow's
    `crop(outer).resize(..., box=inner)` does with the smallest whole box around it.

    Args:
      image: u8[H, W, C]; pixels beyond the box have no influence, so it may be padded.
      box: f32[4]: top, left, height, width in pixels.
      size: side of the result in pixels.
      dtype: floating dtype of the arithmetic.

    Returns:
      u8[size, size, C].
    """
    rows = _triangle_weights(box[0], box[2], size, image.shape[0], dtype)
    columns = _triangle_weights(box[1], box[3], size, image.shape[1], dtype)
    # The default precision of an accelerator's product (bfloat16, TF32) would cost grey levels.
    exact = jax.lax.Precision.HIGHEST
    # Rows first: memory holds an image as one [H, W * C] matrix, which needs no transposition.
    resized = jnp.einsum("ih,hwc->iwc", rows, image.astype(dtype), precision=exact)
    resized = jnp.einsum("jw,iwc->ijc", columns, resized, precision=exact)
    # Exact ties (x.5) are common, for one in every halving, and a different batch shape may move
    # a sum by an ulp: round half up, with a margin that no such difference can cross.
    return jnp.clip(jnp.floor(resized + (0.5 + 1e-4)), 0, 255).astype(jnp.uint8)


def _triangle_weights(
    start: jax.Array, length: jax.Array, size: int, stored: int, dtype: DTypeLike
) -> jax.Array:
    """The weight of every stored pixel in every output pixel along one axis, [size, stored]."""
    start, length = start.astype(dtype), length.astype(dtype)
    outputs = jnp.arange(size, dtype=dtype)[:, None]
    pixels = jnp.arange(stored, dtype=dtype)
    # In units of 1 / (2 * size) of a pixel the distance between the centers of an output and of a
    # stored pixel is a whole number for a whole box. So every weight and their sum are exact in any
    # dtype and in any order of evaluation, until the one division.
    distance = jnp.abs((2 * (pixels - start) + 1) * size - (2 * outputs + 1) * length)
    reach = 2 * jnp.maximum(length, size)
    # A border that is whole but for rounding must not let in the pixel (of padding) behind it.
    slack = 1e-3
    inside = (pixels >= jnp.floor(start + slack)) & (pixels < jnp.ceil(start + length - slack))
    weights = jnp.where(inside, jnp.maximum(reach - distance, 0), 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def flip(image: jax.Array, yes: ArrayLike) -> jax.Array:
    """Mirrors an image [H, W, C] left to right where the bool scalar `yes` (maybe traced) holds."""
    return jnp.where(yes, image[:, ::-1], image)
