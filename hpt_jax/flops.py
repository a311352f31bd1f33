"""Model FLOPs of a program: its matrix products and convolutions, two for each multiply-add.

Counted in what was traced, not in what a compiler made of it: XLA's own count takes the body of a
loop once, and leaves out the taps of a kernel that fall outside an image.
"""

from __future__ import annotations

import math
from typing import Any

from jax.interpreters import partial_eval


def of_program(jaxpr: Any) -> float:
    """FLOPs of a traced program; of a mapped one, of one device.

    Args:
      jaxpr: of `jax.make_jaxpr`, or of `jax.jit(...).trace(...)`.

    Raises:
      NotImplementedError: it has a loop of unknown length that computes products.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    # What nothing reads, such as the gradient of the images, no compiler keeps.
    return _of_all(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _of_all(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "scan":
        return params["length"] * _of_all(params["jaxpr"])
    if name == "cond":
        return max(_of_all(branch) for branch in params["branches"])
    inner = sum(_of_all(each) for value in params.values() for each in _programs(value))
    if name == "while" and inner:
        raise NotImplementedError("a loop of unknown length computes products")
    return inner


def _programs(value: Any) -> list[Any]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [one for one in values if hasattr(one, "eqns") or hasattr(one, "jaxpr")]


def _of_product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _of_convolution(equation: Any) -> float:
    """Every output takes all taps, but those that meet a zero that was put between two inputs.

    Such zeros are what the gradient of a strided convolution is written with.
    """
    params = equation.params
    kernel, spec = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[i] for i in spec[1:])
    return (
        2.0 * math.prod(equation.outvars[0].aval.shape) * taps / math.prod(params["lhs_dilation"])
    )
