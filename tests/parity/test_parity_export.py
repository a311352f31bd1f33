"""Exports load in the libraries that they are for, and compute the same features there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ARCHITECTURE_FIELDS, ResNet
from hpt_jax.weights import __main__ as command
from hpt_jax.weights import load, proof, verify
from hpt_jax.weights.names import flatten, to_torch

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.torch
torch.set_num_threads(1)

# arch, width, stem, stride of the stem, channels
PLAIN = ("resnet50", 64, "imagenet", 2, 3)
NETWORKS = {
    "plain": PLAIN,
    "grey": ("resnet18", 64, "imagenet", 2, 1),
    "bands": ("resnet18", 64, "imagenet", 2, 5),
    "narrow": ("resnet50", 16, "small", 2, 3),
    "cifar": ("resnet18", 32, "small", 1, 3),
    "tiny": ("resnet10", 8, "small", 2, 1),
    "solo": ("resnet18", 64, "solo", 1, 3),
    "simclr": ("resnet18", 24, "simclr", 2, 3),
}
CAN = {
    "torchvision": tuple(name for name in NETWORKS if name != "plain"),
    "safetensors": ("grey", "narrow"),
    "timm": ("plain", "grey"),
    "detectron2": ("grey",),
    "onnx": ("bands", "narrow", "simclr"),
}
CANNOT = {"timm": ("bands", "narrow", "tiny"), "detectron2": ("tiny", "solo", "simclr")}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(name of a network) -> a folder as an import leaves it, and the features of its images."""
    made = {}

    def get(name):
        if name not in made:
            arch, width, stem, stride, channels = NETWORKS[name]
            folder = tmp_path_factory.mktemp(name)
            model = ResNet(arch, width, stem, stride)
            rng = np.random.default_rng(0)
            tensors = {}
            for key, leaf in flatten(abstract_backbone(model, channels)).items():
                scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.1
                value = scale * rng.normal(size=leaf.shape) + (key.endswith(("var", "weight")))
                value = value - 1 if len(leaf.shape) == 4 else value
                tensors[key] = to_torch(np.abs(value) if key.endswith("var") else value)
            tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
            save_file(tensors, folder / "x.safetensors")
            flags = ["--arch", arch, "--width", str(width)]
            flags += ["--stem-stride", str(stride), "--stem", stem]
            done = command.main(
                ["import", str(folder / "x.safetensors"), str(folder / "mine"), *flags]
            )
            assert done == 0
            made[name] = folder / "mine", tensors
        return made[name]

    return get


def features_of(folder, images):
    weights = load.load(str(folder))
    model = ResNet(**{name: weights.facts[name] for name in ARCHITECTURE_FIELDS})
    pixels = (weights.pixel_mean, weights.pixel_std)
    backbone = load.make_backbone(model, jax.random.key(1), weights, *pixels)
    return proof.features(model, backbone, images)


def pairs(table):
    return [(kind, name) for kind, names in table.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), pairs(CANNOT))
def test_a_format_that_cannot_hold_a_network_refuses_it(imported, tmp_path, capsys, kind, name):
    folder, _ = imported(name)
    assert command.main(["export", str(folder), str(tmp_path / "out"), "--format", kind]) == 2
    told = capsys.readouterr()
    assert f"--format = '{kind}': expected a network that it can hold" in told.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "name"), pairs(CAN))
def test_an_export_computes_the_same_in_its_library(imported, tmp_path, capsys, kind, name):
    folder, _ = imported(name)
    capsys.readouterr()
    assert command.main(["export", str(folder), str(tmp_path / "out"), "--format", kind]) == 0
    told = capsys.readouterr()
    expected = "not verified" if kind == "detectron2" else "verified in "
    assert expected in told.out
    # `verify` is itself held to account: by other images, of another size, and by the card's code.
    if kind in ("torchvision", "safetensors", "timm"):
        channels = NETWORKS[name][-1]
        images = np.random.default_rng(2).normal(size=(2, 73, 94, channels)).astype(np.float32)
        theirs = run_card(tmp_path / "out", images)
        ours = features_of(folder, images)
        assert np.abs(theirs - ours).max() <= 1e-5 * max(1, np.abs(ours).max())


def run_card(folder: Path, images: np.ndarray) -> np.ndarray:
    """Features by the very code that the card tells people to run."""
    code = re.search(r"```python\n(.*?)```", (folder / "card.md").read_text(), re.DOTALL)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names: dict = {}
        exec(code.replace("local-dir:PATH", f"local-dir:{folder}"), names)
    with torch.no_grad():
        return names["model"](torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()).numpy()


@pytest.mark.parametrize("name", ["cifar", "simclr"])
def test_onnx_takes_any_number_of_images_of_any_size(imported, tmp_path, name):
    folder, _ = imported(name)
    assert command.main(["export", str(folder), str(tmp_path / "out"), "--format", "onnx"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "backbone.onnx",
        "card.md",
    ]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "backbone.onnx")
    for count, height, width in [(1, 32, 32), (3, 49, 82), (1, 65, 67)]:
        images = np.random.default_rng(count).normal(size=(count, height, width, 3))
        images = images.astype(np.float32)
        theirs = session.run(None, {"images": images.transpose(0, 3, 1, 2)})[0]
        ours = features_of(folder, images)
        assert theirs.shape == ours.shape
        assert np.abs(theirs - ours).max() <= 1e-5 * max(1, np.abs(ours).max())


@pytest.mark.parametrize("kind", ["torchvision", "timm", "safetensors"])
def test_import_export_import_is_bit_exact(imported, tmp_path, kind):
    name = "plain" if kind == "timm" else "tiny"
    folder, tensors = imported(name)
    out = tmp_path / "out"
    assert command.main(["export", str(folder), str(out), "--format", kind]) == 0
    path = out
    arch, width, *_ = NETWORKS[name]
    flags = ["--arch", arch, "--width", str(width)]
    assert command.main(["import", str(path), str(tmp_path / "again"), *flags]) == 0
    first, again = load.load(str(folder)), load.load(str(tmp_path / "again"))
    assert again.facts == first.facts  # the stride of the stem too, which no tensor tells
    assert again.tensors.keys() == tensors.keys()
    for key, value in tensors.items():
        assert to_torch(np.asarray(again.tensors[key])).tobytes() == value.tobytes()
    assert again.pixel_mean.tobytes() == first.pixel_mean.tobytes()
    assert again.pixel_std.tobytes() == first.pixel_std.tobytes()


def test_a_wrong_export_is_not_passed_off_as_verified(imported, tmp_path):
    folder, _ = imported("tiny")
    out = tmp_path / "out"
    assert command.main(["export", str(folder), str(out), "--format", "torchvision"]) == 0
    state = torch.load(out / "backbone.pth", weights_only=True)
    torch.save(state | {"bn1.bias": state["bn1.bias"] + 1e-2}, out / "backbone.pth")
    images = proof.fixed_image(1)
    ours, facts = features_of(folder, images), load.load(str(folder)).facts
    with pytest.raises(RuntimeError, match=r"torchvision .* differ by"):
        verify.verify("torchvision", out, facts, images, ours)


def test_an_export_without_its_library_says_that_it_was_not_verified(
    imported, tmp_path, capsys, monkeypatch
):
    folder, _ = imported("grey")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert command.main(["export", str(folder), str(tmp_path / "out"), "--format", "timm"]) == 0
    assert "not verified: timm is not installed" in capsys.readouterr().out
