"""Model FLOPs: two for each multiply-add of a product or a convolution, against closed forms."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from hpt_jax import config, flops, moco, training
from hpt_jax.augment.policies import POLICIES
from hpt_jax.parallel import make_devices


def counted(fn, *shapes):
    return flops.of_program(jax.make_jaxpr(fn)(*(jnp.zeros(shape) for shape in shapes)))


def convolved(x, kernel, stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=numbers)


def test_a_product_counts_two_for_each_multiply_add():
    assert counted(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert counted(jnp.matmul, (2, 3, 5), (2, 5, 7)) == 2 * 2 * 3 * 5 * 7


def test_what_is_no_product_counts_nothing():
    assert counted(lambda x: jnp.tanh(x).sum(), (30, 40)) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_of_a_convolution_cost_as_much_as_it_does(stride):
    shapes = (2, 8, 8, 3), (3, 3, 3, 6)
    forward = 2 * (2 * (8 // stride) ** 2 * 6) * (3 * 3 * 3)
    assert counted(lambda x, k: convolved(x, k, stride), *shapes) == forward
    loss = jax.grad(lambda x, k: jnp.square(convolved(x, k, stride)).sum(), (0, 1))
    assert counted(loss, *shapes) == 3 * forward


def test_a_loop_counts_as_often_as_it_runs_and_a_choice_as_its_dearest_branch():
    def looped(x, k):
        return lax.scan(lambda carry, _: (carry @ k, None), x, None, 4)[0]

    def chosen(x, k):
        return lax.cond(x[0, 0] > 0, lambda: x @ k, lambda: x)

    for fn, times in ((looped, 4), (chosen, 1), (jax.jit(looped), 4), (jax.checkpoint(chosen), 1)):
        assert counted(fn, (3, 5), (5, 5)) == times * 2 * 3 * 5 * 5


def test_a_loop_of_unknown_length_that_computes_products_is_refused():
    def looped(x, k):
        return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ k, x)

    with pytest.raises(NotImplementedError, match="unknown length"):
        counted(looped, (3, 5), (5, 5))


def resnet50_forward(size: int) -> tuple[int, int]:
    """FLOPs of all convolutions, and of the first: He et al. (2015), stride in the 3x3."""
    side = size // 2
    first = 2 * side**2 * 64 * 49 * 3
    total, channels, side = first, 64, side // 2
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            before, side = side, side // 2 if stage and not block else side
            total += 2 * before**2 * channels * width  # 1x1
            total += 2 * side**2 * 9 * width * width  # 3x3
            total += 2 * side**2 * width * 4 * width  # 1x1
            if not block:
                total += 2 * side**2 * channels * 4 * width  # shortcut
            channels = 4 * width
    return total, first


def test_a_step_of_resnet50_costs_the_network_four_times_and_the_queue():
    images, size, queue, dim = 2, 224, 1024, 128
    forward, first = resnet50_forward(size)
    assert math.isclose(forward, 8.174e9, rel_tol=1e-3)
    stage = config.Stage(
        batch_size=images,
        image_size=size,
        model=config.Model(bn_groups=1),
        moco=config.MoCo(queue_size=queue, dim=dim),
        augment=dataclasses.replace(POLICIES["crop"]),
    )
    devices = make_devices(1)
    settings = moco.make_settings(stage, training.make_model(stage.model, devices), 3)
    found = flops.of_program(training.traced_step(moco, settings, devices, 3).jaxpr)

    head = 2 * (2048 * 2048 + 2048 * dim)
    # Key forward, query forward and both its gradients, but for that of the images.
    network = 4 * (forward + head) - first
    # Logits, their gradient, and the logits once more for each of two metrics; the queue's
    # multiplies with the batch's own keys as well.
    contrast = 4 * 2 * dim * queue + 2 * dim * images
    assert found == pytest.approx(images * (network + contrast), rel=1e-6)
