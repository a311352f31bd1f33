"""Runs an exported file in the library that it was written for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpt_jax.weights import torch_model

TOLERANCE = 1e-5  # of the largest feature, where that exceeds one
Facts = Mapping[str, Any]


def _torchvision(folder: Path, facts: Facts, images: np.ndarray) -> np.ndarray:
    import torch

    return _run(
        torch_model.build(facts), torch.load(folder / "backbone.pth", weights_only=True), images
    )


def _safetensors(folder: Path, facts: Facts, images: np.ndarray) -> np.ndarray:
    from safetensors.torch import load_file

    return _run(torch_model.build(facts), load_file(folder / "backbone.safetensors"), images)


def _run(model: Any, tensors: Mapping[str, Any], images: np.ndarray) -> np.ndarray:
    model.load_state_dict(tensors)
    return _features(model, images)


def _timm(folder: Path, facts: Facts, images: np.ndarray) -> np.ndarray:
    import timm

    name, channels = f"local-dir:{folder}", facts["channels"]
    return _features(timm.create_model(name, pretrained=True, in_chans=channels).eval(), images)


def _features(model: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def _onnx(folder: Path, facts: Facts, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "backbone.onnx")
    return session.run(None, {"images": images})[0]


# Of each format: the packages that it takes, the one that reads it first, and how. detectron2 is
# not on PyPI, so its format is left out.
_RUNS: dict[str, tuple[tuple[str, ...], Callable[[Path, Facts, np.ndarray], np.ndarray]]] = {
    "torchvision": (("torchvision", "torch"), _torchvision),
    "safetensors": (("torchvision", "torch"), _safetensors),
    "timm": (("timm", "torch"), _timm),
    "onnx": (("onnxruntime",), _onnx),
}


def verify(kind: str, folder: Path, facts: Facts, images: np.ndarray, ours: np.ndarray) -> str:
    """Compares features in the other library with ours; says the outcome in a line.

    Args:
      kind: a name in `export.FORMATS`.
      folder: with the exported files.
      facts: of the exported network.
      images: f32[n, h, w, channels], normalised.
      ours: f32[n, features].

    Raises:
      RuntimeError: they differ by more than `TOLERANCE`: the export is wrong.
    """
    if kind not in _RUNS:
        return f"not verified: {kind} cannot be had from PyPI"
    packages, run = _RUNS[kind]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            return f"not verified: {package} is not installed (pip install 'hpt_jax[torch]')"
    theirs = run(folder, facts, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    worst = float(np.abs(theirs - ours).max() / max(1.0, np.abs(ours).max()))
    library = f"{packages[0]} {importlib.metadata.version(packages[0])}"
    if not worst <= TOLERANCE:
        raise RuntimeError(f"features in {library} differ by {worst:.1e} of the largest")
    return f"verified in {library}: features of the fixed image differ by {worst:.0e} at most"
