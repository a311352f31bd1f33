"""A run from somebody else's weights: read from the file, proved, and told in the lineage."""

from __future__ import annotations

import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image
from safetensors.numpy import save_file
from support import folder_of, tiny_config, write_images

from hpt_jax import config, run
from hpt_jax.errors import UserError
from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ARCHITECTURE_FIELDS, ResNet
from hpt_jax.weights import load
from hpt_jax.weights.names import flatten, to_torch
from hpt_jax.workdir import StageFolder, read_json


def write_foreign(path, arch="resnet10", width=4, channels=3, **extra):
    """A file as a stranger's training script leaves it: one file, a prefix, a head, no facts."""
    rng = np.random.default_rng(0)
    model = ResNet(arch, width, "small", 1)
    tensors = {}
    for name, leaf in flatten(abstract_backbone(model, channels)).items():
        value = rng.uniform(0.5, 1, leaf.shape) / np.prod(leaf.shape[:-1])
        tensors[f"encoder.{name}"] = to_torch(value.astype(np.float32))
    save_file({**tensors, "head.weight": np.ones((3, 32), np.float32), **extra}, path)
    return {name.removeprefix("encoder."): value for name, value in tensors.items()}


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", classes=2, count=8, size=16, seed=0)
    return tmp_path / "images"


def asked(tmp_path, images, **overrides) -> config_dict.ConfigDict:
    made = config.default_config("adapt")
    made.name = "adapt"
    made.data, made.init = f"folder:{images}", str(tmp_path / "theirs.safetensors")
    made.image_size, made.steps, made.batch_size, made.model.bn_groups = 16, 2, 4, 2
    made.moco.queue_size, made.parallel.devices = 8, 1
    made.evaluations = ()
    for name, value in overrides.items():
        made[name] = value
    return made


def first_convolution(stage: StageFolder) -> np.ndarray:
    return to_torch(np.asarray(load.load(str(stage.path)).tensors["conv1.weight"]))


def test_adapt_reads_the_network_from_the_file_and_proves_what_it_loaded(tmp_path, images, capsys):
    theirs = write_foreign(tmp_path / "theirs.safetensors")
    made = asked(tmp_path, images)
    run.run(made, tmp_path / "w")
    told = capsys.readouterr().out
    assert "backbone tensors matched: 60/60 (100 %)" in told
    assert "not part of the backbone: head.weight [3, 32]" in told
    lineage = read_json(next((tmp_path / "w" / "stages").glob("base-*/lineage.json")))
    model = lineage["config"]["model"]
    assert {name: model[name] for name in ARCHITECTURE_FIELDS} == {
        "arch": "resnet10", "width": 4, "stem": "small", "stem_stride": 1,
    }  # fmt: skip
    proof = lineage["weights"]
    assert proof["dialect"] == "torchvision's names"
    assert (proof["matched"], proof["expected"]) == (60, 60)
    assert proof["unused"] == {"head.weight": [3, 32]}
    assert len(proof["features"]["first"]) == 4
    base = StageFolder(next((tmp_path / "w" / "stages").glob("base-*")))
    assert np.array_equal(first_convolution(base), theirs["conv1.weight"])
    # A stage that starts from another one has nothing to prove.
    target = next((tmp_path / "w" / "stages").glob("adapted-*/lineage.json"))
    assert read_json(target)["weights"] is None


def test_the_proof_is_the_same_for_the_same_weights(tmp_path, images):
    write_foreign(tmp_path / "theirs.safetensors")
    proofs = []
    for name in "ab":
        run.run(asked(tmp_path, images), tmp_path / name)
        path = next((tmp_path / name / "stages").glob("base-*/lineage.json"))
        proofs.append(read_json(path)["weights"])
    assert proofs[0] == proofs[1]


@pytest.mark.parametrize(
    ("stored", "given", "becomes"),
    [
        (1, 3, 3),
        (5, 3, 5),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [(3, 1, 1), (3, 3, 3), (5, 5, 5), (3, 5, 3), (1, 5, 1)]
        ),
    ],
)
def test_adapt_takes_images_of_any_channels_from_weights_of_any_channels(
    tmp_path, stored, given, becomes
):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 256, (16, 16, stored), dtype=np.uint8)
        if stored == 5:
            import tifffile

            tifffile.imwrite(folder / f"{index}.tif", pixels, planarconfig="contig")
        else:
            Image.fromarray(pixels.squeeze()).save(folder / f"{index}.png")
    theirs = write_foreign(tmp_path / "theirs.safetensors", channels=given)
    run.run(asked(tmp_path, folder), tmp_path / "w")
    base = StageFolder(next((tmp_path / "w" / "stages").glob("base-*")))
    kernel = first_convolution(base)
    source = theirs["conv1.weight"]
    if becomes == 1 and given != 1:
        expected = source.sum(1, keepdims=True)
    else:
        expected = source[:, np.arange(becomes) % given] * np.float32(given / becomes)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    notes = "; ".join(read_json(base.lineage)["weights"]["notes"])
    assert (f"takes {becomes} channels" in notes) == (becomes != given)


def test_a_stage_that_trains_from_a_file_takes_its_datas_channels(tmp_path):
    folder = tmp_path / "images" / "target"
    folder.mkdir(parents=True)
    for index in range(8):
        Image.fromarray(np.full((16, 16), 30 * index, np.uint8)).save(folder / f"{index}.png")
    write_foreign(tmp_path / "theirs.safetensors")
    made = tiny_config(tmp_path / "images")
    made.model.update(arch="resnet10", stem_stride=1)
    made.stages.target = dict(
        dataset="folder:target", steps=2, init=str(tmp_path / "theirs.safetensors")
    )
    made.arms.T = ("target",)
    run.run(made, tmp_path / "w")
    proof = read_json(folder_of(made, tmp_path / "w", "T").lineage)["weights"]
    assert "takes 1 channels, summed over its 3" in "; ".join(proof["notes"])
    assert proof["matched"] == proof["expected"]


def test_a_dry_run_from_a_file_writes_nothing(tmp_path, images, capsys):
    write_foreign(tmp_path / "theirs.safetensors")
    run.run(asked(tmp_path, images, dry_run=True), tmp_path / "w")
    assert not (tmp_path / "w").exists()
    assert "theirs.safetensors" in capsys.readouterr().out
    run.run(asked(tmp_path, images, dry_run=True, init="absent.pth"), tmp_path / "w")
    assert "(not found: absent.pth)" in capsys.readouterr().out


def test_a_dry_run_refuses_the_file_that_the_run_would_refuse(tmp_path, images):
    write_foreign(tmp_path / "theirs.safetensors")
    made = asked(tmp_path, images, dry_run=True)
    made.model.arch = "resnet18"
    with pytest.raises(UserError, match=r"they are of resnet10.*--config.model.arch=resnet10"):
        run.run(made, tmp_path / "w")


def test_a_study_says_what_is_wrong_with_its_base(tmp_path, images):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    made = config.default_config("study")
    made.analysis, made.target = "separability", f"folder:{images}"
    made.base = str(tmp_path / "page.pth")
    with pytest.raises(UserError, match=r"base = .*page.pth.*web page"):
        run.run(made, tmp_path / "w")


def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path, images):
    write_foreign(tmp_path / "theirs.safetensors")
    run.run(asked(tmp_path, images), tmp_path / "w")
    exported = (tmp_path / "w" / "export" / "backbone.safetensors").read_bytes()
    again = asked(tmp_path, images, init=str(tmp_path / "w" / "export"))
    with pytest.raises(UserError, match="this run does not overwrite"):
        run.run(again, tmp_path / "w")
    assert (tmp_path / "w" / "export" / "backbone.safetensors").read_bytes() == exported
    run.run(again, tmp_path / "other")


def test_a_partial_file_is_refused_and_says_how_to_take_it(tmp_path, images):
    whole = write_foreign(tmp_path / "theirs.safetensors")
    cut = {name: value for name, value in whole.items() if "layer4" not in name}
    save_file(cut, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=r"import \S*theirs.safetensors DST --missing layer4"):
        run.run(asked(tmp_path, images), tmp_path / "w")
    assert not list((tmp_path / "w").glob("stages/*"))


def test_weights_that_change_make_another_stage(tmp_path, images):
    write_foreign(tmp_path / "theirs.safetensors")
    first = run.make_plan(asked(tmp_path, images)).stages[0].id
    assert run.make_plan(asked(tmp_path, images)).stages[0].id == first
    write_foreign(tmp_path / "theirs.safetensors", note=np.ones(1, np.float32))
    assert run.make_plan(asked(tmp_path, images)).stages[0].id != first


def test_text_of_a_file_cannot_move_the_terminals_cursor(tmp_path, images, capsys):
    write_foreign(tmp_path / "theirs.safetensors", **{"a\n\x1b[2Jb": np.ones(1, np.float32)})
    run.run(asked(tmp_path, images), tmp_path / "w")
    told = capsys.readouterr().out
    assert "a??[2Jb [1]" in told
    assert "\x1b" not in told
