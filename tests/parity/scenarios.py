"""What both sides compute: sizes, and inputs that numpy draws from a seed.

Hyper-parameters are each side's own: ours are the defaults of `hpt_jax.config`, the oracle's are
written in `oracle.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hpt_jax import config
from hpt_jax.augment import views
from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights.names import flatten

PIXEL_MEAN, PIXEL_STD = np.array([0.48, 0.45, 0.4]), np.array([0.25, 0.24, 0.26])


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One comparison of whole steps.

    Attributes:
      arch: a name in `hpt_jax.models.resnet.ARCHITECTURES`.
      width: of the backbone.
      stem: 'imagenet' or 'small'.
      image_size: of the views, pixels.
      trainable: 'all', 'batch_norm' (HPT-BN) or 'statistics'.
      steps: of training; the cosine's length.
      batch_size: in four groups of batch norm.
      queue_size: no multiple of the batch, so that batches wrap around its end.
    """

    arch: str
    width: int
    stem: str
    image_size: int
    trainable: str = "all"
    steps: int = 10
    batch_size: int = 16
    queue_size: int = 40

    def stage(self, dtype: str = "float64") -> config.Stage:
        """Our side: the shipped defaults, with these sizes."""
        return config.Stage(
            trainable=self.trainable,
            batch_size=self.batch_size,
            image_size=self.image_size,
            model=dataclasses.replace(
                config.Model(), arch=self.arch, width=self.width, stem=self.stem, dtype=dtype
            ),
            moco=dataclasses.replace(config.MoCo(), queue_size=self.queue_size, dim=16),
        )


FULL_SIZE = {arch: Scenario(arch, 64, "imagenet", 64) for arch in ("resnet18", "resnet50")}
# Narrow enough for their traces to be kept as files.
GOLDEN = {
    "moco": Scenario("resnet18", 2, "imagenet", 64),
    "hpt_bn": Scenario("resnet50", 2, "small", 48, "batch_norm"),
    "statistics": Scenario("resnet50", 2, "imagenet", 64, "statistics"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What a step is given: crops u8[n, s, s, 3] in the order of slots, and the keys' shuffle."""

    query: np.ndarray
    key: np.ndarray
    permutation: np.ndarray


def tensors(model: ResNet, seed: int) -> dict[str, np.ndarray]:
    """A backbone's tensors f64 by torchvision's names, none at a value that hides a mistake."""
    rng, made = np.random.default_rng(seed), {}
    for name, like in sorted(flatten(abstract_backbone(model, 3)).items()):
        if len(like.shape) == 4:
            height, width, inner, out = like.shape
            fan_in = height * width * inner
            made[name] = rng.normal(0, np.sqrt(2 / fan_in), (out, inner, height, width))
        elif name.endswith("bias") or name.endswith("mean"):
            made[name] = rng.normal(0, 0.1, like.shape)
        else:
            made[name] = rng.uniform(0.5, 1.5, like.shape)
    for name in made:
        # As in trained networks. With larger ones a ResNet-50's steps are chaotic: rounding alone
        # grows a hundredfold a step, and no tolerance would tell it from a mistake.
        if name.endswith("bn3.weight"):
            made[name] *= 0.2
    return made


def head_tensors(features: int, dim: int, seed: int) -> dict[str, np.ndarray]:
    """The projection head's tensors f64, [out, in] and [out]."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, out in (("0", features), ("2", dim)):
        made[f"{name}.weight"] = rng.normal(0, np.sqrt(2 / features), (out, features))
        made[f"{name}.bias"] = rng.normal(0, 0.1, out)
    return made


def queue(scenario: Scenario) -> np.ndarray:
    """Random unit vectors f64[queue_size, dim]."""
    made = np.random.default_rng(3).normal(size=(scenario.queue_size, scenario.stage().moco.dim))
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def batches(scenario: Scenario) -> list[Batch]:
    """Of each step: noise over a gradient of colour, so that every operation has work."""
    rng = np.random.default_rng(4)
    size, count = scenario.image_size, scenario.batch_size

    def crops() -> np.ndarray:
        ramp = np.linspace(0, 1, size)[:, None]
        colors = rng.uniform(0, 255, (2, count, 1, 1, 3))
        smooth = colors[0] * ramp + colors[1] * (1 - ramp)
        return np.clip(smooth + rng.normal(0, 30, (count, size, size, 3)), 0, 255).astype(np.uint8)

    return [Batch(crops(), crops(), rng.permutation(count)) for _ in range(scenario.steps)]


def of_step(trace: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """What a trace has of one step."""
    return {name: value for name, value in trace.items() if name.startswith(f"{step}/")}


def rng_of_step() -> Any:
    """The stage's key, from which both sides' views are drawn."""
    return jax.random.key(5)


def draws(scenario: Scenario, step: int, view: int) -> np.ndarray:
    """Every example's uniform numbers f32[n, 13], of `moco.QUERY` or `moco.KEY`."""
    slots = np.arange(scenario.batch_size)
    return np.asarray(_draws(rng_of_step(), step, slots, view))


_draws = jax.jit(jax.vmap(views.view_draws, (None, None, 0, None)))
