"""Files that other libraries write load whole, and compute what they compute there."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hpt_jax.errors import UserError
from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights import check, load, proof
from hpt_jax.weights.names import flatten

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
models = pytest.importorskip("torchvision.models")
nn, segmentation = torch.nn, models.segmentation

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module whose every number counts: batch norm would hide its own at their defaults."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.weight.uniform_(0.5, 1, generator=random)
                one.bias.normal_(0, 0.1, generator=random)
                one.running_mean.normal_(0, 0.1, generator=random)
                one.running_var.uniform_(0.5, 1.5, generator=random)
    return module.eval()


def features_of(module: nn.Module, channels: int) -> np.ndarray:
    images = torch.from_numpy(proof.fixed_image(channels)).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        return module(images).flatten(1).numpy()


def without_head(network: nn.Module) -> nn.Module:
    network.fc = nn.Identity()
    return network


def below(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


@dataclasses.dataclass(frozen=True)
class Case:
    """What a library writes, and what is to be found in it."""

    write: Callable[[Path], nn.Module]  # returns what computes the features
    dialect: str
    arch: str = "resnet18"
    width: int = 64
    stem: str = "imagenet"
    stem_stride: int = 2
    channels: int = 3
    said: str = ""  # among the notes


# facebookresearch/moco: {'epoch', 'arch', 'state_dict': module.encoder_q.*, encoder_k, queue}


def moco(path: Path, arch: str = "resnet50") -> nn.Module:
    query, key = (trained(getattr(models, arch)(num_classes=128), seed) for seed in (0, 1))
    state = below("module.encoder_q.", query.state_dict())
    state |= below("module.encoder_k.", key.state_dict())
    state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1).long()}
    optimizer = torch.optim.SGD(query.parameters(), 0.1, momentum=0.9)
    content = {"epoch": 200, "arch": arch, "state_dict": state,
               "optimizer": optimizer.state_dict()}  # fmt: skip
    # The published files are older than torch's zip files.
    torch.save(content, path, _use_new_zipfile_serialization=arch != "resnet50")
    return without_head(query)


# OpenSelfSup: a whole checkpoint names the query encoder twice; an extracted one has bare names.


def openselfsup(path: Path) -> nn.Module:
    query, key = (without_head(trained(models.resnet18(), seed)) for seed in (0, 1))
    state = below("encoder_q.0.", query.state_dict()) | below("backbone.", query.state_dict())
    state |= below("encoder_k.0.", key.state_dict())
    state |= {"encoder_q.1.mlp.0.weight": torch.randn(9, 9), "queue": torch.randn(128, 9)}
    torch.save({"meta": {"epoch": 3, "iter": 7}, "state_dict": state}, path)
    return query


def extracted(path: Path) -> nn.Module:
    network = without_head(trained(models.resnet18()))
    torch.save({"state_dict": network.state_dict(), "author": "OpenSelfSup"}, path)
    return network


def vissl(path: Path) -> nn.Module:
    network = without_head(trained(models.resnet18()))
    model = {"trunk": below("_feature_blocks.", network.state_dict()),
             "heads": {"0.clf.0.weight": torch.randn(5, 2048)}}  # fmt: skip
    content = {"classy_state_dict": {"train": True, "base_model": {"model": model}},
               "loss": np.float64(6.5), "iteration": 7}  # fmt: skip
    with foreign_classes("vissl.config.attr_dict.AttrDict") as (settings,):
        torch.save({**content, "config": settings(lr=0.03)}, path)
    return network


@contextlib.contextmanager
def foreign_classes(*paths: str) -> Iterator[list[type]]:
    """Dicts with a state of their own, of packages that nobody who loads the weights has."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        for path in paths:
            place, _, name = path.rpartition(".")
            module = types.ModuleType(place)
            body = {"__module__": place, "__init__": _with_state}
            setattr(module, name, type(name, (dict,), body))
            made.append(getattr(module, name))
            parts = place.split(".")
            for end in range(1, len(parts) + 1):
                patch.setitem(sys.modules, ".".join(parts[:end]), module)
        yield made


def _with_state(self: Any, **fields: Any) -> None:
    dict.__init__(self, **fields)
    self.frozen = False


def with_settings(path: Path) -> nn.Module:
    network = without_head(trained(models.resnet18()))
    default = collections.defaultdict(float, a=1.0)
    with foreign_classes("yacs.config.CfgNode", "mmengine.config.config.ConfigDict") as classes:
        settings = [one(lr=0.1, inner=one(steps=3)) for one in classes]
        content = {"model": network.state_dict(), "cfg": settings, "meters": default}
        torch.save({**content, "root": Path("x"), "best": np.float32(3)}, path)
    return network


def torchvision(arch: str) -> Callable[[Path], nn.Module]:
    def write(path: Path) -> nn.Module:
        network = trained(getattr(models, arch)())
        torch.save(network.state_dict(), path)
        return without_head(network)

    return write


def timms(arch: str, channels: int = 3) -> Callable[[Path], nn.Module]:
    def write(path: Path) -> nn.Module:
        network = trained(timm.create_model(arch, in_chans=channels))
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(network.state_dict(), path)
        elif path.suffix == ".tar":  # as timm's train.py saves
            state = below("module.", network.state_dict())
            content = {"epoch": 3, "arch": arch, "state_dict": state, "version": 2,
                       "args": argparse.Namespace(lr=0.1), "metric": 71.2}  # fmt: skip
            torch.save(content, path)
        else:
            torch.save(network.state_dict(), path)
        network.reset_classifier(0)
        return network

    return write


def halved(dtype: torch.dtype) -> Callable[[Path], nn.Module]:
    def write(path: Path) -> nn.Module:
        network = without_head(trained(models.resnet18())).to(dtype)
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(network.state_dict(), path)
        else:
            torch.save(network.state_dict(), path)
        return network.float()

    return write


# lightly's examples: a Sequential of a network's children is the backbone.


def lightly_torchvision(path: Path) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*list(models.resnet18().children())[:-1])
            self.projection_head = nn.Linear(512, 128)

    model = trained(Model())
    torch.save(model.state_dict(), path)
    return model.backbone


def lightly(name: str, width: float, splits: int = 0) -> Callable[[Path], nn.Module]:
    def write(path: Path) -> nn.Module:
        generator = pytest.importorskip("lightly.models").ResNetGenerator
        network = generator(name, width, num_splits=splits)
        backbone = nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1))
        model = nn.Module()
        model.backbone = backbone
        model.backbone_momentum = nn.Sequential(*list(generator(name, width).children())[:-1])
        if splits:
            # Each split has statistics of its own until evaluation averages them.
            for one in network.modules():
                if isinstance(one, nn.BatchNorm2d):
                    one.running_mean.normal_(0, 0.1)
                    one.running_var.uniform_(0.5, 1.5)
            torch.save(model.state_dict(), path)
            backbone.eval()
        else:
            trained(model)
            torch.save(model.state_dict(), path)
        # Its own forward pass has no relu among the children.
        return _Functional(network.eval())

    return write


class _Functional(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.network
        x = torch.relu(one.bn1(one.conv1(x)))
        return one.layer4(one.layer3(one.layer2(one.layer1(x)))).mean((2, 3))


def cifar(path: Path) -> nn.Module:
    """Lightly's network has the names of the CIFAR ResNets in wide use, shortcut.0 and linear."""
    generator = pytest.importorskip("lightly.models").ResNetGenerator
    network = trained(generator("resnet-18", 0.5))
    torch.save({"net": network.state_dict(), "acc": 93.1, "epoch": 100}, path)
    return _Functional(network)


def solo(path: Path) -> nn.Module:
    """solo-learn's layout, written by Lightning with the settings it saves."""
    lightning = pytest.importorskip("pytorch_lightning")
    omegaconf = pytest.importorskip("omegaconf")

    class Method(lightning.LightningModule):
        def __init__(self, cfg: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.backbone = without_head(models.resnet18())
            self.backbone.conv1 = nn.Conv2d(3, 64, 3, 1, 2, bias=False)
            self.backbone.maxpool = nn.Identity()
            self.momentum_backbone = without_head(models.resnet18())
            self.classifier = nn.Linear(512, 10)
            self.projector = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 64))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

        def training_step(self, batch: Any) -> Any:
            return self.classifier(self.backbone(batch)).mean()

    settings = {"name": "mocov2plus", "lr": 0.3, "sizes": [1, 2], "data": {"path": "x"}}
    method = Method(omegaconf.OmegaConf.create(settings))
    trainer = lightning.Trainer(
        max_steps=1, logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=path.parent,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(method, torch.utils.data.DataLoader(torch.randn(2, 3, 8, 8), batch_size=2))
    trained(method)
    trainer.save_checkpoint(path)
    return method.backbone


def wrapped(path: Path) -> nn.Module:
    """A wrapper that no table knows."""
    network = without_head(trained(models.resnet18()))
    torch.save({"run": {"net": below("_orig_mod.", network.state_dict())}}, path)
    return network


SMALL = {"stem": "small", "stem_stride": 1}
CASES: dict[str, Case] = {
    "moco_v2.pth.tar": Case(moco, "facebookresearch MoCo", "resnet50"),
    "moco_zip.pth.tar": Case(lambda path: moco(path, "resnet18"), "facebookresearch MoCo"),
    "openselfsup.pth": Case(openselfsup, "OpenSelfSup or mmselfsup"),
    "extracted.pth": Case(extracted, "torchvision or timm", said="ImageNet's mean"),
    "vissl.torch": Case(vissl, "VISSL"),
    "tv18.pth": Case(torchvision("resnet18"), "torchvision or timm"),
    "tv34.pth": Case(torchvision("resnet34"), "torchvision or timm", "resnet34"),
    "tv50.pth": Case(torchvision("resnet50"), "torchvision or timm", "resnet50"),
    "timm50.safetensors": Case(timms("resnet50"), "torchvision or timm", "resnet50"),
    "timm18.bin": Case(timms("resnet18"), "torchvision or timm"),
    "timm.pth.tar": Case(timms("resnet34"), "torchvision or timm", "resnet34"),
    "grey.safetensors": Case(timms("resnet18", 1), "torchvision or timm", channels=1),
    "bands.pth": Case(timms("resnet18", 6), "torchvision or timm", channels=6),
    "half.pth": Case(halved(torch.float16), "torchvision or timm"),
    "brain.pth": Case(halved(torch.bfloat16), "torchvision or timm"),
    "brain.safetensors": Case(halved(torch.bfloat16), "torchvision or timm"),
    "lightly.pth": Case(lightly_torchvision, "lightly (torch.nn.Sequential)"),
    "lightly9.pth": Case(
        lightly("resnet-9", 0.25), "lightly (torch.nn.Sequential)", "resnet10", 16, **SMALL,
        said=load.STRIDE_ASSUMED,
    ),
    "lightly50.pth": Case(
        lightly("resnet-50", 0.125), "lightly (torch.nn.Sequential)", "resnet50", 8, **SMALL
    ),
    "splits.pth": Case(
        lightly("resnet-18", 0.25, 4), "lightly (torch.nn.Sequential)", "resnet18", 16, **SMALL,
        said="the mean over 4 splits",
    ),
    "cifar.pt": Case(cifar, "CIFAR ResNet", "resnet18", 32, **SMALL),
    "solo.ckpt": Case(
        solo, "solo-learn", stem="solo", stem_stride=1, said="pads its 3x3 stem by 2"
    ),
    "settings.pth": Case(with_settings, "torchvision or timm"),
    "wrapped.pt": Case(wrapped, "torchvision's names"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_file_of_a_real_library_loads_whole_and_computes_the_same(tmp_path, name):
    case, path = CASES[name], tmp_path / name
    theirs = features_of(case.write(path), case.channels)
    weights = load.load(str(path))
    expected = {"arch": case.arch, "width": case.width, "stem": case.stem,
                "stem_stride": case.stem_stride, "channels": case.channels}  # fmt: skip
    assert weights.facts == expected
    assert weights.dialect == case.dialect
    assert case.said in "; ".join(weights.notes)
    model = ResNet(case.arch, case.width, case.stem, case.stem_stride)
    like = abstract_backbone(model, case.channels)
    check.tensors(flatten(like), weights.tensors, (), "init", name, lambda *_: "")
    pixels = (weights.pixel_mean, weights.pixel_std)
    backbone = load.make_backbone(model, jax.random.key(1), weights, *pixels)
    found = proof.prove(weights, model, backbone, "init")
    assert (found.matched, found.missing) == (found.expected, ())
    ours = proof.features(model, backbone, proof.fixed_image(case.channels))
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())
    assert found.features["first"] == pytest.approx(theirs[0, :4], rel=1e-3, abs=1e-4)


def test_the_fullest_backbone_counts_265_tensors(tmp_path):
    moco(tmp_path / "moco.pth.tar")
    weights = load.load(str(tmp_path / "moco.pth.tar"))
    assert len(weights.tensors) == 265
    assert len(flatten(abstract_backbone(ResNet("resnet50"), 3))) == 265
    heads = [name for name in weights.unused if ".encoder_q." in name]
    assert heads == [f"state_dict.module.encoder_q.fc.{leaf}" for leaf in ("weight", "bias")]
    assert weights.unused["state_dict.module.queue"] == (128, 64)


@pytest.mark.parametrize("arch", ["resnet101", "resnet152"])
def test_the_deepest_are_told_by_their_blocks(tmp_path, arch):
    torch.save(getattr(models, arch)().state_dict(), tmp_path / "x.pth")
    weights = load.load(str(tmp_path / "x.pth"))
    assert weights.facts["arch"] == arch
    wanted = flatten(abstract_backbone(ResNet(arch), 3))
    check.tensors(wanted, weights.tensors, (), "init", "x", lambda *_: "")


def test_the_documented_way_to_compare_features_gives_the_proofs_numbers():
    text = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    names: dict = {}
    exec(code, names)
    wanted = features_of(names["model"], 3)
    np.testing.assert_allclose(names["features"].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_folder_that_timm_saves_for_its_hub_says_what_it_is(tmp_path):
    network = trained(timm.create_model("resnet18", num_classes=0))
    for name, safe in (("new", True), ("old", False)):
        timm.models.save_for_hf(network, tmp_path / name, safe_serialization=safe)
        weights = load.load(str(tmp_path / name))
        assert "config.json" in "; ".join(weights.notes)
    blurred = timm.create_model("resnetblur18", num_classes=0)
    timm.models.save_for_hf(blurred, tmp_path / "blurred", safe_serialization=True)
    with pytest.raises(UserError, match=r"config.json beside it says resnetblur18"):
        load.load(str(tmp_path / "blurred"))


def test_a_segmenter_is_told_from_a_classifier(tmp_path):
    network = segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    torch.save(network.state_dict(), tmp_path / "fcn.pth")
    notes = load.load(str(tmp_path / "fcn.pth")).notes
    assert "may be dilated" in "; ".join(notes)


def test_two_encoders_that_nothing_tells_apart_are_not_chosen_between(tmp_path):
    path = tmp_path / "dino.pth"
    both = {
        name: below("module.", without_head(trained(models.resnet18(), seed)).state_dict())
        for seed, name in enumerate(("student", "teacher"))
    }
    torch.save(both, path)
    with pytest.raises(UserError, match=r"the prefixes 'student.module.' and 'teacher.module.'"):
        load.load(str(path))
    teacher = load.load(str(path), prefix="teacher.module.")
    assert np.array_equal(
        teacher.tensors["bn1.running_var"], both["teacher"]["module.bn1.running_var"].numpy()
    )
    with pytest.raises(UserError, match=r"--prefix = 'tutor.': .*'student.module.'"):
        load.load(str(path), prefix="tutor.")


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
def test_channels_are_converted_as_timm_does(channels):
    network = trained(models.resnet18())
    theirs = timm.models.adapt_input_conv(channels, network.conv1.weight.detach())
    weights = load.Weights(
        {"conv1.weight": network.conv1.weight.detach().numpy().transpose(2, 3, 1, 0)},
        {"channels": 3}, load.IMAGENET_MEAN, load.IMAGENET_STD, np.zeros(2), "x",
    )  # fmt: skip
    found = load.with_channels(weights, channels)
    ours = found.tensors["conv1.weight"].transpose(3, 2, 0, 1)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-7)
    assert len(found.pixel_mean) == len(found.pixel_std) == found.facts["channels"] == channels
    assert re.search(rf"takes {channels} channels", found.notes[-1])
