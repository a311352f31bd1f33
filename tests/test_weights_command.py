"""`python -m hpt_jax.weights`: what it keeps, and what it refuses without writing anything."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights import __main__ as command
from hpt_jax.weights import export, load
from hpt_jax.weights.names import flatten, to_torch


def tensors(arch="resnet10", width=4, stem="imagenet", channels=3, seed=0):
    """Random tensors by torchvision's names, as torch lays them out."""
    rng = np.random.default_rng(seed)
    shapes = abstract_backbone(ResNet(arch, width, stem), channels)
    made = {}
    for name, leaf in flatten(shapes).items():
        fan_in = np.prod(
            leaf.shape[:-1]
        )  # 1 but for convolutions, which keep the size of what passes
        made[name] = (rng.uniform(0.5, 1, leaf.shape) / fan_in).astype(np.float32)
    return {name: to_torch(value) for name, value in made.items()}


def write(path, content):
    save_file(content, path)
    return path


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = command.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def refused(ask, *arguments):
    """The one message of a command that exits with 2 and writes nothing."""
    before = sorted(Path().rglob("*"))
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return err


SMALL = ("--arch", "resnet10", "--width", "4")


# Import


def test_an_import_is_proved_and_starts_a_run_by_its_folder(ask):
    given = tensors() | {"fc.weight": np.zeros((5, 32), np.float32)}
    write("theirs.safetensors", given)
    code, out, _ = ask("import", "theirs.safetensors", "deep/mine.pth", *SMALL)
    assert code == 0
    assert "dialect: torchvision or timm" in out
    assert "backbone tensors matched: 60/60 (100 %)" in out
    assert "not part of the backbone: fc.weight [5, 32]" in out
    assert "features of the fixed image: mean " in out
    folder = Path("deep/mine.pth")
    assert sorted(path.name for path in folder.iterdir()) == [
        "backbone.safetensors", "card.md", "proof.json",
    ]  # fmt: skip
    kept = load.load("deep/mine.pth")
    for name, value in given.items():
        if name != "fc.weight":
            assert to_torch(np.asarray(kept.tensors[name])).tobytes() == value.tobytes()
    proof = json.loads((folder / "proof.json").read_text())
    assert (proof["matched"], proof["expected"], proof["missing"]) == (60, 60, [])
    assert proof["unused"] == {"fc.weight": [5, 32]}
    content = load.fingerprint("theirs.safetensors")
    source = f"theirs.safetensors (torchvision or timm, content {content})"
    assert kept.source == f"deep/mine.pth, {source}"
    assert source in (folder / "card.md").read_text()


def test_a_file_of_another_network_is_refused_with_the_flag_that_accepts_it(ask):
    write("x.safetensors", tensors("resnet18", 8))
    told = refused(ask, "import", "x.safetensors", "dst")
    assert "SRC = 'x.safetensors': expected weights of resnet50, width 64" in told
    assert "they are of resnet18, width 8" in told
    assert "--arch resnet18 --width 8" in told
    assert ask("import", "x.safetensors", "dst", "--arch", "resnet18", "--width", "8")[0] == 0


@pytest.mark.parametrize("lost", ["layer4", "layer2.0.conv1", "conv1", "layer3.0.bn2"])
def test_a_missing_part_is_refused_until_it_is_named(ask, lost):
    whole = tensors()
    cut = {k: v for k, v in whole.items() if not k.startswith(f"{lost}.")}
    write("cut.safetensors", cut)
    told = refused(ask, "import", "cut.safetensors", "dst", *SMALL)
    assert f"{len(whole) - len(cut)} of 60 tensors do not match" in told
    assert f"--missing {lost}" in told
    code, out, _ = ask("import", "cut.safetensors", "dst", *SMALL, "--missing", lost)
    assert code == 0
    assert f"matched: {len(cut)}/60 (" in out
    assert f"missing, start at random: {next(k for k in whole if k not in cut)}" in out
    # What was random stays missing, and is told wherever the import is used.
    kept = load.load("dst")
    assert kept.tensors.keys() == cut.keys()
    assert kept.facts["missing"] == [lost]
    assert f"- Without {lost}:" in Path("dst/card.md").read_text()
    told = refused(ask, "export", "dst", "out", "--format", "safetensors")
    assert told.startswith("CKPT = 'dst'")
    assert f"import it with --missing {lost}, and train it as a stage" in told


def test_a_file_that_leaves_its_depth_open_is_of_the_depth_that_is_asked_for(ask):
    whole = tensors("resnet101", 2)
    cut = {name: value for name, value in whole.items() if not name.startswith("layer3")}
    write("cut.safetensors", cut)
    flags = ("--width", "2", "--missing", "layer3", "--arch")
    assert load.inspect("cut.safetensors")["arch"] == "resnet50"  # the least of those that it fits
    assert "--arch resnet50" in refused(ask, "import", "cut.safetensors", "dst", *flags, "resnet18")
    assert ask("import", "cut.safetensors", "dst", *flags, "resnet101")[0] == 0
    assert load.inspect("dst")["arch"] == "resnet101"


def test_a_part_that_is_named_but_there_is_loaded(ask):
    write("x.safetensors", tensors())
    code, out, _ = ask("import", "x.safetensors", "dst", *SMALL, "--missing", "layer4")
    assert code == 0
    assert "60/60" in out
    assert "missing" not in load.load("dst").facts
    cut = {k: v for k, v in tensors().items() if not k.startswith("layer4.")}
    write("cut.safetensors", cut)
    ask("import", "cut.safetensors", "other", *SMALL, "--missing", "layer4,layer3")
    assert load.load("other").facts["missing"] == ["layer4"]
    assert "Without layer3" not in Path("other/card.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t | {"layer1.0.se.fc1.weight": np.ones((2, 2), np.float32)}, "layer1.0.se.fc1"),
        (lambda t: t | {"layer1.0.conv1.bias": np.ones(4, np.float32)}, "layer1.0.conv1.bias"),
        (lambda t: t | {"conv1.bias": np.ones(4, np.float32)}, "parts that ours has not"),
        (lambda t: {k: v for k, v in t.items() if "running" not in k}, "another norm"),
        (lambda t: t | {"bn1.running_var": np.full(4, -1, np.float32)}, "variances of at least 0"),
        (lambda t: t | {"bn1.weight": np.full(4, 1e300)}, "finite numbers"),
        (
            lambda t: {k: v + np.float32(3e38 * k.endswith("bias")) for k, v in t.items()},
            "features are finite",
        ),
        (lambda t: t | {"conv1.weight": np.ones((4, 3, 5, 5), np.float32)}, "5x5"),
        (lambda t: t | {"layer1.0.conv2.weight": np.ones((4, 2, 3, 3), np.float32)}, "ResNeXt"),
        (lambda t: t | {"bn1.bias": np.full(4, np.nan, np.float32)}, "bn1.bias"),
        (lambda t: t | {"layer1.4.conv1.weight": t["layer1.0.conv1.weight"]}, "5, 1, 1, 1 blocks"),
        (lambda t: {"fc.weight": np.ones((5, 32), np.float32)}, "head alone"),
        (lambda t: {"blocks.0.attn.qkv.weight": np.ones((5, 32), np.float32)}, "transformer"),
        (lambda t: {}, "no tensors"),
        (lambda t: {"weight": np.ones(3, np.float32)}, "It holds weight"),
        (lambda t: {re.sub(r"^conv1", "conv1.0", k): v for k, v in t.items()}, "ResNet-C or D"),
    ],
)  # fmt: skip
def test_another_kind_of_network_is_refused_with_the_likely_reason(ask, spoil, reason):
    write("x.safetensors", spoil(tensors()))
    assert reason in refused(ask, "import", "x.safetensors", "dst", *SMALL)


class Runs:
    """Creates a file as soon as it is unpickled."""

    def __reduce__(self):
        return open, ("it-ran", "w")


def test_files_that_hold_no_weights_are_refused(ask):
    whole = write(Path("whole.safetensors"), tensors()).read_bytes()
    files = {
        "cut.safetensors": (whole[: len(whole) // 2], "cannot be read"),
        "header.safetensors": (whole[:100], "cannot be read"),
        "page.pth": (b"  <!DOCTYPE html><html>404</html>", "web page"),
        "page2.safetensors": (b"<HTML><body>", "web page"),
        "empty.pth": (b"", "empty"),
        "lfs.bin": (b"version https://git-lfs.github.com/spec/v1\noid x", "Git LFS"),
        "byol.pkl": (pickle.dumps({"experiment_state": 1}), "plain pickle"),
        "runs.pkl": (pickle.dumps(Runs()), "plain pickle"),
        "runs.pth": (pickle.dumps(Runs(), 4), "plain pickle"),
        "old.pkl": (pickle.dumps(Runs(), 0), "cannot be read"),
        "noise.ckpt": (np.random.default_rng(0).bytes(999), "cannot be read"),
    }
    for name, (content, reason) in files.items():
        Path(name).write_bytes(content)
        told = refused(ask, "import", name, "dst")
        assert told.startswith(f"SRC = '{name}': expected ")
        assert reason in told
    assert not Path("it-ran").exists()
    assert "BYOL" in refused(ask, "import", "byol.pkl", "dst")
    assert "not found" in refused(ask, "import", "absent.pth", "dst")
    Path("folder").mkdir()
    assert "no weights" in refused(ask, "import", "folder", "dst")
    Path("onnx").mkdir()
    Path("onnx/x.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    assert "ONNX model" in refused(ask, "import", "onnx/x.onnx", "dst")
    Path("folder/odd.index").mkdir()
    Path("folder/faiss.index").write_bytes(b"x")
    assert "no weights" in refused(ask, "import", "folder", "dst")
    assert "not found" in refused(ask, "import", "x" * 300, "dst")
    assert "not found" in refused(ask, "import", "folder/odd", "dst")


def test_a_folder_that_holds_weights_says_which_to_take(ask):
    write("x.safetensors", tensors())
    for name in ("w/stages/base-1/checkpoints/3", "w/stages/base-2", "many"):
        Path(name).mkdir(parents=True)
    Path("w/stages/base-1/lineage.json").write_text("{}")
    told = refused(ask, "import", "w/stages/base-1", "dst")
    assert "unfinished stage: run its command again" in told
    Path("w/stages/base-1/done.json").write_text("{}")
    told = refused(ask, "import", "w/stages/base-1/checkpoints/3", "dst")
    assert "inside of a stage: take w/stages/base-1." in told
    assert "workdir: take its export, or a stage such as w/stages/base-1." in refused(
        ask, "import", "w", "dst"
    )
    Path("many/b.pth").write_bytes(b"")
    assert "choose a file of it, such as many/b.pth" in refused(ask, "import", "many", "dst")


def test_a_name_that_is_no_text_is_written_escaped(ask):
    write("x.safetensors", tensors())
    Path("x.safetensors").rename("lat\udcff.safetensors")
    assert ask("import", "lat\udcff.safetensors", "dst", *SMALL)[0] == 0
    assert "lat?.safetensors" in Path("dst/card.md").read_text()


def test_an_encoder_is_passed_over_only_for_the_one_that_it_follows(ask):
    def both(one, two, other="resnet10"):
        content = {one + name: value for name, value in tensors(seed=1).items()}
        content |= {two + name: value for name, value in tensors(other, seed=2).items()}
        write("x.safetensors", content)

    for one, two in [
        ("module.encoder_q.", "module.encoder_k."), ("online_net.", "target_net."),
        ("backbone.", "backbone_momentum."), ("backbone.", "momentum_backbone."),
        ("module.base_encoder.", "module.momentum_encoder."),
    ]:  # fmt: skip
        both(two, one)
        shutil.rmtree("dst", ignore_errors=True)
        _, out, _ = ask("import", "x.safetensors", "dst", *SMALL)
        assert f"below '{one}'" in out
        assert f"passed over: another backbone below '{two}', which follows another" in out
        expected = tensors(seed=2)["bn1.bias"]
        assert np.array_equal(load.load("dst").tensors["bn1.bias"], expected)
    for one, two, other in [
        ("student.", "teacher.", "resnet10"), ("student.", "teacher.", "resnet50"),
        ("source_encoder.", "target_encoder.", "resnet10"), ("", "teacher.", "resnet10"),
    ]:  # fmt: skip
        both(one, two, other)
        told = refused(ask, "import", "x.safetensors", "other", *SMALL)
        assert f"the prefixes {one!r} and {two!r}" in told
        fix = f"import x.safetensors DST --prefix {one or repr('')}"
        assert fix in told


def test_what_may_compute_something_else_is_told(ask):
    beside = {"ca.fc1.weight": np.ones((2, 2), np.float32), "fc.weight": np.ones(3, np.float32)}
    write("x.safetensors", tensors() | beside)
    _, out, _ = ask("import", "x.safetensors", "one", *SMALL)
    assert "beside the backbone there are ca: if its forward pass uses them" in out
    below = {f"backbone.body.{name}": value for name, value in tensors().items()}
    write("y.safetensors", below | {"rpn.head.conv.weight": np.ones((2, 2, 3, 3), np.float32)})
    _, out, _ = ask("import", "y.safetensors", "two", *SMALL)
    assert "of a detector or a segmenter" in out


def test_a_timm_folder_says_more_than_its_tensors(ask):
    folder = Path("timm")
    folder.mkdir()
    write(folder / "model.safetensors", tensors("resnet18", 4))
    flags = ("--arch", "resnet18", "--width", "4")

    def config(**fields):
        pixels = {"mean": [0.5] * 3, "std": [0.25] * 3}
        content = {"architecture": "resnet18", "pretrained_cfg": pixels} | fields
        (folder / "config.json").write_text(json.dumps(content))

    config()
    _, out, _ = ask("import", "timm", "one", *flags)
    assert "those of config.json" in out
    assert set(load.load("one").pixel_mean) == {0.5}
    old = {"architecture": "resnet18", "mean": [0.25] * 3, "std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps(old))
    assert set(load.load("timm").pixel_mean) == {0.25}
    for fields, reason in [
        ({"architecture": "resnetblur18"}, "says resnetblur18"),
        ({"architecture": "resnet34"}, "says resnet34"),
        ({"model_args": {"output_stride": 8}}, "with output_stride"),
    ]:
        config(**fields)
        assert reason in refused(ask, "import", "timm", "two", *flags)
    for text in (
        "[" * 100_000,
        "{",
        "3",
        '{"pretrained_cfg": 3}',
        '{"pretrained_cfg": {"mean": "x"}}',
        '{"architecture": "resnet18", "mean": [[1], [2, 3], 4], "std": [1, 1, 1]}',
        '{"architecture": "resnet18", "model_args": [{}], "mean": [0, 0, 0], "std": [1, 0, 1]}',
        '{"architecture": "resnet18", "pretrained_cfg": [1], "mean": [0, 0, 0]}',
    ):
        (folder / "config.json").write_text(text)
        shutil.rmtree("three", ignore_errors=True)
        code, out, _ = ask("import", "timm", "three", *flags)
        assert code == 0
        assert "ImageNet's mean and std are assumed" in out


def test_blocks_by_place_begin_where_the_first_one_is(ask):
    places = {"conv1": "0", "bn1": "1", "layer1": "3", "layer2": "4", "layer3": "5", "layer4": "6"}
    moved = {}
    for name, value in tensors().items():
        module, _, rest = name.partition(".")
        moved[f"{places[module]}.{rest}"] = value
    write("x.safetensors", moved)
    _, out, _ = ask("import", "x.safetensors", "dst", *SMALL)
    assert "60/60" in out
    assert load.load("dst").tensors.keys() == tensors().keys()


def test_facts_in_a_header_that_are_not_ours_are_refused(ask):
    ask("import", write("x.safetensors", tensors()), "dst", *SMALL)
    whole = load_file("dst/backbone.safetensors")
    good = {"pixel_mean": [0.5] * 3, "pixel_std": [0.2] * 3, "stem": "imagenet"}
    spoiled = (
        "{", "[]", "3", "null", '"x"', json.dumps(good | {"pixel_std": [0.2, 0, 0.2]}),
        json.dumps(good | {"pixel_mean": [0.5]}), json.dumps(good | {"pixel_mean": 3}),
        json.dumps(good | {"pixel_mean": [0.5, 0.5, 1e999]}), json.dumps(good | {"stem": "x"}),
        json.dumps(good | {"pixel_mean": ["a", "b", "c"]}), json.dumps(good | {"lineage": 3}),
        json.dumps({"pixel_mean": [0.5] * 3}), json.dumps(good | {"stem_stride": 9}),
        json.dumps(good | {"missing": [1]}), json.dumps(good | {"pixel_window": [1]}),
        "[" * 100_000, json.dumps(good | {"pixel_std": [1e-300] * 3}),
    )  # fmt: skip
    for text in spoiled:
        save_file(whole, "y.safetensors", {"hpt_jax": text})
        assert "damaged" in refused(ask, "import", "y.safetensors", "out", *SMALL), text
    text = json.dumps(good | {"missing": ["\ud800\n"], "lineage": "a\x1b[2Jb"})
    save_file(whole, "y.safetensors", {"hpt_jax": text})
    assert ask("import", "y.safetensors", "out", *SMALL)[0] == 0
    assert "a?[2Jb" in Path("out/card.md").read_text()


def test_a_destination_that_is_in_use_is_left_alone(ask):
    write("x.safetensors", tensors())
    Path("file").write_text("mine")
    Path("full").mkdir()
    (Path("full") / "mine").write_text("mine")
    Path("empty").mkdir()
    for name in ("file", "full", "file/below", "x.safetensors", "new/..", "."):
        assert f"DST = '{name}'" in refused(ask, "import", "x.safetensors", name, *SMALL)
    Path("link").symlink_to("empty")
    assert ask("import", "x.safetensors", "link", *SMALL)[0] == 0
    assert ask("import", "link", "new/../näher/ß", *SMALL)[0] == 0
    assert {path.name for path in Path().iterdir()} == {
        "x.safetensors", "file", "full", "empty", "link", "näher",
    }  # fmt: skip
    for folder in ("empty", "näher/ß"):
        kept = sorted(path.name for path in Path(folder).iterdir())
        assert kept == ["backbone.safetensors", "card.md", "proof.json"]
        assert Path(folder).stat().st_mode & 0o777 == Path("full").stat().st_mode & 0o777


def test_the_command_names_every_format():
    assert set(command.FORMATS) == set(export.FORMATS)


def test_flags_are_checked(ask, capsys):
    write("x.safetensors", tensors())
    told = refused(ask, "import", "x.safetensors", "dst", "--arch", "resnet5")
    assert "--arch = 'resnet5': expected a known architecture. Did you mean 'resnet50'?" in told
    assert "--width = -1" in refused(ask, "import", "x.safetensors", "dst", "--width", "-1")
    told = refused(ask, "import", "x.safetensors", "dst", "--stem", "small")
    assert "--stem = 'small': expected imagenet or simclr" in told
    told = refused(ask, "import", "x.safetensors", "dst", "--stem-stride", "1")
    assert "--stem-stride = 1: expected 2, since its first convolution is 7x7" in told
    for wrong in (["import"], ["export", "x", "y"], ["export", "x", "y", "--format", "z"], ["x"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(wrong)
    assert "--format" in capsys.readouterr().err


def test_what_a_file_leaves_open_can_be_said(ask):
    write("x.safetensors", tensors(stem="small"))
    _, out, _ = ask("import", "x.safetensors", "one", *SMALL)
    assert load.STRIDE_ASSUMED in out
    _, out, _ = ask("import", "x.safetensors", "two", *SMALL, "--stem-stride", "2")
    assert "stem" not in out
    ask("import", "x.safetensors", "three", *SMALL, "--stem", "solo")
    stems = [load.load(name).facts for name in ("one", "two", "three")]
    assert [facts["stem_stride"] for facts in stems] == [1, 2, 1]
    assert [facts["stem"] for facts in stems] == ["small", "small", "solo"]
    write("y.safetensors", {f"{k}.{n}": v for k in "ab" for n, v in tensors(seed=ord(k)).items()})
    told = refused(ask, "import", "y.safetensors", "four", *SMALL)
    assert "--prefix a." in told
    ask("import", "y.safetensors", "four", *SMALL, "--prefix", "b")  # or 'b.'
    expected = tensors(seed=ord("b"))["bn1.bias"]
    assert np.array_equal(load.load("four").tensors["bn1.bias"], expected)


@pytest.mark.parametrize("channels", [1, 5])
def test_channels_are_converted_where_it_is_asked_for(ask, channels):
    given = tensors()
    write("x.safetensors", given)
    _, out, _ = ask("import", "x.safetensors", "dst", *SMALL, "--channels", channels)
    assert f"the first convolution takes {channels} channels" in out
    kernel = load.load("dst").tensors["conv1.weight"]
    theirs = given["conv1.weight"].transpose(2, 3, 1, 0)
    if channels == 1:
        np.testing.assert_allclose(kernel[:, :, 0], theirs.sum(2), rtol=1e-6)
    else:
        for channel in range(5):
            expected = theirs[:, :, channel % 3] * 3 / 5
            np.testing.assert_allclose(kernel[:, :, channel], expected, rtol=1e-6)


def test_without_torch_its_files_name_what_to_install(ask, monkeypatch):
    Path("x.pth").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    told = refused(ask, "import", "x.pth", "dst")
    assert "pip install 'hpt_jax[torch]'" in told
    write("x.safetensors", tensors())
    for name in ("torchvision", "onnx"):
        told = refused(ask, "export", "x.safetensors", "dst", "--format", name)
        assert "pip install 'hpt_jax[torch]'" in told


# Export without PyTorch


@pytest.mark.parametrize("name", ["safetensors", "timm"])
def test_formats_of_safetensors_need_no_torch_and_come_back_bit_by_bit(ask, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    arch = ("resnet18", 64) if name == "timm" else ("resnet10", 4)
    given = tensors(*arch)
    write("x.safetensors", given)
    ask("import", "x.safetensors", "mine", "--arch", arch[0], "--width", arch[1])
    assert ask("export", "mine", "out", "--format", name)[0] == 0
    again = load.load("out")
    for key, value in given.items():
        assert to_torch(np.asarray(again.tensors[key])).tobytes() == value.tobytes()
    assert np.array_equal(again.pixel_mean, load.IMAGENET_MEAN)


def test_a_format_that_cannot_hold_a_network_says_why(ask):
    write("x.safetensors", tensors())
    assert "timm has no resnet10" in refused(
        ask, "export", "x.safetensors", "o", "--format", "timm"
    )
    told = refused(ask, "export", "x.safetensors", "o", "--format", "detectron2")
    assert "detectron2 has no such depth" in told
    write("y.safetensors", tensors("resnet18"))
    assert "width 64" in refused(ask, "export", "y.safetensors", "o", "--format", "timm")


def test_detectron2s_names_are_those_of_its_networks(ask):
    given = tensors("resnet50", 4)
    write("x.safetensors", given)
    code, out, _ = ask("export", "x.safetensors", "out", "--format", "detectron2")
    assert code == 0
    assert "not verified" in out
    written = pickle.loads(Path("out/backbone.pkl").read_bytes())
    assert written["matching_heuristics"] is True
    model = written["model"]
    assert len(model) == len(given)
    # As detectron2's R-50 names them: a convolution holds its norm.
    pairs = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res3.3.conv2.norm.weight": "layer2.3.bn2.weight",
        "res5.2.conv3.weight": "layer4.2.conv3.weight",
    }
    for theirs, ours in pairs.items():
        assert np.array_equal(model[theirs], given[ours])
    card = Path("out/card.md").read_text()
    assert "STRIDE_IN_1X1: False" in card
    assert "PIXEL_MEAN: [123.675, 116.28, 103.53]" in card
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf.dtype, np.float32), model)
