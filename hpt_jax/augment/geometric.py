"""Where a view looks: crop boxes, antialiased resizing and the horizontal flip.

Every function works on one example; callers `vmap`. Images are stored padded to a common shape, so
an image's own height and width travel beside it as traced scalars. A box is `f32[4]`: top, left,
height, width, in pixels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

_ATTEMPTS = 10
BOX_DRAWS = 2 * _ATTEMPTS + 2  # areas, ratios, and the corner


def random_resized_crop_box(
    draws: jax.Array,
    height: ArrayLike,
    width: ArrayLike,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> jax.Array:
    """A random crop box, as torchvision's `RandomResizedCrop.get_params` defines it.

    An area uniform in `scale` (as a fraction of the image) and a log-uniform aspect ratio are tried
    up to ten times, until the rounded box fits; its corner is then uniform over whole pixels. When
    none fits, the box is the largest central one whose ratio is the image's, clipped to `ratio`.

    Args:
      draws: f32[BOX_DRAWS], uniform in [0, 1).
      height: int32 scalar, pixels; may be traced.
      width: int32 scalar, pixels; may be traced.
      scale: smallest and largest area, fractions of the image's.
      ratio: smallest and largest width / height.

    Returns:
      f32[4], whole numbers; both sides are at least 1 and the box lies inside the image.
    """
    height, width = jnp.asarray(height, jnp.float32), jnp.asarray(width, jnp.float32)
    area = height * width * between(draws[:_ATTEMPTS], *scale)
    log_ratio = between(draws[_ATTEMPTS : 2 * _ATTEMPTS], math.log(ratio[0]), math.log(ratio[1]))
    heights = jnp.round(jnp.sqrt(area * jnp.exp(-log_ratio)))
    widths = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio)))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)

    fallback_height = jnp.clip(jnp.round(width / min(ratio)), 1, height)
    fallback_width = jnp.clip(jnp.round(height * max(ratio)), 1, width)
    first = jnp.argmax(fits)
    some_fit = fits.any()
    sides = jnp.where(
        some_fit,
        jnp.stack([heights[first], widths[first]]),
        jnp.stack([fallback_height, fallback_width]),
    )
    slack = jnp.stack([height, width]) - sides
    # A product with the largest float32 below 1 never rounds up to slack + 1.
    corner = jnp.floor(draws[2 * _ATTEMPTS :] * (slack + 1))
    corner = jnp.where(some_fit, corner, jnp.floor(slack / 2))
    return jnp.concatenate([corner, sides])


def between(draws: jax.Array, low: ArrayLike, high: ArrayLike) -> jax.Array:
    """Draws that are uniform in [0, 1), made uniform in [low, high)."""
    low, high = jnp.asarray(low), jnp.asarray(high)
    return low + (high - low) * draws


def center_crop_box(height: ArrayLike, width: ArrayLike, fraction: float) -> jax.Array:
    """The central square box whose side is `fraction` of the image's shorter side.

    With 7/8 it is what Resize(256) followed by CenterCrop(224) sees.

    Args:
      height: int32 scalar, pixels; may be traced.
      width: int32 scalar, pixels; may be traced.
      fraction: side of the square over the image's shorter side, in (0, 1].

    Returns:
      f32[4]; its numbers may be fractional.
    """
    height, width = jnp.asarray(height, jnp.float32), jnp.asarray(width, jnp.float32)
    side = fraction * jnp.minimum(height, width)
    return jnp.stack([(height - side) / 2, (width - side) / 2, side, side])


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
