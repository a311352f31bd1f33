"""The backbone as a PyTorch module of torchvision's parts, for ONNX and to verify exports."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpt_jax.errors import UserError
from hpt_jax.models.resnet import ARCHITECTURES, STEMS


def needed(name: str, kind: str) -> Any:
    """Imports a package of the extra `torch`, which a format needs.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        fix = "Run pip install 'hpt_jax[torch]'."
        raise UserError("--format", kind, f"{error.name} to be installed", fix) from None


def build(facts: Mapping[str, Any]) -> Any:
    """Torchvision's ResNet of an architecture, in evaluation mode, without a classifier.

    Args:
      facts: `arch`, `width`, `stem`, `stem_stride`, `channels`.
    """
    import torch
    from torchvision import models

    base: Any = models.ResNet
    module: Any = torch.nn.Module
    width, stem = facts["width"], STEMS[facts["stem"]]

    class Resnet(base):
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> Any:
            if planes == 64:  # the first layer
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, *args, **kwargs)

    class Same(module):
        def forward(self, x: Any) -> Any:  # after a ReLU, so that zeros change no maximum
            edges = (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1)
            return torch.nn.functional.max_pool2d(torch.nn.functional.pad(x, edges), 3, 2)

    deep, stages = ARCHITECTURES[facts["arch"]]
    model = Resnet(models.resnet.Bottleneck if deep else models.resnet.BasicBlock, list(stages))
    stride = stem.stride or facts["stem_stride"]
    model.conv1 = torch.nn.Conv2d(
        facts["channels"], width, stem.kernel, stride, stem.padding, bias=False
    )
    model.bn1 = torch.nn.BatchNorm2d(width)
    if stem.pool is None:
        model.maxpool = torch.nn.Identity()
    elif stem.pool == "SAME":
        model.maxpool = Same()
    model.fc = torch.nn.Identity()
    return model.eval()


def onnx(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    """An ONNX model: images f32[n, channels, h, w] -> features f32[n, features], any n, h, w.

    Args:
      tensors: by torchvision's names, as torch lays them out.
      facts: as in `build`.
    """
    torch, *_ = (needed(name, "onnx") for name in ("torch", "torchvision", "onnx", "onnxscript"))
    model = build(facts)
    model.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    example = torch.zeros(2, facts["channels"], 64, 64)
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "backbone.onnx"
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps the exporter's progress and advice to its developers off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
