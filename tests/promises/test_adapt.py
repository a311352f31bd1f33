"""From a folder of images of any kind to an export, by `configs/adapt.py`."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from hpt_jax import run
from hpt_jax.data import dicom, survey
from hpt_jax.data.datasets import open_dataset
from hpt_jax.main import main
from hpt_jax.shapes import PLAN, SURVEY
from hpt_jax.weights import load
from hpt_jax.workdir import read_json

ADAPT = Path(__file__).parents[2] / "configs" / "adapt.py"
DATA = Path("/tmp/DATA")
# The smallest network and run; all that is left is chosen from the data.
TINY = (
    "steps=2", "model.width=8", "batch_size=8", "moco.queue_size=8", "image_size=32",
    "parallel.devices=1", "log_every_steps=1",
)  # fmt: skip
COUNT, SIDE = 10, 24


def pixels_of(seed: int, channels: int, kind: type = np.uint8) -> np.ndarray:
    """A few blocks of random colour, [h, w, channels]."""
    blocks = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (4, 4, channels), kind)
    return blocks.repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1)


def bands(count: int, kind: type = np.uint8) -> Callable[[Path, int], None]:
    def write(folder: Path, index: int) -> None:
        pixels = pixels_of(index, count, kind)
        tifffile.imwrite(folder / f"{index}.tif", pixels, planarconfig="contig",
                         photometric="minisblack")  # fmt: skip

    return write


def picture(mode: str, suffix: str = "png") -> Callable[[Path, int], None]:
    def write(folder: Path, index: int) -> None:
        pixels = pixels_of(index, len(mode))
        Image.fromarray(pixels.squeeze(), mode).save(folder / f"{index}.{suffix}")

    return write


def deep_png(channels: int) -> Callable[[Path, int], None]:
    def write(folder: Path, index: int) -> None:
        pixels = pixels_of(index, channels, np.uint16).squeeze()
        (folder / f"{index}.png").write_bytes(imagecodecs.png_encode(pixels))

    return write


def mixed(folder: Path, index: int) -> None:
    """Grey and colour, of other sizes and formats."""
    pixels = pixels_of(index, 1 + 2 * (index % 2))
    image = Image.fromarray(pixels.squeeze()).resize((20 + 3 * index, 50 - 2 * index))
    image.save(folder / f"{index}.{'jpg' if index % 3 else 'png'}")


def dicom_file(folder: Path, index: int) -> None:
    """As a scanner leaves it: no suffix, 12 bits, and a patient's name."""
    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{index}"
    made.PatientName = "SECRET^NAME"
    made.set_pixel_data(pixels_of(index, 1, np.uint16)[:, :, 0] >> 4, "MONOCHROME2", 12)
    made.save_as(folder / f"IM{index:04d}", enforce_file_format=True)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of images: how one is written, and what the backbone takes of them."""

    write: Callable[[Path, int], None]
    channels: int
    told: str


KINDS = {
    "grey": Kind(picture("L"), 1, "grey, 8 bit"),
    "grey of 16 bits": Kind(deep_png(1), 1, "grey, 16 bit"),
    "RGB": Kind(picture("RGB"), 3, "RGB, 8 bit"),
    "RGBA": Kind(picture("RGBA"), 3, "RGB, 8 bit"),
    "RGB of 16 bits": Kind(deep_png(3), 3, "RGB, 16 bit"),
    "4 bands": Kind(bands(4), 4, "4 channels, 8 bit"),
    "5 bands of 16 bits": Kind(bands(5, np.uint16), 5, "5 channels, 16 bit"),
    "13 bands of 16 bits": Kind(bands(13, np.uint16), 13, "13 channels, 16 bit"),
    "mixed": Kind(mixed, 3, "grey (5) and RGB (5), 8 bit"),
    "DICOM": Kind(dicom_file, 1, "grey, 16 bit"),
}


def made(folder: Path, write: Callable[[Path, int], None], count: int = COUNT) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        write(folder, index)
    return folder


def adapt(folder: Path, workdir: Path, *fields: str, defaults: Sequence[str] = TINY) -> int:
    flags = [f"--config.{field}" for field in (*defaults, *fields)]
    return main(
        [
            "--config",
            str(ADAPT),
            "--workdir",
            str(workdir),
            f"--config.data=folder:{folder}",
            *flags,
        ]
    )


@pytest.fixture
def no_stages(no_training: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a run where training would begin."""
    monkeypatch.setattr(run, "export_arm", lambda *args: None)


@pytest.mark.usefixtures("no_stages")
@pytest.mark.parametrize("name", KINDS)
def test_images_of_every_kind_are_told_and_read(name, tmp_path, capsys):
    kind = KINDS[name]
    assert adapt(made(tmp_path / "images", kind.write), tmp_path / "w") == 0
    told = capsys.readouterr().out
    assert f"looked at all {COUNT} images" in told
    assert kind.told in told
    assert f"channels: {kind.channels}" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_images_of_every_kind_go_from_a_folder_to_an_export(name, tmp_path, capsys):
    kind = KINDS[name]
    assert adapt(made(tmp_path / "images", kind.write), tmp_path / "w") == 0
    exported = load.load(str(tmp_path / "w" / "export"))
    assert exported.tensors["conv1.weight"].shape[2] == kind.channels
    assert exported.facts["channels"] == kind.channels
    assert exported.facts["center_crop"] == 0.875
    assert all(np.isfinite(value).all() for value in exported.tensors.values())
    told = capsys.readouterr().out
    assert "SECRET" not in told
    assert re.search("^It (learned|changed little|unlearned|went wrong): ", told, re.M)
    for path in (tmp_path / "w").rglob("*"):  # what a file tells of a patient goes nowhere
        assert not path.is_file() or b"SECRET" not in path.read_bytes()


@pytest.mark.slow
def test_a_backbone_goes_from_colour_to_bands_to_grey_and_back(tmp_path, capsys):
    given = "random"
    for step, name in enumerate(("RGB", "5 bands of 16 bits", "grey", "RGB")):
        kind, workdir = KINDS[name], tmp_path / f"w{step}"
        defaults = [one for one in TINY if not one.startswith("model") or given == "random"]
        folder = made(tmp_path / f"images{step}", kind.write)
        assert adapt(folder, workdir, f"init={given}", defaults=defaults) == 0
        given = str(workdir / "export")
        taken = load.load(given).tensors["conv1.weight"].shape[2]
        # Grey images are repeated for what takes colours, and colours kept for what takes bands.
        assert taken == {0: 3, 1: 5, 2: 1, 3: 1}[step]


# What is told and chosen


def choices(workdir: Path) -> dict[str, tuple[str, str]]:
    plan = read_json(workdir / "plans" / "adapt.json", PLAN)
    return {one["field"]: (one["value"], one["reason"]) for one in plan["choices"]}


@pytest.mark.usefixtures("no_stages")
def test_every_choice_is_told_with_its_reason_and_what_the_user_sets_is_his(tmp_path, capsys):
    folder = made(tmp_path / "images", picture("RGB"), 40)
    assert adapt(folder, tmp_path / "w", defaults=()) == 0
    told, chosen = capsys.readouterr().out, choices(tmp_path / "w")
    for field, (value, reason) in chosen.items():
        assert re.search(
            rf"^  {re.escape(field)} +{re.escape(value)} +{re.escape(reason)}$", told, re.M
        )
    assert {field: value for field, (value, _) in chosen.items()} == {
        "image_size": "32", "input.channels": "3", "model": "resnet10, width 16",
        "batch_size": "16", "model.bn_groups": "2", "moco.queue_size": "32", "steps": "100",
        "optimizer.learning_rate": "0.06", "optimizer.schedule": "anytime", "moco.momentum": "0.99",
        "augment.policy": "moco_v2", "target": "none",
    }  # fmt: skip
    fields = {
        "image_size": "48", "input.channels": "1", "model.width": "8", "batch_size": "12",
        "model.bn_groups": "3", "moco.queue_size": "24", "steps": "7", "moco.momentum": "0.9",
        "optimizer.learning_rate": "0.1", "optimizer.schedule": "constant",
        "augment.policy": "crop",
    }  # fmt: skip
    flags = [*map("=".join, fields.items()), "parallel.devices=1"]
    assert adapt(folder, tmp_path / "v", *flags, defaults=()) == 0
    chosen = choices(tmp_path / "v")
    for field, value in fields.items():
        held, reason = chosen["model" if field == "model.width" else field]
        assert value in held
        assert "set by you" in reason


@pytest.mark.usefixtures("no_stages")
def test_folders_that_are_no_classes_need_not_be_judged_by(tmp_path):
    for name in "ab":
        made(tmp_path / "images" / name, picture("RGB"))
    for fields, judged in ((), True), (("target=",), False):
        workdir = tmp_path / f"w{judged}"
        assert adapt(tmp_path / "images", workdir, *fields) == 0
        plan = read_json(workdir / "plans" / "adapt.json", PLAN)
        assert bool(plan["dataset"]) == judged
        assert [run["arm"] for run in plan["runs"]] == (["random", "T"] if judged else ["T"])
    assert choices(workdir)["target"] == ("none", "set by you")


@pytest.mark.usefixtures("no_stages")
def test_several_lengths_are_a_run_each_with_the_same_rows(tmp_path):
    folder = made(tmp_path / "images", picture("RGB"), 40)
    found = {}
    for steps in ("100", "3000", "100,3000"):
        assert adapt(folder, tmp_path / steps, f"steps={steps}", defaults=TINY[1:-1]) == 0
        plan = read_json(tmp_path / steps / "plans" / "adapt.json", PLAN)
        found[steps] = {run["stage_id"]: run["pretrain_steps"] for run in plan["runs"]}
        assert plan["config"]["log_every_steps"] == 10
    assert found["100,3000"] == found["100"] | found["3000"]
    assert choices(tmp_path / "100,3000")["steps"][0] == "100, 3000"


@pytest.mark.usefixtures("no_stages")
def test_colours_are_left_alone_where_there_are_none(tmp_path, capsys):
    def grey(folder: Path, index: int) -> None:
        Image.fromarray(pixels_of(index, 1).repeat(3, axis=2)).save(folder / f"{index}.png")

    assert adapt(made(tmp_path / "images", grey), tmp_path / "w") == 0
    told, chosen = capsys.readouterr().out, choices(tmp_path / "w")
    assert "RGB without colours" in told
    assert "channels: 1" in told
    assert chosen["input.channels"] == ("1", "the images are grey, though stored as RGB")
    augment = read_json(tmp_path / "w" / "plans" / "adapt.json")["config"]["shared"]["augment"]
    assert (augment["hue"], augment["saturation"], augment["grayscale_probability"]) == (0, 0, 0)
    assert augment["brightness"] > 0


@pytest.mark.usefixtures("no_stages")
@pytest.mark.parametrize(("count", "code"), [(1, 2), (5, 2), (15, 2), (16, 0), (31, 0), (33, 0)])
def test_a_small_set_is_trained_on_or_is_refused_in_words(count, code, tmp_path, capsys):
    folder = made(tmp_path / "images", picture("RGB"), count)
    assert adapt(folder, tmp_path / "w", "parallel.devices=1", defaults=()) == code
    told = capsys.readouterr()
    if code:
        assert f"at least 16 images to learn from, a batch, but it has {count}" in told.err
        assert len(told.err.splitlines()) == 1
    else:
        chosen = choices(tmp_path / "w")
        batch, queue = (int(chosen[name][0]) for name in ("batch_size", "moco.queue_size"))
        assert batch <= queue <= count
        assert int(chosen["model.bn_groups"][0]) >= 2


@pytest.mark.usefixtures("no_stages")
def test_a_smaller_batch_takes_a_smaller_set(tmp_path):
    assert adapt(made(tmp_path / "images", picture("RGB"), 5), tmp_path / "w") == 2
    assert adapt(tmp_path / "images", tmp_path / "w", "batch_size=4", "moco.queue_size=4") == 0


@pytest.mark.usefixtures("no_stages")
def test_images_that_are_all_the_same_are_noticed(tmp_path, capsys):
    folder = made(tmp_path / "images", lambda folder, index: picture("RGB")(folder, 0), 1)
    for index in range(1, 20):
        shutil.copy(folder / "0.png", folder / f"{index}.png")
    assert adapt(folder, tmp_path / "w") == 0
    told = capsys.readouterr().out
    assert "duplicates  19: 1.png = 0.png" in told
    assert "note: all images are the same one" in told


@pytest.mark.usefixtures("no_stages")
def test_images_are_looked_at_once_and_a_dry_run_writes_nothing(tmp_path, capsys, monkeypatch):
    folder = made(tmp_path / "images", picture("RGB"))
    assert adapt(folder, tmp_path / "w", "dry_run=True") == 0
    assert not (tmp_path / "w").exists()
    assert adapt(folder, tmp_path / "w") == 0
    first = capsys.readouterr().out
    (kept,) = (tmp_path / "w" / "surveys").iterdir()
    assert read_json(kept, SURVEY) is not None

    def never(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(survey, "survey", never)
    assert adapt(folder, tmp_path / "w") == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:6] == first.partition("disk: ")[2].splitlines()[1:7]
    assert adapt(folder, tmp_path / "w", "dry_run=True") == 0
    monkeypatch.undo()
    kept.write_text(kept.read_text()[:50])  # damaged: made again
    now = open_dataset(f"folder:{folder}")
    assert survey.load(kept.parent, now.name, now.fingerprint) is None


def test_real_sets_are_told_in_a_few_lines(tmp_path, capsys):
    sets = sorted(DATA.glob("*")) if DATA.is_dir() else []
    if not sets:
        pytest.skip("they are not there")
    for folder in sets:
        assert adapt(folder, tmp_path / "w", "dry_run=True", defaults=()) == 0
        told = capsys.readouterr().out
        assert "looked at 64 of the" in told
        assert len(told.splitlines()) < 32


# DICOM


def test_without_pydicom_its_files_are_left_out_with_a_note(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dicom, "installed", lambda: False)
    folder = made(tmp_path / "images", dicom_file)
    assert adapt(folder, tmp_path / "w") == 2
    told = capsys.readouterr().err
    assert "DICOM files alone (10)" in told
    assert "pip install pydicom" in told
    for index in range(20):
        picture("L")(folder, index)
    data = open_dataset(f"folder:{folder}")
    assert (len(data.images), data.left_out) == (20, 10)
