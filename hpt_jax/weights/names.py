"""One name for every tensor of a backbone: torchvision's, which most others share."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from flax import traverse_util

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


def to_torch(array: np.ndarray) -> np.ndarray:
    """A tensor as torch lays it out: convolutions [h, w, in, out] become [out, in, h, w]."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def from_torch(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`, without a copy."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
