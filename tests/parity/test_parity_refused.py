"""Files of PyTorch that must not be loaded: damaged ones, other things, and hostile ones."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hpt_jax.errors import UserError
from hpt_jax.weights import __main__ as command
from hpt_jax.weights import load

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models")

pytestmark = pytest.mark.torch


def saved(content, legacy=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.fixture(scope="module")
def state():
    return models.resnet18().state_dict()


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The one message of an import that exits with 2, writes nothing and runs nothing."""
    monkeypatch.chdir(tmp_path)

    def run(name, content, *flags):
        Path(name).write_bytes(content)
        before = sorted(Path().iterdir())
        code = command.main(["import", name, "dst", "--arch", "resnet18", *flags])
        told = capsys.readouterr()
        assert code == 2
        assert "exported" not in told.out
        assert told.err.startswith(f"SRC = '{name}': expected ")
        assert told.err.count("\n") == 1
        assert sorted(Path().iterdir()) == before
        return told.err

    return run


class Runs:
    """Creates a file as soon as it is unpickled."""

    def __reduce__(self):
        return open, ("it-ran", "w")


class Evaluates:
    def __reduce__(self):
        return eval, ("open('it-ran', 'w')",)


class Shells:
    def __reduce__(self):
        import os

        return os.system, ("touch it-ran",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("hostile", [Runs, Evaluates, Shells])
def test_nothing_of_a_malicious_file_runs(refused, state, hostile, legacy):
    for content in (hostile(), {"state_dict": state, "epoch": hostile()}, [hostile()]):
        told = refused("hostile.pth", saved(content, legacy))
        assert "loading it would call " in told
        assert "nothing of it was run" in told
    assert "plain pickle" in refused("hostile.pkl", pickle.dumps(hostile()))
    assert not Path("it-ran").exists()
    # The files are live: what refuses them is the reader, not a mistake in them.
    pickle.loads(pickle.dumps(hostile()))
    assert Path("it-ran").exists()


def test_a_pickle_made_by_hand_runs_nothing(refused, state):
    """It reaches for a method of a builtin, which no honest pickler would write."""
    by_hand = b"\x80\x02cbuiltins\ngetattr\ncbuiltins\nopen\nX\x08\x00\x00\x00__call__\x86R."
    archive = io.BytesIO(saved(state))
    with zipfile.ZipFile(archive) as file:
        name = next(one for one in file.namelist() if one.endswith("data.pkl"))
        parts = {one: file.read(one) for one in file.namelist()}
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as file:
        for one, content in {**parts, name: by_hand}.items():
            file.writestr(one, content)
    assert "would call" in refused("hostile.pth", changed.getvalue())


def test_wrong_files_are_each_refused_with_their_reason(refused, state):
    whole, old = saved(state), saved(state, legacy=True)
    lost = {name: value for name, value in state.items() if not name.startswith("layer3")}
    assert "--arch resnet34" in refused("depth.pth", saved(models.resnet34().state_dict()))
    wide = models.wide_resnet50_2().state_dict()
    told = refused("wide.pth", saved(wide), "--arch", "resnet50")
    assert "such as a wide one" in told
    assert "--width 32" in refused("width.pth", saved(narrow()))
    assert "head alone" in refused("head.pth", saved({"fc.weight": state["fc.weight"]}))
    assert "--missing layer3" in refused("lost.pth", saved(lost))
    for length in (0.3, 0.9, 0.999):
        assert "cannot read" in refused("cut.pth", whole[: int(length * len(whole))])
        assert "cannot read" in refused("cut_old.pth", old[: int(length * len(old))])
    assert "web page" in refused("page.pth", b"<!DOCTYPE html><html></html>")
    assert "empty" in refused("empty.pth", b"")
    assert "transformer" in refused("vit.pth", saved(models_vit()))
    whole_model = saved(models.resnet18())
    assert "would call torchvision.models.resnet.ResNet" in refused("model.pth", whole_model)


def narrow():
    import timm.models.resnet as resnet

    network = resnet.ResNet(resnet.BasicBlock, (2, 2, 2, 2), channels=(32, 64, 128, 256))
    state = network.state_dict()
    return {**state, "conv1.weight": state["conv1.weight"][:32]} | {
        name: value[:32] for name, value in state.items() if name.startswith("bn1.") and value.ndim
    }


def models_vit():
    return {"cls_token": torch.zeros(1, 1, 8), "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}


def test_torchscript_is_refused(refused):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), file)
    told = refused("script.pt", file.getvalue())
    assert "TorchScript archive" in told
    assert "weights_only" not in told


def test_the_ending_of_a_name_means_nothing(tmp_path, state):
    torch.save(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.onnx")
    for name in ("x.safetensors", "x.onnx"):
        assert load.load(str(tmp_path / name)).facts["arch"] == "resnet18"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_changed_bytes_loads_or_is_refused_in_one_line(
    tmp_path, monkeypatch, state, legacy
):
    monkeypatch.chdir(tmp_path)
    whole = saved({k: v for k, v in state.items() if k[:6] < "layer3"}, legacy)
    rng = np.random.default_rng(0)
    # Where names and shapes stand, which is a small part of the file.
    places = np.arange(0, 20_000)
    if not legacy:
        with zipfile.ZipFile(io.BytesIO(whole)) as file:
            entry = next(one for one in file.infolist() if one.filename.endswith("data.pkl"))
        places = np.arange(entry.header_offset, entry.header_offset + entry.file_size)
        places = np.concatenate([places, np.arange(len(whole) - 5000, len(whole))])
    loaded, messages = 0, []
    for number in range(150):
        changed = bytearray(whole)
        for place in rng.choice(places, 1 + number % 4):
            changed[place] = rng.integers(256)
        Path("x.pth").write_bytes(changed)
        try:
            weights = load.load("x.pth")
        except UserError as error:
            messages.append(str(error))
        else:
            loaded += 1
            assert all(np.isfinite(value).all() for value in weights.tensors.values())
    assert loaded
    assert messages
    assert not any("\n" in message for message in messages)


def test_tensors_that_numpy_cannot_hold_are_none(refused, state):
    strange = {
        "fp8": torch.zeros(3, dtype=torch.float8_e4m3fn),
        "sparse": torch.eye(3).to_sparse_csr(),
        "meta": torch.zeros(3, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        # Five hundred million million numbers, of which the file holds one.
        "huge": torch.zeros(1).expand(10**6, 10**5, 7, 7),
    }
    Path("x.pth").write_bytes(saved({**state, **strange}))
    assert load.load("x.pth").tensors.keys() == {k for k in state if "num_b" not in k} - {
        "fc.weight", "fc.bias",
    }  # fmt: skip
    for tensor in strange.values():
        told = refused("y.pth", saved({**state, "conv1.weight": tensor}))
        assert "conv1.weight [7, 7, 3, 64] is missing" in told
