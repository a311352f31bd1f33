"""The network that tensors are of, read off their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpt_jax.errors import UserError
from hpt_jax.models.resnet import ARCHITECTURES, STEMS


def depths(tensors: Mapping[str, Any]) -> list[str]:
    """The architectures that have these blocks; a layer that is missing fits any depth."""
    blocks = _blocks(tensors)
    bottleneck = any(re.match(r"layer\d+\.\d+\.conv3\.", name) for name in tensors)
    return [
        arch
        for arch, (deep, stages) in ARCHITECTURES.items()
        if deep == bottleneck
        and all(layer <= len(stages) and stages[layer - 1] == n for layer, n in blocks.items())
    ]


def _blocks(tensors: Mapping[str, Any]) -> dict[int, int]:
    """Layer -> its number of blocks, of the layers that are there, in order."""
    blocks: dict[int, int] = {}
    for name in tensors:
        if block := re.match(r"layer(\d+)\.(\d+)\.", name):
            blocks[int(block[1])] = max(blocks.get(int(block[1]), 0), int(block[2]) + 1)
    return dict(sorted(blocks.items()))


def architecture_of(
    tensors: Mapping[str, Any], stem: str, field: str, source: str
) -> dict[str, Any]:
    """A model's `ARCHITECTURE_FIELDS`, and the channels of its images.

    Args:
      tensors: by torchvision's names, convolutions as [h, w, in, out].
      stem: a name in `STEMS`, where it is known; '' to choose by the size of the kernel.
      field: the config's field or the flag to blame.
      source: the file.

    Raises:
      UserError: it is no ResNet that can be built here.
    """
    archs = depths(tensors)
    if not archs:
        counts = ", ".join(map(str, _blocks(tensors).values()))
        expected = f"one of {', '.join(ARCHITECTURES)}, but its layers have {counts} blocks"
        raise UserError(field, source, expected, "Other ResNets cannot be loaded.")
    first = tensors.get("conv1.weight", np.zeros(()))
    # Where the first convolution is missing, or is none, `check` will say so.
    kernel, channels = first.shape[1:3] if first.ndim == 4 else (7, 3)
    likely = {7: "imagenet", 3: "small"}.get(kernel)
    if likely is None:
        expected = f"a first convolution of 7x7 or 3x3, but it is {kernel}x{kernel}"
        raise UserError(field, source, expected, "Other stems cannot be loaded.")
    narrow = [tensors.get(f"{name}.weight") for name in ("conv1", "bn1", "layer1.0.conv1")]
    return {
        "arch": archs[0],
        "width": next((one.shape[-1] for one in narrow if one is not None and one.ndim), 64),
        "stem": stem or likely,
        "stem_stride": STEMS[likely].stride or 1,
        "channels": channels,
    }
