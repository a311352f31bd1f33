"""A whole MoCo step against PyTorch's on the same CPU: seconds a step, ours by theirs.

Both take u8 crops to the next state: normalisation, both encoders, loss, gradients, SGD, momentum
update, queue. Ours also computes its metrics, as it always does. Colours and blur are left out, of
both. Alternating in one process, two threads each; the pair with the median ratio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pairs import alternating
from benchmarks.run import Asked
from benchmarks.table import Measured, Skipped
from hpt_jax import moco, parallel, training
from hpt_jax.augment.policies import POLICIES
from hpt_jax.models.backbone import init_backbone
from hpt_jax.models.resnet import ResNet

PAIRS = 7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and what it is fed."""

    arch: str
    width: int
    stem: str
    stem_stride: int
    size: int
    batch: int
    queue: int
    groups: int = 1


CASES = {
    "step_resnet50_224px_b8": Case("resnet50", 64, "imagenet", 2, 224, 8, 65536),
    "step_resnet50_64px_b16": Case("resnet50", 64, "imagenet", 2, 64, 16, 65536),
    "step_resnet18_w16_32px_b128": Case("resnet18", 16, "small", 1, 32, 128, 4096),
    # configs/aerial.py and configs/quickstart.py
    "step_aerial": Case("resnet10", 16, "small", 2, 32, 128, 4096, 4),
    "step_quickstart": Case("resnet10", 8, "small", 2, 28, 64, 1024, 4),
}


def rows(asked: Asked) -> Iterator[Measured | Skipped]:
    """One row a case."""
    try:
        import torch
    except ModuleNotFoundError:
        yield from (Skipped(name, "needs the extra torch") for name in CASES)
        return
    torch.set_num_threads(2)
    for name, case in CASES.items():
        yield Measured(name, *alternating(ours(case), theirs(case), PAIRS))


def images(case: Case) -> np.ndarray:
    """u8[2, batch, size, size, 3], the two views."""
    shape = (2, case.batch, case.size, case.size, 3)
    return np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)


def settings_of(case: Case, devices: parallel.Devices) -> moco.Settings:
    """Of a step of hpt_jax."""
    layout = devices.group_layout(case.groups)
    model = ResNet(case.arch, case.width, case.stem, case.stem_stride, layout=layout)
    return moco.Settings(
        model, case.size, POLICIES["crop"], case.batch, case.batch, case.queue, 128, 0.999, 0.2,
        False, "all", 1e-4, 0.9,
    )  # fmt: skip


def ours(case: Case, program: Callable[..., Any] | None = None) -> Callable[[], None]:
    """A step of hpt_jax; each call goes on from where the last one ended.

    Args:
      case: the network and what it is fed.
      program: the step, where it is compiled already.
    """
    devices = parallel.make_devices(1)
    settings = settings_of(case, devices)
    backbone = init_backbone(settings.model, jax.random.key(0), np.array(MEAN), np.array(STD))
    carry = devices.replicate(training.initial_carry(moco, settings, jax.random.key(1), backbone))
    take = program or training._compiled_step(moco, settings, devices)
    query, key = images(case)
    slots = np.arange(case.batch, dtype=np.int32)
    batch = devices.shard({"query": query, "key": key, "images": slots, "key_slots": slots})
    rate = devices.replicate(jnp.float32(1e-3))

    def run() -> None:
        nonlocal carry
        carry, metrics = take(carry, batch, rate)
        jax.block_until_ready((carry, metrics))

    return run


def theirs(case: Case) -> Callable[[], None]:
    """The same of PyTorch."""
    import torch

    from benchmarks.moco_torch import Training
    from tests.parity.oracle import Encoder
    from tests.parity.oracle import ResNet as TorchResNet

    torch.manual_seed(0)
    backbone = TorchResNet(case.arch, case.width, case.stem, case.stem_stride)
    trained = Training(Encoder(backbone, 128), case.queue, 128, 1e-3)
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    query, key = torch.from_numpy(images(case)).permute(0, 1, 4, 2, 3)

    def run() -> None:
        views = ((view.float() / 255 - mean) / std for view in (query, key))
        trained.step(*views)

    return run
