"""A convolution that is fast on CPUs too; on GPUs and TPUs it is XLA's own.

XLA's CPU backend computes some convolutions many times slower than the matrix product that they
come to: the filter's gradient, nearly always, and all of it where a map is a few pixels wide.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Wider maps are convolved by XLA, and so are their gradients (benchmarks/NOTES.md).
_TINY = 7  # pixels
_FEW = 32  # numbers of a patch
_AT_A_TIME = 4 * 2**20  # bytes of patches


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **rest: Any
) -> jax.Array:
    """What `nn.Conv` can take in the place of `lax.conv_general_dilated`; neither dilates here.

    Args:
      lhs: [n, h, w, c].
      rhs: the filter, [height, width, c, channels].
      window_strides: vertical, horizontal.
      padding: (before, after), vertical and horizontal.
      rest: what `nn.Conv` says of layout, dilation and groups; it must be the default.

    Returns:
      [n, h', w', channels].
    """
    assert rest["dimension_numbers"] == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    assert {*rest["lhs_dilation"], *rest["rhs_dilation"], rest["feature_group_count"]} == {1}
    return _convolve(lhs, rhs, tuple(window_strides), tuple(padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    static = dict(strides=strides, padding=padding)
    result: jax.Array = lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_on_cpu, **static),
        default=functools.partial(_native, **static),
    )
    return result


def _forward(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> Any:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: Any, padding: Any, saved: Any, gradient: jax.Array) -> Any:
    static = dict(strides=strides, padding=padding)
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(_gradients_on_cpu, **static),
        default=functools.partial(_native_gradients, **static),
    )


_convolve.defvjp(_forward, _backward)


def _native(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _native_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> tuple[jax.Array, ...]:
    (of_x,) = jax.linear_transpose(lambda x: _native(x, kernel, strides, padding), x)(gradient)
    (of_kernel,) = jax.linear_transpose(lambda k: _native(x, k, strides, padding), kernel)(gradient)
    return of_x, of_kernel


def _by_products(x: jax.Array, kernel: jax.Array) -> bool:
    small = max(x.shape[1:3]) <= _TINY or math.prod(kernel.shape[:-1]) <= _FEW
    return small or kernel.shape[:2] == (1, 1)


def _on_cpu(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    if not _by_products(x, kernel):
        return _native(x, kernel, strides, padding)
    patches = _patches(x, kernel.shape[:2], strides, padding)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _gradients_on_cpu(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> tuple[jax.Array, jax.Array]:
    of_kernel = _gradient_of_kernel(x, kernel, gradient, strides, padding)
    if not _by_products(x, kernel):
        return _native_gradients(x, kernel, gradient, strides, padding)[0], of_kernel
    of_patches = gradient @ kernel.reshape(-1, kernel.shape[-1]).T
    (of_x,) = jax.linear_transpose(lambda x: _patches(x, kernel.shape[:2], strides, padding), x)(
        of_patches
    )
    return of_x, of_kernel


def _gradient_of_kernel(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> jax.Array:
    """The sum over images, some at a time: memory that is touched for the first time is slow."""
    size, channels = math.prod(kernel.shape[:-1]), kernel.shape[-1]
    images, *places, _ = gradient.shape
    most = _AT_A_TIME // (math.prod(places) * size * x.dtype.itemsize)
    some = next(n for n in range(min(max(most, 1), images), 0, -1) if images % n == 0)

    def add(turn: jax.Array, total: jax.Array) -> jax.Array:
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=turn * some, slice_size=some)
        patches = _patches(cut(x), kernel.shape[:2], strides, padding)
        return total + patches.reshape(-1, size).T @ cut(gradient).reshape(-1, channels)

    total = lax.fori_loop(0, images // some, add, jnp.zeros((size, channels), x.dtype))
    return total.reshape(kernel.shape)


def _patches(x: jax.Array, size: Sequence[int], strides: Any, padding: Any) -> jax.Array:
    """What each place of the filter sees, [n, h', w', height * width * c]."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    n, *sides, c = padded.shape
    out = [(side - k) // stride for side, k, stride in zip(sides, size, strides, strict=True)]
    seen = [
        lax.slice(
            padded,
            (0, i, j, 0),
            (n, i + out[0] * strides[0] + 1, j + out[1] * strides[1] + 1, c),
            (1, *strides, 1),
        )
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(seen, -1)
