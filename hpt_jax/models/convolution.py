"""A convolution that is fast on CPUs too; on GPUs and TPUs it is XLA's own.

XLA's CPU backend computes some convolutions several times slower than the matrix products that
they come to: the filter's gradient at 1x1, the input's gradient with a stride, and all of one that
is larger than what it sees.
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
) -> tuple[jax.Array, jax.Array]:
    given = (x, kernel, gradient, strides, padding)
    return _native_gradient_of_x(*given), _native_gradient_of_kernel(*given)


def _native_gradient_of_x(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> jax.Array:
    (of_x,) = jax.linear_transpose(lambda x: _native(x, kernel, strides, padding), x)(gradient)
    return of_x


def _native_gradient_of_kernel(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> jax.Array:
    (of_kernel,) = jax.linear_transpose(lambda k: _native(x, k, strides, padding), kernel)(gradient)
    return of_kernel


def _by_products(x: jax.Array, kernel: jax.Array) -> bool:
    larger = kernel.shape[0] > x.shape[1] or kernel.shape[1] > x.shape[2]
    return larger or kernel.shape[:2] == (1, 1)


def _on_cpu(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    if not _by_products(x, kernel):
        return _native(x, kernel, strides, padding)
    patches = _patches(x, kernel.shape[:2], strides, padding)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _gradients_on_cpu(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> tuple[jax.Array, jax.Array]:
    given = (kernel, gradient, strides, padding)
    if _by_products(x, kernel):
        return _product_of_x(x, *given), _product_of_kernel(x, *given)
    of_x = _product_of_x if max(strides) > 1 else _native_gradient_of_x
    return of_x(x, *given), _native_gradient_of_kernel(_held(x), *given)


def _product_of_x(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> jax.Array:
    of_patches = gradient @ kernel.reshape(-1, kernel.shape[-1]).T
    (of_x,) = jax.linear_transpose(lambda x: _patches(x, kernel.shape[:2], strides, padding), x)(
        of_patches
    )
    return of_x


def _product_of_kernel(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: Any, padding: Any
) -> jax.Array:
    size, channels = math.prod(kernel.shape[:-1]), kernel.shape[-1]
    a = _patches(x, kernel.shape[:2], strides, padding).reshape(-1, size)
    b = gradient.reshape(-1, channels)
    # a.T @ b: Eigen is up to twice as fast with the wider one on the right.
    return ((b.T @ a).T if size > channels else a.T @ b).reshape(kernel.shape)


def _held(x: jax.Array) -> jax.Array:
    """The same, which XLA computes once and then keeps: it does not look into a loop.

    The filter's gradient wants the images last. XLA would compute `x` anew while it transposes it,
    element by element, from all that it comes from.
    """

    def write_where_it_is(image: jax.Array, x: jax.Array) -> jax.Array:
        first = (image, 0, 0, 0)
        return lax.dynamic_update_slice(x, lax.dynamic_slice(x, first, (1, 1, 1, 1)), first)

    # A single trip would be no loop to XLA; a second one past the end is moved back to the start.
    return lax.fori_loop(0, 2, write_where_it_is, x)


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
