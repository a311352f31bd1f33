"""The method of docs/howto/method.md is SimCLR, and trains by the loop as MoCo does."""

from __future__ import annotations

import csv
import math
import sys
import types

import commands
import jax
import numpy as np
import pytest
from PIL import Image

from hpt_jax import config as config_lib
from hpt_jax import run, training, validate


@pytest.fixture
def simclr(monkeypatch):
    """The module of the page, known to the loop."""
    (block,) = (b for b in commands.blocks("docs/howto/method.md") if b.file == "hpt_jax/simclr.py")
    module = types.ModuleType("hpt_jax.simclr")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block.text, block.file, "exec"), module.__dict__)
    monkeypatch.setitem(training.METHODS, "simclr", module)
    monkeypatch.setattr(validate, "METHODS", ("moco", "simclr"))
    return module


def test_its_loss_is_that_of_the_paper(simclr):
    """Chen et al. 2020, equation 1, image by image."""
    rng = np.random.default_rng(0)
    views = rng.normal(size=(2, 5, 8))
    views /= np.linalg.norm(views, axis=-1, keepdims=True)
    losses, right = [], []
    for view, image in np.ndindex(2, 5):
        own = views[view, image]
        others = {(v, i): own @ views[v, i] for v, i in np.ndindex(2, 5) if (v, i) != (view, image)}
        scale = sum(math.exp(cosine / 0.5) for cosine in others.values())
        losses.append(-math.log(math.exp(others[1 - view, image] / 0.5) / scale))
        right.append(max(others, key=others.__getitem__) == (1 - view, image))
    with jax.enable_x64(True):
        loss, accuracy = simclr.nt_xent(*map(jax.numpy.asarray, views), 0.5)
    assert loss == pytest.approx(np.mean(losses), abs=1e-12)
    assert accuracy == pytest.approx(np.mean(right))


@pytest.mark.slow
def test_it_trains_alike_on_one_device_and_on_four(simclr, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(20):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    config = config_lib.default_config()
    config.update(method="simclr", image_size=16, batch_size=16, log_every_steps=1)
    config.data_dir = str(tmp_path)
    config.model.update(arch="resnet10", width=4, stem="small", dtype="float64")
    config.stages.target = dict(dataset="folder:images", steps=3)
    config.arms.T = ("target",)
    traces = []
    for devices in (1, 4):
        config.parallel.devices = devices
        with jax.enable_x64(True):
            run.run(config, tmp_path / str(devices))
        (path,) = (tmp_path / str(devices)).glob("stages/*/metrics.csv")
        with open(path, newline="") as file:
            traces.append(list(csv.DictReader(file)))
    for one, four in zip(*traces, strict=True):
        assert float(one["loss"]) < 2 * math.log(31)  # not far from that of knowing nothing
        for name in simclr.METRICS:
            assert float(one[name]) == pytest.approx(float(four[name]), rel=1e-8)
    assert len(traces[0]) == 3
