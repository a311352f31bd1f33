"""A backbone as one safetensors file with timm's and torchvision's names, and a card beside it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from hpt_jax.models.backbone import Backbone

_BLOCK = re.compile(r"(layer\d)_(\d+)_(.+)")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_name(module: str, leaf: str) -> str:
    """A tensor's name in torchvision: ('layer1_0_conv1', 'kernel') -> layer1.0.conv1.weight."""
    block = _BLOCK.fullmatch(module)
    if block:
        inner = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
        module = f"{block[1]}.{block[2]}.{inner.get(block[3], block[3])}"
    return f"{module}.{_LEAVES[leaf]}"


def flatten(backbone: Any) -> dict[str, np.ndarray]:
    """A backbone's tensors by torchvision's names, convolutions still [h, w, in, out].

    Args:
      backbone: anything with `params` and `batch_stats`: nested dicts {module: {leaf: array}}.
    """
    both = [*traverse_util.flatten_dict(backbone.params).items()]
    both += traverse_util.flatten_dict(backbone.batch_stats).items()
    return {torch_name(*path): value for path, value in both}


def export_backbone(backbone: Backbone, facts: dict[str, Any], folder: Path) -> Path:
    """Writes `backbone.safetensors` and `card.md`, both by rename.

    Args:
      backbone: what to write; convolutions become torch's [out, in, h, w].
      facts: what the file says of itself: the model's fields, image size, lineage.
      folder: made if it is not there.

    Returns:
      The path of the file.
    """
    tensors = {}
    for name, value in flatten(backbone).items():
        array = np.asarray(value)
        tensors[name] = np.ascontiguousarray(
            array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        )
    mean = [float(x) for x in np.asarray(backbone.pixel_mean)]
    std = [float(x) for x in np.asarray(backbone.pixel_std)]
    window = [int(x) for x in np.asarray(backbone.pixel_window)]
    facts = {**facts, "pixel_mean": mean, "pixel_std": std, "pixel_window": window}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "backbone.safetensors"
    temporary = target.with_name(target.name + ".tmp")
    metadata = {"format": "pt", "hpt_jax": json.dumps(facts, sort_keys=True)}
    temporary.write_bytes(_ordered(save(tensors, metadata)))
    os.replace(temporary, target)
    temporary = folder / "card.md.tmp"
    temporary.write_text(_card(facts, len(tensors)))
    os.replace(temporary, folder / "card.md")
    return target


def _ordered(file: bytes) -> bytes:
    """A safetensors file with its header sorted: the same content is always the same bytes.

    safetensors writes metadata in random order, and a file's hash is part of the identity of the
    stages that start from it.
    """
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data stays aligned
    return len(header).to_bytes(8, "little") + header + file[start:]


def _card(facts: dict[str, Any], tensors: int) -> str:
    return f"""# Backbone

{facts["arch"]}, width {facts["width"]}, stem `{facts["stem"]}` (stride {facts["stem_stride"]}), \
{tensors} tensors with torchvision's and timm's names, without a classifier.

- Lineage: {facts["lineage"]}
- Input: {facts["channels"]} channels{" in RGB order" if facts["channels"] == 3 else ""}, \
{facts["image_size"]} px, {_scaling(facts["pixel_window"])}, then normalised with
  - mean {facts["pixel_mean"]}
  - std {facts["pixel_std"]}
- Convolutions are [out, in, height, width], padded by kernel // 2 on every side; the stride of a \
bottleneck is on its 3x3.
- Batch norm: epsilon 1e-5, running statistics of the last stage; use them (evaluation mode) for \
features.
"""


def _scaling(window: list[int]) -> str:
    if not any(window):
        return "scaled to [0, 1]"
    return f"16-bit values from {window[0]} to {window[1]} scaled to [0, 1] and clipped"
