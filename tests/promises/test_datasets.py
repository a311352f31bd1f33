"""From a dataset's name to a number in the table: catalog sets, sets larger than memory, 16 bit."""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import imagecodecs
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import config_dict
from PIL import Image
from rich.console import Console
from support import folder_of, saved, tiny_config

from hpt_jax import run
from hpt_jax.errors import UserError
from hpt_jax.telemetry.display import Display
from hpt_jax.telemetry.writers import MetricsWriter
from hpt_jax.workdir import read_json

BASE, SOURCE, TARGET = "tfds:imagenet2012", "tfds:resisc45", "tfds:uc_merced"


def hierarchy() -> config_dict.ConfigDict:
    """Base, source and target of the catalog, two steps each, up to the probes."""
    config = tiny_config(Path())
    config.data_dir = ""
    config.target = TARGET
    for name, dataset in [("base", BASE), ("source", SOURCE), ("target", TARGET)]:
        config.stages[name] = dict(dataset=dataset, steps=2)
    config.model.dtype = "float64"
    config.batch_size = 16  # in groups of two, batch norm would amplify the last digit
    config.arms.update({"T": ("target",), "B+S+T": ("base", "source", "target")})
    config.evaluations = ("linear", "knn", "linear_sgd")
    config.linear_sgd.update(steps=6, batch_size=10, learning_rates=(1.0,), eval_every=2)
    return config


def rows_of(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("hierarchy")
    with jax.enable_x64(True), tfds.testing.mock_data(num_examples=48):
        run.run(hierarchy(), workdir)
    return workdir


def test_three_catalog_sets_go_from_base_to_source_to_target_to_the_probes(
    one_device: Path,
) -> None:
    rows = rows_of(one_device)
    assert {(row["arm"], row["evaluation"], row["split"]) for row in rows} == {
        (arm, evaluation, split)
        for arm in ("T", "B+S+T")
        for evaluation in ("linear", "knn", "linear_sgd")
        for split in ("val", "test")
    }
    with tfds.testing.mock_data(num_examples=48):
        words = read_json(folder_of(hierarchy(), one_device, "B+S+T").lineage)["words"]
    assert words == (
        f"base ({BASE}, 2 steps) -> source ({SOURCE}, 2 steps) -> target ({TARGET}, 2 steps)"
    )


# Two devices, mapped either way, and pixels from the host: nothing else is asked of the run.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "mapping", "pipeline"),
    [(1, "pmap", "resident"), (2, "shard_map", "resident"), (2, "pmap", "host")],
)
def test_devices_mapping_and_pipeline_change_no_stage_of_the_hierarchy(
    one_device: Path, tmp_path: Path, devices: int, mapping: str, pipeline: str
) -> None:
    config = hierarchy()
    config.parallel.update(devices=devices, map=mapping)
    config.input.pipeline = pipeline
    with jax.enable_x64(True), tfds.testing.mock_data(num_examples=48):
        run.run(config, tmp_path)
        both = [folder_of(config, folder, "B+S+T") for folder in (one_device, tmp_path)]
        expected, found = (saved(folder, "backbone") for folder in both)
    assert both[0].path.name == both[1].path.name
    assert len(rows_of(tmp_path)) == len(rows_of(one_device))
    for name, value in expected.items():
        if pipeline == "resident":
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9, err_msg=name)
        else:  # a grey level here and there, which tiny batches amplify
            assert np.isfinite(found[name]).all()


@pytest.mark.parametrize(
    "name",
    [
        "imagenet2012",
        "coco/2014",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "resisc45", "uc_merced", "oxford_flowers102", "domainnet", "eurosat", "cifar10",
                "voc/2007",
            )
        ),
    ],
)  # fmt: skip
def test_every_mocked_set_runs_from_config_to_probe(tmp_path: Path, name: str) -> None:
    several = name.startswith(("voc", "coco"))
    config = tiny_config(Path())
    config.data_dir = ""
    config.target = f"tfds:{name}"
    config.stages.target = dict(dataset=config.target, steps=1)
    config.arms.T = ("target",)
    config.metric = "macro_auroc" if several else "top1"
    config.evaluations = ("linear", "knn")
    with tfds.testing.mock_data(num_examples=60):
        run.run(config, tmp_path)
    rows = rows_of(tmp_path)
    assert {row["metric"] for row in rows} == {config.metric}
    assert len(rows) == 4
    assert all(0 <= float(row["value"]) <= 1 for row in rows)


def test_top1_of_several_labels_an_image_is_refused_before_any_training(tmp_path: Path) -> None:
    config = tiny_config(Path())
    config.data_dir = ""
    config.target = "tfds:voc/2007"
    config.stages.target = dict(dataset=config.target, steps=1)
    config.arms.T = ("target",)
    with (
        tfds.testing.mock_data(num_examples=40),
        pytest.raises(UserError, match=r"--config\.metric=macro_auroc"),
    ):
        run.run(config, tmp_path)
    assert not (tmp_path / "stages").exists()


class HptTinyPrepared(tfds.core.GeneratorBasedBuilder):
    """Forty ragged images of four colours."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(encoding_format="png", shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        rng = np.random.default_rng(0)
        for index in range(40):
            noise = rng.integers(0, 60, (*rng.integers(10, 30, 2), 3)) + 40 * (index % 4)
            yield index, {"image": noise.astype(np.uint8), "label": index % 4}


class Stopped(Exception):
    """Stands in for a kill."""


def test_a_run_prepares_its_set_and_resumes_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "data")
    config.target = "tfds:hpt_tiny_prepared"
    config.input.pipeline = "host"
    config.stages.target = dict(dataset=config.target, steps=8)
    config.arms.T = ("target",)
    config.evaluations = ("linear",)
    config.save_every_steps = 3
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    run.run(config, tmp_path / "whole", display=Display(console))
    told = console.export_text()
    assert "downloading and preparing" in told
    assert "host: read again for every batch" in told

    write = MetricsWriter.write

    def stop(self: MetricsWriter, step: int, scalars: Any) -> None:
        write(self, step, scalars)
        if step == 6:
            raise Stopped

    monkeypatch.setattr(MetricsWriter, "write", stop)
    with contextlib.suppress(Stopped):
        run.run(config, tmp_path / "resumed")
    monkeypatch.undo()
    assert not folder_of(config, tmp_path / "resumed", "T").is_done
    run.run(config, tmp_path / "resumed")
    whole, resumed = (folder_of(config, tmp_path / name, "T") for name in ("whole", "resumed"))
    for name, value in saved(whole, "state").items():
        np.testing.assert_array_equal(saved(resumed, "state")[name], value, err_msg=name)
    assert (tmp_path / "whole/results.csv").read_bytes() == (
        tmp_path / "resumed/results.csv"
    ).read_bytes()


def test_which_pipeline_and_why_is_told_and_follows_the_size(images: Path, tmp_path: Path) -> None:
    told = {}
    for gib in (0.0, 1e-6):
        config = tiny_config(images)
        config.stages.target = dict(dataset="folder:target", steps=1)
        config.arms.T = ("target",)
        config.input.memory_gib = gib
        console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
        run.run(config, tmp_path / str(gib), display=Display(console))
        told[gib] = console.export_text()
    assert "folder:target: resident: decoded once and held" in told[0.0]
    assert "folder:target: host: read again for every batch" in told[1e-6]
    assert "MiB decoded" in told[1e-6]
    assert "MiB allowed" in told[1e-6]
    assert list((tmp_path / "1e-06" / "scans").glob("*.npz"))


def test_a_large_set_is_scanned_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(images)
    config.stages.target = dict(dataset="folder:target", steps=1)
    config.arms.T = ("target",)
    config.input.pipeline = "host"
    run.run(config, tmp_path)
    config.stages.target.steps = 2
    monkeypatch.setattr("hpt_jax.data.store.load", None)  # which reads every image
    run.run(config, tmp_path)
    assert len(list((tmp_path / "scans").glob("*.npz"))) == 1
    assert len(list((tmp_path / "stages").glob("target-*/done.json"))) == 2


@pytest.mark.slow
def test_a_set_larger_than_the_memory_it_may_take_stays_below_it(tmp_path: Path) -> None:
    """Two hundred images of 3 MB decoded, read in a process whose peak is measured."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((1024, 1024))
    for index in range(200):
        picture.save(tmp_path / f"{index}.png", compress_level=1)
    code = f"""
        import resource
        import numpy as np
        from hpt_jax.augment.geometric import center_crop_boxes
        from hpt_jax.data import datasets, loader, order, store
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        dataset = datasets.open_dataset("folder:{tmp_path}")
        small = store.Reading(0, 0)
        before = peak()
        made = store.load(dataset, small, 0.0, 64 * 2**20)
        assert made.pixels is None and made.padded_bytes == 600 * 2**20
        def plan(step):
            rows = order.batch_indices(0, step, 8, len(made))
            return {{"image": loader.Crops(rows, center_crop_boxes(made.sizes[rows], 0.875))}}
        batches = sum(1 for _ in loader.batches(made.read, plan, range(4), 32))
        assert batches == 4
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # The limit, and what is on its way: a few images for each thread, and imported code.
    assert float(done.stdout) < 64 + 250


def test_sixteen_bit_images_train_and_keep_their_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(2):
        folder = tmp_path / "deep" / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(1000 + 500 * label, 3000 + 500 * label, (18, 18), np.uint16)
            (folder / f"{index}.png").write_bytes(imagecodecs.png_encode(pixels))
    config = tiny_config(tmp_path)
    config.target = "folder:deep"
    config.stages.target = dict(dataset="folder:deep", steps=2)
    config.arms.T = ("target",)
    config.evaluations = ("linear",)
    config.export = "T"
    run.run(config, tmp_path / "run")
    folder = folder_of(config, tmp_path / "run", "T")
    low, high = read_json(folder.lineage)["dataset"]["pixel_window"]
    assert 1000 <= low < 1010
    assert 3490 < high <= 3500
    assert saved(folder, "backbone")["['pixel_window']"].tolist() == [low, high]
    assert f"16-bit values from {low} to {high}" in (tmp_path / "run/export/card.md").read_text()


def test_splits_and_subsets_are_the_same_in_another_process(images: Path) -> None:
    code = f"""
        import numpy as np
        from hpt_jax.data.datasets import open_dataset
        from hpt_jax.data.splits import subset
        dataset = open_dataset("folder:base", {str(images)!r})
        print([ids.tolist() for ids in dataset.splits.values()])
        print(subset(dataset.splits["train"], dataset.labels, 0.5, 3).tolist())
    """
    outputs = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1
