"""From a crop to an augmented view, with all of a view's randomness in one vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from hpt_jax.augment import geometric, photometric
from hpt_jax.augment.policies import Policy

# Where each operation finds its draws among those of a view.
_JITTER = slice(0, photometric.JITTER_DRAWS)
_JITTER_YES, _GRAYSCALE_YES, _BLUR_YES, _BLUR_SIGMA, _FLIP_YES = range(
    _JITTER.stop, _JITTER.stop + 5
)
DRAWS = _FLIP_YES + 1


def view_draws(rng: jax.Array, step: ArrayLike, slot: ArrayLike, view: ArrayLike) -> jax.Array:
    """All randomness of one view of one example.

    One vector for all operations, because every separate call of `jax.random` adds a third of a
    second to the compilation of a step on a CPU.

    Args:
      rng: the stage's key, made from its seed.
      step: training step, may be traced.
      slot: the example's place in the global batch (not the place where it is computed), so that
        shuffling examples over devices changes no view; below 2**24; may be traced.
      view: which view of the example, below 128; may be traced.

    Returns:
      f32[DRAWS], uniform in [0, 1).
    """
    key = jax.random.fold_in(jax.random.fold_in(rng, step), slot + view * 2**24)
    return jax.random.uniform(key, (DRAWS,), jnp.float32)


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
