"""The oracle's side of the comparisons, on the scenarios' inputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import oracle
import scenarios
import torch
from scenarios import PIXEL_MEAN, PIXEL_STD, Scenario

from hpt_jax import moco
from hpt_jax.models.resnet import ResNet

# Its idle threads would wait by spinning, on cores that JAX and other tests work on.
torch.set_num_threads(1)


def trace(scenario: Scenario, dtype: torch.dtype = torch.float64) -> dict[str, np.ndarray]:
    """Every step of a scenario, by 'step/name'; in the given precision but for the views."""
    backbone = load(scenario.arch, scenario.width, scenario.stem, seed=1).to(dtype)
    if scenario.trainable == "statistics":
        taken = oracle.statistics(backbone, _evaluation_views(scenario, dtype), oracle.Recipe.ranks)
    else:
        taken = _moco(scenario, backbone, dtype)
    return {
        f"{step}/{name}": value for step, found in enumerate(taken) for name, value in found.items()
    }


def load(arch: str, width: int, stem: str, seed: int) -> oracle.ResNet:
    """A ResNet of the scenarios' tensors, f64."""
    backbone = oracle.ResNet(arch, width, stem).double()
    tensors = scenarios.tensors(ResNet(arch, width, stem), seed)
    fill(backbone, tensors)
    return backbone


def fill(module: torch.nn.Module, tensors: dict[str, np.ndarray]) -> None:
    """Sets every tensor by name; torch's own counters of batches stay."""
    given = {name: torch.from_numpy(value) for name, value in tensors.items()}
    missing, unexpected = module.load_state_dict(given, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing


def _moco(
    scenario: Scenario, backbone: oracle.ResNet, dtype: torch.dtype
) -> Iterator[dict[str, np.ndarray]]:
    dim = scenario.stage().moco.dim
    encoder = oracle.Encoder(backbone, dim).to(dtype)
    fill(encoder.head, scenarios.head_tensors(backbone.features, dim, seed=2))
    recipe = oracle.Recipe(bn_alone=scenario.trainable == "batch_norm")
    queue = torch.from_numpy(scenarios.queue(scenario)).to(dtype)
    training = oracle.MoCo(encoder, queue, recipe, scenario.steps)
    for step, batch in enumerate(scenarios.batches(scenario)):
        query, key = (
            _views(crops, scenarios.draws(scenario, step, view)).to(dtype)
            for view, crops in ((moco.QUERY, batch.query), (moco.KEY, batch.key))
        )
        yield training.step(query, key, batch.permutation)


def _views(crops: np.ndarray, draws: np.ndarray) -> torch.Tensor:
    pixel = (PIXEL_MEAN.astype(np.float32), PIXEL_STD.astype(np.float32))
    made = [oracle.view(crop, own, *pixel) for crop, own in zip(crops, draws, strict=True)]
    return torch.stack(made)


def _evaluation_views(scenario: Scenario, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    mean, std = (
        torch.from_numpy(one.astype(np.float32)).double() for one in (PIXEL_MEAN, PIXEL_STD)
    )
    for batch in scenarios.batches(scenario):
        images = torch.from_numpy(batch.query).double() / 255
        yield ((images - mean) / std).permute(0, 3, 1, 2).to(dtype)
