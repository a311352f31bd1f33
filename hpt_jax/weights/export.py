"""A backbone as a file for other libraries, and a card beside it that says how to use it."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from hpt_jax.errors import UserError, printable
from hpt_jax.models.backbone import Backbone
from hpt_jax.models.resnet import ARCHITECTURES, STEMS
from hpt_jax.weights import torch_model
from hpt_jax.weights.files import METADATA
from hpt_jax.weights.names import flatten, to_torch
from hpt_jax.workdir import whole

Tensors = Mapping[str, np.ndarray]
Facts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
      files: (tensors, facts) -> name and content of each file.
      usage: facts -> how to load it, for the card; Markdown.
      unfit: facts -> why the format cannot hold this network; '' where it can.
    """

    files: Callable[[Tensors, Facts], dict[str, bytes]]
    usage: Callable[[Facts], str]
    unfit: Callable[[Facts], str] = lambda facts: ""


def export_backbone(
    backbone: Backbone, facts: Facts, folder: Path, kind: str = "safetensors"
) -> Path:
    """Writes a backbone and its card into a folder, each by rename.

    Args:
      backbone: what to write; convolutions become torch's [out, in, h, w].
      facts: what the files say of themselves: the model's fields, channels, image size, lineage.
      folder: made if it is not there.
      kind: a name in `FORMATS`.

    Returns:
      The path of the weights.

    Raises:
      UserError: the format cannot hold this network, or needs a package that is not there.
    """
    tensors = {name: to_torch(np.asarray(value)) for name, value in flatten(backbone).items()}
    facts = {
        **facts,
        "pixel_mean": [float(x) for x in np.asarray(backbone.pixel_mean)],
        "pixel_std": [float(x) for x in np.asarray(backbone.pixel_std)],
        "pixel_window": [int(x) for x in np.asarray(backbone.pixel_window)],
    }
    made = FORMATS[kind]
    reason = made.unfit(facts)
    if reason:
        fix = "--format safetensors, torchvision and onnx take every network."
        raise UserError("--format", kind, f"a network that it can hold, but {reason}", fix)
    written = made.files(tensors, facts)
    card = _card(facts, len(tensors), made.usage(facts))
    for name, content in {**written, "card.md": card.encode()}.items():
        with whole(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / next(iter(written))


def _safetensors(tensors: Tensors, facts: Facts) -> dict[str, bytes]:
    metadata = {"format": "pt", METADATA: json.dumps(facts, sort_keys=True)}
    return {"backbone.safetensors": _ordered(save(dict(tensors), metadata))}


def _ordered(file: bytes) -> bytes:
    """A safetensors file with its header sorted: the same content is always the same bytes.

    safetensors writes metadata in random order, and a file's hash is part of the identity of the
    stages that start from it.
    """
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data stays aligned
    return len(header).to_bytes(8, "little") + header + file[start:]


def _torchvision(tensors: Tensors, facts: Facts) -> dict[str, bytes]:
    torch = torch_model.needed("torch", "torchvision")
    state: Any = collections.OrderedDict((name, torch.tensor(v)) for name, v in tensors.items())
    # Where torch keeps the versions of modules: it skips what it does not know, and saves it again.
    state._metadata = {METADATA: {METADATA: json.dumps(facts, sort_keys=True)}}
    file = io.BytesIO()
    torch.save(state, file)
    return {"backbone.pth": file.getvalue()}


def _timm(tensors: Tensors, facts: Facts) -> dict[str, bytes]:
    side = facts.get("image_size", 224)
    config = {
        "architecture": facts["arch"],
        "num_classes": 0,
        "num_features": len(tensors["layer4.0.bn2.weight"]) * (4 if _is_deep(facts) else 1),
        "pretrained_cfg": {
            "input_size": [facts["channels"], side, side],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": facts.get("center_crop", 1.0),
            "mean": facts["pixel_mean"],
            "std": facts["pixel_std"],
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    text = json.dumps(config, indent=1) + "\n"
    return {"model.safetensors": _safetensors(tensors, facts)["backbone.safetensors"],
            "config.json": text.encode()}  # fmt: skip


def _timm_unfit(facts: Facts) -> str:
    if facts["arch"] == "resnet10":
        return "timm has no resnet10"
    if facts["width"] != 64 or facts["stem"] != "imagenet":
        return "timm builds ResNets of width 64 with the stem 'imagenet' alone"
    if facts["channels"] not in (1, 3):
        return "timm starts the first convolution at random for other than 1 and 3 channels"
    return ""


def _detectron2(tensors: Tensors, facts: Facts) -> dict[str, bytes]:
    model = {detectron2_name(name): value for name, value in tensors.items()}
    content = {"model": model, "__author__": "hpt_jax", "matching_heuristics": True}
    return {"backbone.pkl": pickle.dumps(content, protocol=4)}


def detectron2_name(name: str) -> str:
    """Torchvision's name in detectron2: layer1.0.bn2.weight -> res2.0.conv2.norm.weight."""
    name = re.sub(r"^layer(\d)", lambda layer: f"res{int(layer[1]) + 1}", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name if name.startswith("res") else f"stem.{name}"


def _detectron2_unfit(facts: Facts) -> str:
    if facts["stem"] != "imagenet":
        return "detectron2's stem is 'imagenet' alone"
    return "detectron2 has no such depth" if facts["arch"] == "resnet10" else ""


def _onnx(tensors: Tensors, facts: Facts) -> dict[str, bytes]:
    return {"backbone.onnx": torch_model.onnx(tensors, facts)}


def _is_deep(facts: Facts) -> bool:
    return ARCHITECTURES[facts["arch"]][0]


def _code(lines: str) -> str:
    return f"```python\n{lines.strip()}\n```"


def _use_safetensors(facts: Facts) -> str:
    return (
        "Of hpt_jax: `--config.init=PATH` starts from it. Elsewhere (torchvision's and timm's "
        "names, no classifier):\n\n"
        + _code(
            "from safetensors.torch import load_file\n\n"
            f"{_network(facts)}\n"
            'model.load_state_dict(load_file("backbone.safetensors"))\n'
            "model.eval()"
        )
    )


def _use_torchvision(facts: Facts) -> str:
    return _code(
        f"{_network(facts)}\n"
        'model.load_state_dict(torch.load("backbone.pth", weights_only=True))\n'
        "model.eval()"
    )


def _network(facts: Facts) -> str:
    """Code that builds the network from torchvision's parts, as `torch_model.build` does."""
    deep, stages = ARCHITECTURES[facts["arch"]]
    stem, width = STEMS[facts["stem"]], facts["width"]
    lines = ["import torch", "import torchvision", ""]
    made = "torchvision.models.ResNet"
    if width != 64:
        made = "ResNet"
        lines += [
            "",
            "class ResNet(torchvision.models.ResNet):  # whose own width is 64",
            "    def _make_layer(self, block, planes, *args, **kwargs):",
            "        if planes == 64:",
            f"            self.inplanes = {width}",
            f"        return super()._make_layer(block, planes * {width} // 64, *args, **kwargs)",
            "",
            "",
        ]
    block = "Bottleneck" if deep else "BasicBlock"
    lines += [
        f"model = {made}(torchvision.models.resnet.{block}, {list(stages)})",
        f"model.conv1 = torch.nn.Conv2d({facts['channels']}, {width}, {stem.kernel}, "
        f"{stem.stride or facts['stem_stride']}, {stem.padding}, bias=False)",
    ]
    if width != 64:
        lines.append(f"model.bn1 = torch.nn.BatchNorm2d({width})")
    if stem.pool is None:
        lines.append("model.maxpool = torch.nn.Identity()")
    elif stem.pool == "SAME":
        lines += [
            "",
            "",
            "class Same(torch.nn.Module):  # padded as TensorFlow pads",
            "    def forward(self, x):",
            "        edges = (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1)",
            "        x = torch.nn.functional.pad(x, edges)",
            "        return torch.nn.functional.max_pool2d(x, 3, 2)",
            "",
            "",
            "model.maxpool = Same()",
        ]
    lines.append("model.fc = torch.nn.Identity()")
    return "\n".join(lines)


def _use_timm(facts: Facts) -> str:
    channels = "" if facts["channels"] == 3 else f", in_chans={facts['channels']}"
    return "PATH is this folder.\n\n" + _code(
        f'import timm\n\nmodel = timm.create_model("local-dir:PATH", pretrained=True{channels})\n'
        "model.eval()"
    )


def _use_detectron2(facts: Facts) -> str:
    depth = facts["arch"].removeprefix("resnet")
    mean = [round(255 * value, 3) for value in facts["pixel_mean"]]
    std = [round(255 * value, 3) for value in facts["pixel_std"]]
    width = facts["width"]
    return f"""A config of detectron2, where pixels are 0 to 255, and RGB where it is asked for:

```yaml
MODEL:
  WEIGHTS: "PATH/backbone.pkl"
  PIXEL_MEAN: {mean}
  PIXEL_STD: {std}
  RESNETS:
    DEPTH: {depth}
    STRIDE_IN_1X1: False
    STEM_OUT_CHANNELS: {width}
    WIDTH_PER_GROUP: {width}
    RES2_OUT_CHANNELS: {width * (4 if _is_deep(facts) else 1)}
INPUT:
  FORMAT: "RGB"
```"""


def _use_onnx(facts: Facts) -> str:
    shapes = "Input `images`, float32 [n, channels, height, width], any size; output `features`."
    code = (
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("backbone.onnx")\n'
        '(features,) = session.run(None, {"images": images})'
    )
    return f"{shapes}\n\n{_code(code)}"


FORMATS: dict[str, Format] = {
    "torchvision": Format(_torchvision, _use_torchvision),
    "timm": Format(_timm, _use_timm, _timm_unfit),
    "safetensors": Format(_safetensors, _use_safetensors),
    "detectron2": Format(_detectron2, _use_detectron2, _detectron2_unfit),
    "onnx": Format(_onnx, _use_onnx),
}


def _card(facts: Facts, tensors: int, usage: str) -> str:
    stem = STEMS[facts["stem"]]
    stride = stem.stride or facts["stem_stride"]
    size = f"{facts['image_size']} px" if "image_size" in facts else "of a size that is not known"
    if facts.get("center_crop", 1.0) < 1:
        size = f"the middle {100 * facts['center_crop']:g} % of the short side at {size}"
    order = {1: " (grey)", 3: " in RGB order"}.get(facts["channels"], "")
    missing = "".join(
        f"- Without {_plain(part)}: the file that it comes from lacked it.\n"
        for part in facts.get("missing", ())
    )
    return f"""# Backbone

{facts["arch"]}, width {facts["width"]}, stem `{facts["stem"]}` (stride {stride}), \
{tensors} tensors, without a classifier.

- Lineage: {_plain(facts["lineage"])}
- Input: {facts["channels"]} channels{order}, {size}, {_scaling(facts["pixel_window"])}, then \
normalised with
  - mean {facts["pixel_mean"]}
  - std {facts["pixel_std"]}
{missing}- Convolutions are padded by kernel // 2 on every side{_padding(facts["stem"])}; \
the stride of a bottleneck is on its 3x3.
- Batch norm: epsilon 1e-5, running statistics of the last stage; use them (evaluation mode) for \
features. Features are the mean over the last map.

## To load it

{usage}
"""


def _plain(text: str) -> str:
    """Names of others as text of Markdown: of one line, and no HTML."""
    return printable(text).replace("\n", "\\n").replace("<", "&lt;")


def _padding(stem: str) -> str:
    if STEMS[stem].pool == "SAME":
        return ", the max-pool on the right alone (TensorFlow's SAME)"
    return ", the first one by 2" if stem == "solo" else ""


def _scaling(window: list[int]) -> str:
    if not any(window):
        return "scaled to [0, 1]"
    return f"16-bit values from {window[0]} to {window[1]} scaled to [0, 1] and clipped"
