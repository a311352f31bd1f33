"""Which augmentations a view goes through, and how its randomness is keyed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from hpt_jax.augment import geometric, photometric


@dataclasses.dataclass(frozen=True)
class Policy:
    """The augmentations of one view; the defaults are MoCo-v2's (arXiv 2003.04297).

    Attributes:
      crop_scale: smallest and largest area of the crop, fractions of the image's.
      crop_ratio: smallest and largest width / height of the crop.
      brightness: jitter's factor is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: the same for contrast.
      saturation: the same for saturation.
      hue: jitter's turn of the hue is uniform in [-hue, hue], in full turns, at most 0.5.
      jitter_probability: how often the colours are jittered.
      grayscale_probability: how often the colours are dropped.
      blur_sigma: smallest and largest standard deviation of the blur, pixels of the view.
      blur_probability: how often the view is blurred.
      flip_probability: how often the view is mirrored left to right.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.5
    flip_probability: float = 0.5


# `faithful` has the hue of the HPT authors' configs; the last four are the paper's study of
# robustness to the augmentation policy, each without one more operation or two.
POLICIES: dict[str, Policy] = {
    "moco_v2": Policy(),
    "faithful": Policy(hue=0.4),
    "no_grayscale": Policy(grayscale_probability=0.0),
    "no_color": Policy(jitter_probability=0.0),
    "crop_blur": Policy(jitter_probability=0.0, grayscale_probability=0.0, flip_probability=0.0),
    "crop": Policy(
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
        flip_probability=0.0,
    ),
}


# Where each operation finds its draws among those of a view.
_CROP = slice(0, geometric.BOX_DRAWS)
_JITTER = slice(_CROP.stop, _CROP.stop + photometric.JITTER_DRAWS)
_JITTER_YES, _GRAYSCALE_YES, _BLUR_YES, _BLUR_SIGMA, _FLIP_YES = range(
    _JITTER.stop, _JITTER.stop + 5
)
DRAWS = _FLIP_YES + 1


def for_channels(policy: Policy, channels: int) -> tuple[Policy, tuple[str, ...]]:
    """Switches off what has no meaning for images that are not RGB.

    Args:
      policy: any policy.
      channels: how many channels the images have.

    Returns:
      the policy, with saturation, hue and grayscale off unless there are three channels; and the
      names of those of the three that this switched off.
    """
    if channels == 3:
        return policy, ()
    jittered = policy.jitter_probability > 0
    was_on = {
        "saturation": jittered and policy.saturation > 0,
        "hue": jittered and policy.hue > 0,
        "grayscale": policy.grayscale_probability > 0,
    }
    policy = dataclasses.replace(policy, saturation=0.0, hue=0.0, grayscale_probability=0.0)
    return policy, tuple(name for name, on in was_on.items() if on)


def view_draws(rng: jax.Array, step: ArrayLike, slot: ArrayLike, view: int) -> jax.Array:
    """All randomness of one view of one example.

    One vector for all operations, because every separate call of `jax.random` adds a third of a
    second to the compilation of a step on a CPU.

    Args:
      rng: the stage's key, made from its seed.
      step: training step, may be traced.
      slot: the example's place in the global batch (not the place where it is computed), so that
        shuffling examples over devices changes no view; below 2**24; may be traced.
      view: which view of the example, below 128.

    Returns:
      f32[DRAWS], uniform in [0, 1).
    """
    key = jax.random.fold_in(jax.random.fold_in(rng, step), slot + view * 2**24)
    return jax.random.uniform(key, (DRAWS,), jnp.float32)


def random_crop(
    draws: jax.Array,
    image: jax.Array,
    height: ArrayLike,
    width: ArrayLike,
    policy: Policy,
    size: int,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """A random crop of an image, resized to a square.

    Args:
      draws: the view's `view_draws`.
      image: u8[H, W, C], padded below and to the right.
      height: int32 scalar: the image's own height, pixels; may be traced.
      width: int32 scalar: the image's own width, pixels; may be traced.
      policy: static.
      size: side of the view, pixels.
      dtype: floating dtype of the arithmetic.

    Returns:
      u8[size, size, C].
    """
    box = geometric.random_resized_crop_box(
        draws[_CROP], height, width, policy.crop_scale, policy.crop_ratio
    )
    return geometric.crop_and_resize(image, box, size, dtype)


def distort(
    draws: jax.Array, image: jax.Array, policy: Policy, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Jitter, grayscale, blur and flip, each with its probability, in the paper's order.

    An operation of probability 0 costs nothing, and switching one off leaves the draws of the
    others as they are.

    Args:
      draws: the view's `view_draws`.
      image: u8[S, S, C], a crop.
      policy: static; see `for_channels` where C is not 3.
      dtype: floating dtype of the arithmetic and of the result.

    Returns:
      dtype[S, S, C] in [0, 1], not normalised.
    """
    view = image.astype(dtype) / 255
    if policy.jitter_probability > 0:
        jittered = photometric.color_jitter(draws[_JITTER], view, policy)
        view = jnp.where(draws[_JITTER_YES] < policy.jitter_probability, jittered, view)
    if policy.grayscale_probability > 0:
        yes = draws[_GRAYSCALE_YES] < policy.grayscale_probability
        view = jnp.where(yes, photometric.to_grayscale(view), view)
    if policy.blur_probability > 0:
        sigma = geometric.between(draws[_BLUR_SIGMA].astype(dtype), *policy.blur_sigma)
        yes = draws[_BLUR_YES] < policy.blur_probability
        view = photometric.gaussian_blur(view, jnp.where(yes, sigma, 0))
    if policy.flip_probability > 0:
        view = geometric.flip(view, draws[_FLIP_YES] < policy.flip_probability)
    return view
