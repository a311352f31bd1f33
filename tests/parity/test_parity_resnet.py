"""Full-size ResNets equal torchvision's, block by block, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from compare import GRADIENTS, OUTPUTS, assert_close

torch = pytest.importorskip("torch")
import resnets  # noqa: E402
import theirs  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("optimized")]

ARCHITECTURES = ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_blocks_output_in_evaluation_is_torchs(arch: str) -> None:
    assert_close(resnets.our_maps(arch)[0], resnets.torchs_maps(arch)[0], OUTPUTS)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_blocks_output_in_training_is_torchs(arch: str) -> None:
    assert_close(resnets.our_maps(arch)[1], resnets.torchs_maps(arch)[1], OUTPUTS)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_running_statistics_of_several_batches_are_torchs(arch: str) -> None:
    assert_close(resnets.our_maps(arch)[2], resnets.torchs_maps(arch)[2], OUTPUTS)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameters_gradient_is_torchs(arch: str) -> None:
    assert_close(resnets.our_gradients(arch), resnets.torchs_gradients(arch), GRADIENTS)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_single_precision_is_within_a_thousandth_of_double(arch: str) -> None:
    for single, double in zip(
        resnets.our_maps(arch, "float32")[:2], resnets.torchs_maps(arch)[:2], strict=True
    ):
        expected = {name: value.astype(np.float32) for name, value in double.items()}
        assert_close(single, expected, 1e-3)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_oracles_resnet_is_torchvisions(arch: str, train: bool) -> None:
    module = theirs.load(arch, 64, "imagenet", seed=1).train(train)
    x = torch.from_numpy(resnets.images()[0]).permute(0, 3, 1, 2)
    assert_close(resnets.blocks(module, x), resnets.torchs_maps(arch)[train], 1e-13)
