"""Backbones in and out: torchvision's names and layout, bit-exact, strict."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from small_files import DONE, LINEAGE

from hpt_jax import config as config_lib
from hpt_jax.checkpoints import Checkpoints
from hpt_jax.errors import UserError
from hpt_jax.models.backbone import Backbone, abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights import check, export, load
from hpt_jax.weights.names import flatten
from hpt_jax.workdir import StageFolder, write_json


def make_backbone(arch="resnet18", width=4, stem="small", channels=3, seed=0):
    """A backbone with a different number in every place."""
    rng = np.random.default_rng(seed)
    shapes = abstract_backbone(ResNet(arch, width, stem, 2), channels)
    made = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    stats = {k: {**leaves, "var": np.abs(leaves["var"])} for k, leaves in made.batch_stats.items()}
    return dataclasses.replace(made, batch_stats=stats, pixel_std=np.abs(made.pixel_std))


def facts_of(arch="resnet18", width=4, stem="small", channels=3):
    model = dataclasses.asdict(config_lib.Model(arch=arch, width=width, stem=stem))
    return {**model, "channels": channels, "image_size": 32, "lineage": "a (x, 3 steps)"}


def torchvision_shapes(blocks, width, bottleneck, channels=3, stem=7):
    """Every tensor of torchvision's ResNet without its classifier, written from its definition."""
    shapes = {}

    def norm(name, size):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (size,)

    shapes["conv1.weight"] = (width, channels, stem, stem)
    norm("bn1", width)
    inner, given = width, width
    for layer, count in enumerate(blocks, 1):
        out = inner * 4 if bottleneck else inner
        for block in range(count):
            at = f"layer{layer}.{block}"
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            size = given
            for number, kernel in enumerate(kernels, 1):
                to = out if number == len(kernels) else inner
                shapes[f"{at}.conv{number}.weight"] = (to, size, kernel, kernel)
                norm(f"{at}.bn{number}", to)
                size = to
            if block == 0 and (layer > 1 or given != out):
                shapes[f"{at}.downsample.0.weight"] = (out, given, 1, 1)
                norm(f"{at}.downsample.1", out)
            given = out
        inner *= 2
    return shapes


@pytest.mark.parametrize(
    ("arch", "blocks", "bottleneck"),
    [
        ("resnet18", (2, 2, 2, 2), False),
        ("resnet34", (3, 4, 6, 3), False),
        ("resnet50", (3, 4, 6, 3), True),
    ],
)
def test_names_and_shapes_are_torchvisions(tmp_path, arch, blocks, bottleneck):
    backbone = make_backbone(arch, 4, "imagenet")
    path = export.export_backbone(backbone, facts_of(arch, 4, "imagenet"), tmp_path)
    with safe_open(path, "numpy") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == torchvision_shapes(blocks, 4, bottleneck)


def test_convolutions_are_out_in_height_width(tmp_path):
    backbone = make_backbone()
    path = export.export_backbone(backbone, facts_of(), tmp_path)
    with safe_open(path, "numpy") as file:
        written = file.get_tensor("layer2.0.downsample.0.weight")
        scale = file.get_tensor("layer2.0.downsample.1.weight")
        variance = file.get_tensor("bn1.running_var")
    kernel = backbone.params["layer2_0_downsample_conv"]["kernel"]
    for place in [(0, 0, 0, 0), (0, 0, 3, 7), (0, 0, 2, 1)]:
        height, width, given, out = place
        assert written[out, given, height, width] == kernel[place]
    assert np.array_equal(scale, backbone.params["layer2_0_downsample_bn"]["scale"])
    assert np.array_equal(variance, backbone.batch_stats["bn1"]["var"])


def equal_bits(one, two):
    same = jax.tree.map(
        lambda a, b: (
            np.asarray(a).dtype == np.asarray(b).dtype
            and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        ),
        one,
        two,
    )
    return all(jax.tree.leaves(same))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_export_comes_back_bit_by_bit(tmp_path, channels):
    backbone = make_backbone(channels=channels)
    path = export.export_backbone(backbone, facts_of(channels=channels), tmp_path)
    weights = load.load(str(path))
    blank = make_backbone(channels=channels, seed=1)
    check.tensors(flatten(blank), weights.tensors, (), "init", weights.source, setting)
    filled = load.fill(blank, weights)
    assert equal_bits(filled.params, backbone.params)
    assert equal_bits(filled.batch_stats, backbone.batch_stats)
    assert equal_bits(weights.pixel_mean, backbone.pixel_mean)
    assert equal_bits(weights.pixel_std, backbone.pixel_std)
    assert equal_bits(filled.pixel_mean, blank.pixel_mean)  # the stage's own


def test_the_file_and_the_card_tell_what_they_are(tmp_path):
    backbone = make_backbone()
    path = export.export_backbone(backbone, facts_of(), tmp_path / "deep" / "export")
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    told = json.loads(metadata["hpt_jax"])
    assert {k: told[k] for k in facts_of()} == facts_of()
    assert told["pixel_mean"] == [float(x) for x in backbone.pixel_mean]
    card = (path.parent / "card.md").read_text()
    for said in ("resnet18", "a (x, 3 steps)", "RGB", "32 px", str(told["pixel_std"])):
        assert said in card
    assert sorted(p.name for p in path.parent.iterdir()) == ["backbone.safetensors", "card.md"]
    assert load.inspect(str(path)) == told


def test_the_view_that_it_was_evaluated_by_is_told_to_every_library(tmp_path):
    backbone = make_backbone(width=64, stem="imagenet")
    facts = facts_of(width=64, stem="imagenet") | {"center_crop": 0.8}
    path = export.export_backbone(backbone, facts, tmp_path / "mine")
    assert "the middle 80 % of the short side at 32 px" in (path.parent / "card.md").read_text()
    again = load.load(str(path))
    assert again.facts["center_crop"] == 0.8
    export.export_backbone(backbone, again.facts | {"lineage": "x"}, tmp_path / "timm", "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["pretrained_cfg"]["crop_pct"] == 0.8
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]


def test_a_second_export_replaces_the_first(tmp_path):
    export.export_backbone(make_backbone(), facts_of(), tmp_path)
    path = export.export_backbone(make_backbone(seed=2), facts_of(), tmp_path)
    filled = load.fill(make_backbone(), load.load(str(path)))
    assert equal_bits(filled.params, make_backbone(seed=2).params)


def test_the_fingerprint_is_of_the_content(tmp_path):
    prints = {
        load.fingerprint(str(export.export_backbone(make_backbone(), facts_of(), tmp_path)))
        for _ in range(10)  # safetensors by itself writes two keys of metadata in random order
    }
    assert len(prints) == 1
    other = export.export_backbone(make_backbone(seed=2), facts_of(), tmp_path / "c")
    assert load.fingerprint(str(other)) not in prints
    assert load.fingerprint(str(tmp_path / "absent")) is None
    assert load.inspect(str(tmp_path / "absent")) is None


# Strictness


def setting(name, value):
    return f"{name} := {value}"


def said(wanted, given, allowed=()):
    with pytest.raises(UserError) as raised:
        check.tensors(flatten(wanted), flatten(given), allowed, "init", "a file", setting)
    return str(raised.value)


def without(backbone, layer):
    def keep(tree):
        return {name: leaves for name, leaves in tree.items() if not name.startswith(layer)}

    return Backbone(
        keep(backbone.params), keep(backbone.batch_stats), backbone.pixel_mean, backbone.pixel_std
    )


def test_each_wrong_tensor_is_named_with_its_shapes():
    text = said(make_backbone(), make_backbone(width=8))
    assert "bn1.bias is [8], expected [4]" in text
    text = said(make_backbone("resnet18"), make_backbone("resnet34"))
    assert "layer1.2.bn1.bias is not in this architecture" in text
    text = said(make_backbone("resnet34"), make_backbone("resnet18"))
    assert "layer1.2.bn1.bias [4] is missing" in text
    assert "channels := 1" in said(make_backbone(), make_backbone(channels=1))


def test_the_count_of_wrong_tensors_is_told():
    whole, cut = make_backbone(), without(make_backbone(), "layer4")
    missing = len(flatten(whole)) - len(flatten(cut))
    assert f"{missing} of {len(flatten(whole))} tensors" in said(whole, cut)


def test_named_parts_may_be_missing_and_stay_as_they_were():
    whole, cut = make_backbone(), without(make_backbone(seed=2), "layer4")
    assert "lacks layer4. To start them at random: missing := layer4" in said(whole, cut)
    assert "missing := layer4" in said(whole, cut, ("layer3",))
    check.tensors(flatten(whole), flatten(cut), ("layer4",), "init", "a file", setting)
    weights = load.Weights(
        flatten(cut), {}, cut.pixel_mean, cut.pixel_std, cut.pixel_window, "a file"
    )
    filled = load.fill(whole, weights)
    for name, leaves in filled.params.items():
        source = whole if name.startswith("layer4") else cut
        assert equal_bits(leaves, source.params[name])


def test_a_part_that_is_there_in_another_shape_is_refused_though_it_may_be_missing():
    whole, wide = make_backbone(), make_backbone(width=8)
    params = without(whole, "layer4").params | {
        name: leaves for name, leaves in wide.params.items() if name.startswith("layer4")
    }
    given = Backbone(params, whole.batch_stats, whole.pixel_mean, whole.pixel_std)
    assert "layer4.0.bn1.bias is [64], expected [32]" in said(whole, given, ("layer4",))


# Our own stages


@pytest.fixture
def stage(tmp_path):
    """The folder of a finished stage."""
    folder = StageFolder(tmp_path / "stages" / "t-12345678")
    saver = Checkpoints(folder.checkpoints)
    backbone = jax.tree.map(jnp.asarray, make_backbone("resnet10"))
    saver.save(3, {"backbone": backbone, "totals": {"count": jnp.float32(1)}})
    saver.close()
    model = dataclasses.asdict(config_lib.Model(arch="resnet10", width=4, stem="small"))
    write_json(folder.lineage, LINEAGE | {"config": LINEAGE["config"] | {"model": model}})
    write_json(folder.done, DONE)
    return folder


def test_a_finished_stage_is_weights_like_a_file(stage):
    weights = load.load(str(stage.path))
    original = make_backbone("resnet10")
    assert equal_bits(load.fill(make_backbone("resnet10", seed=1), weights).params, original.params)
    assert equal_bits(weights.pixel_mean, original.pixel_mean)
    assert weights.source == "t (x, 3 steps)"
    assert load.fingerprint(str(stage.path)) == "t-12345678"
    assert load.inspect(str(stage.path))["arch"] == "resnet10"
    assert load.inspect(str(stage.path))["channels"] == 3


def test_a_stage_that_is_not_finished_is_refused(stage):
    stage.done.unlink()  # its content would change while its name stayed
    for read in (load.load, load.fingerprint, load.inspect):
        with pytest.raises(UserError, match=r"init = .*finished stage"):
            read(str(stage.path))


def test_a_stage_whose_checkpoints_are_damaged_says_what_to_do(stage):
    (stage.checkpoints / "3" / "manifest.json").unlink()
    with pytest.raises(UserError, match="delete"):
        load.load_stage(stage)
