"""Sets of several labels an image, from the paper's own configs to a number in the table."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paper_sets
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from rich.console import Console
from support import folder_of, tiny_config

from hpt_jax import config as config_lib
from hpt_jax import run
from hpt_jax.main import main
from hpt_jax.paper import DATASETS, IMAGENET
from hpt_jax.telemetry.display import Display
from hpt_jax.workdir import read_json

CONFIGS = Path(__file__).parents[2] / "configs"
# Few stages of one step, and a base that is at hand.
TINY = {
    "scale": "small",
    "seeds": "0",
    "image_size": "16",
    "model.width": "4",
    "batch_size": "16",
    "base_steps": "1",
    "steps": "1",
    "scratch_steps": "1",
    "bn_steps": "1",
    "parallel.devices": "1",
}


def rows_of(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results.csv").open() as file:
        return list(csv.DictReader(file))


def told_by(config: ConfigDict, workdir: Path, overrides: Sequence[tuple[str, str]] = ()) -> str:
    console = Console(record=True, width=300, file=open(os.devnull, "w"))  # noqa: SIM115
    run.run(config, workdir, overrides, Display(console))
    return console.export_text()


def test_chexpert_runs_to_macro_auroc(tmp_path: Path) -> None:
    paper_sets.chexpert(tmp_path)
    config = tiny_config(tmp_path)
    config.target = DATASETS["chexpert"].dataset
    config.stages.target = dict(dataset=config.target, steps=1)
    config.arms.T = ("target",)
    config.metric = "macro_auroc"
    config.input.channels = 3
    told = told_by(config, tmp_path / "run")
    assert "54 train, 6 val, 30 test, 5 labels, any number an image" in told
    assert "and the paper's chexpert (0.5028, 0.5028, 0.5028)" in told
    rows = rows_of(tmp_path / "run")
    assert {row["metric"] for row in rows} == {"macro_auroc"}
    assert len(rows) == 4
    assert all(0 <= float(row["value"]) <= 1 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xview", "chexpert", "pascal"])
def test_a_config_of_the_paper_runs_small(tmp_path: Path, name: str) -> None:
    """One of a folder, one prepared by TFDS, one mocked; in stages of one step."""
    paper_sets.table_folder(tmp_path / "xview", 36)
    paper_sets.class_folder(tmp_path / "base", 2)
    paper_sets.chexpert(tmp_path)
    mocked = name == "pascal"
    base = IMAGENET if mocked else "folder:base"
    overrides = {**TINY, "base": base, "data_dir": "" if mocked else str(tmp_path)}
    config = config_lib.load(str(CONFIGS / "hpt" / f"{name}.py"))
    mock = tfds.testing.mock_data(num_examples=40) if mocked else contextlib.nullcontext()
    with mock:
        run.run(config, tmp_path / "run", list(overrides.items()))
    rows = rows_of(tmp_path / "run")
    assert {row["arm"] for row in rows} == {"random", "B-direct", "B", "T", "B+T", "HPT-BN"}
    assert {(row["evaluation"], row["split"]) for row in rows} == {
        (evaluation, split) for evaluation in ("linear", "knn") for split in ("val", "test")
    }
    assert {row["metric"] for row in rows} == {"macro_auroc"}


def test_labels_are_learned_from_the_table_and_unnamed_images_left_out(tmp_path: Path) -> None:
    """One class, which is on bright images: found by any probe, if labels stay with images."""
    levels = np.random.default_rng(0).permutation(120) * 2
    lines = ["bright,image"]
    for index, level in enumerate(levels):
        paper_sets.grey(tmp_path / "table" / f"{index:03}.png", int(level))
        if index:
            lines.append(f"{int(level >= 120)},{index:03}.png")
    (tmp_path / "table" / "labels.csv").write_text("\n".join(lines))
    config = tiny_config(tmp_path)
    config.target = "folder:table"
    config.stages.target = dict(dataset="folder:table", steps=1)
    config.arms.T = ("target",)
    config.metric = "macro_auroc"
    config.evaluations = ("linear", "knn", "linear_sgd")
    config.linear_sgd.update(steps=6, batch_size=32, learning_rates=(1.0,), eval_every=2)
    told = told_by(config, tmp_path / "run")
    assert "folder:table: 83 train, 12 val, 24 test (val and test cut from train), 1 labels" in told
    assert "note: folder:table: 1 images, such as 000.png, have no row in its labels.csv" in told
    values = {(row["evaluation"], row["split"]): float(row["value"])
              for row in rows_of(tmp_path / "run")}  # fmt: skip
    assert values["linear", "test"] > 0.95
    assert len(values) == 6
    lineage = read_json(folder_of(config, tmp_path / "run", "T").lineage)["dataset"]
    assert (lineage["images"], lineage["pretrained_on"]) == (119, 95)


def test_a_folder_with_a_table_is_adapted_to_with_its_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper_sets.table_folder(tmp_path / "mine", 3)
    data = f"folder:{tmp_path}/mine"
    planned = run.make_plan(config_lib.load(str(CONFIGS / "adapt.py")), [("data", data)])
    assert (planned.config.target, planned.config.metric) == (data, "macro_auroc")
    with (tmp_path / "mine" / "labels.csv").open("a") as file:
        file.write("images/000.png,train,1,0,maybe\n")
    command = ["--config", str(CONFIGS / "adapt.py"), "--workdir", str(tmp_path / "run")]
    assert main([*command, f"--config.data={data}"]) == 2
    assert "labels.csv:62" in capsys.readouterr().err
