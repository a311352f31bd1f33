"""The same config gives the same training on any number of devices, however they are mapped."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from support import folder_of, saved, tiny_config

from hpt_jax import run


def trained(images: Path, workdir: Path, devices: int, mapping: str) -> dict[str, np.ndarray]:
    """All that a stage holds after three steps in float64: backbone, key encoder, queue, SGD."""
    config = config_of(images, devices, mapping)
    with jax.enable_x64(True):
        run.run(config, workdir)
        folder = folder_of(config, workdir, "T")
        return {**saved(folder, "backbone"), **saved(folder, "state")}


def config_of(images: Path, devices: int, mapping: str) -> config_dict.ConfigDict:
    config = tiny_config(images)
    config.batch_size = 16
    config.model.dtype = "float64"
    config.parallel.update(devices=devices, map=mapping)
    config.stages.target = dict(dataset="folder:target", steps=3)
    config.arms.T = ("target",)
    return config


@pytest.fixture(scope="module")
def one_device(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return trained(images, tmp_path_factory.mktemp("one"), 1, "shard_map")


# 4 batch-norm groups: on 8 devices a group spans two of them, on 2 devices each holds two groups.
@pytest.mark.parametrize(
    ("devices", "mapping"),
    [
        pytest.param(2, "shard_map", marks=pytest.mark.slow),
        pytest.param(4, "shard_map", marks=pytest.mark.slow),
        (8, "shard_map"),
        pytest.param(4, "pmap", marks=pytest.mark.slow),
    ],
)
def test_one_device_equals_many(
    images: Path, tmp_path: Path, one_device: dict[str, np.ndarray], devices: int, mapping: str
) -> None:
    many = trained(images, tmp_path, devices, mapping)
    assert many.keys() == one_device.keys()
    assert any("queue" in name for name in many)
    for name, expected in one_device.items():
        if expected.dtype == np.float64:
            np.testing.assert_allclose(many[name], expected, rtol=0, atol=1e-10, err_msg=name)
        else:
            np.testing.assert_array_equal(many[name], expected, err_msg=name)


def test_the_mapping_and_the_devices_are_no_part_of_a_stage(images: Path) -> None:
    ids = {
        run.make_plan(config_of(images, devices, mapping)).stages[0].id
        for devices, mapping in [(1, "shard_map"), (8, "shard_map"), (2, "pmap")]
    }
    assert len(ids) == 1


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("groups", "told"), [(4, True), (16, False)])
def test_batches_for_many_devices_are_told_the_papers_rule(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], groups: int, told: bool
) -> None:
    config = tiny_config(images)
    config.batch_size, config.model.bn_groups, config.moco.queue_size = 1024, groups, 1024
    config.stages.target = dict(dataset="folder:target", steps=3)
    config.arms.T = ("target",)
    run.run(config, tmp_path)
    rule = "--config.model.bn_groups=16 --config.optimizer.learning_rate=0.12"
    assert (rule in capsys.readouterr().out) == told
