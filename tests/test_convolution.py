"""Our convolution is XLA's, on every platform, and on TPUs and GPUs the very same program."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpt_jax.models.convolution import conv_general_dilated
from hpt_jax.models.resnet import ResNet

# height, width, channels, filters, size, stride: every branch, sizes that do not divide, one pixel.
SHAPES = [
    (19, 20, 3, 4, 7, 2), (12, 9, 3, 4, 3, 1), (9, 12, 3, 4, 3, 2), (7, 7, 3, 4, 3, 1),
    (7, 6, 3, 4, 3, 2), (2, 2, 3, 4, 3, 1), (2, 2, 3, 4, 3, 2), (1, 1, 3, 4, 3, 1),
    (9, 10, 3, 4, 1, 2), (8, 8, 3, 4, 1, 1), (1, 1, 3, 4, 1, 2), (5, 5, 3, 4, 7, 2),
]  # fmt: skip


def _module(filters: int, size: int, stride: int, **options: object) -> nn.Conv:
    return nn.Conv(
        filters, (size, size), (stride, stride), size // 2, use_bias=False,
        param_dtype=jnp.float64, **options,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_gradients_equal_xlas(shape: tuple[int, ...]) -> None:
    height, width, channels, filters, size, stride = shape
    with jax.enable_x64(True):
        native = _module(filters, size, stride)
        ours = native.clone(conv_general_dilated=conv_general_dilated)
        x = jax.random.normal(jax.random.key(0), (6, height, width, channels), jnp.float64)
        variables = native.init(jax.random.key(1), x)
        assert jax.tree.all(
            jax.tree.map(np.array_equal, ours.init(jax.random.key(1), x), variables)
        )

        def results(module: nn.Conv) -> list[jax.Array]:
            def loss(x: jax.Array, variables: dict) -> tuple[jax.Array, jax.Array]:
                y = module.apply(variables, x)
                return jnp.sin(y * jnp.arange(y.size).reshape(y.shape)).sum(), y

            (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, variables)
            return [y, *jax.tree.leaves(gradients)]

        for found, expected in zip(results(ours), results(native), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_keep_xlas_convolutions(platform: str) -> None:
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    model = ResNet("resnet10", 8, "small")
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), x)

    def loss(variables: dict, x: jax.Array) -> jax.Array:
        return model.apply(variables, x, train=False).sum()

    lowered = jax.jit(jax.grad(loss)).trace(variables, x).lower(lowering_platforms=(platform,))
    # 12 convolutions forward; backward two gradients each, and none of the images.
    assert lowered.as_text().count("stablehlo.convolution(") == 3 * 12 - 1
    assert "dot_general" not in lowered.as_text()
