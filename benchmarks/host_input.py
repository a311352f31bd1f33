"""How fast images come: crops on the host, and the loop beside its step alone.

- `input_crops`, `input_against_pillow`: samples (one image, two views of 224 px) a second of CPU
  time, by what a training on images on disk does: read and decode a JPEG of 500x375 once, cut both
  views out of it (`input.store_px` is its short side: nothing is shrunk before). Beside it Pillow
  does everything on the host, step by step what torchvision's transforms of PIL images do. In
  turns, each in one thread; the median of the turns.
- `input_levels_from_pillow`: the largest difference of any of these views from Pillow's own crop
  and resize of the same box.
- `loop_resident`: steps a second of a training on images that the device holds, at the size of
  `configs/aerial.py` (ResNet-10 of width 16, 32 px, batches of 128), beside the same compiled step
  on one batch again and again.
- `loop_host`: the same on the JPEGs on disk, beside the slower of the step alone and of its input
  alone. Without an accelerator both have the same cores, and their work adds up: at an input of a
  tenth of the step's work no loop could reach more than 91 %. So the size is one at which the step
  is the slower by far: ResNet-10 at 224 px, batches of 8.

The JPEGs are made from a seed: smooth noise as coarse as landscapes and as fine as leaves, quality
90, 93 kB on average.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks import run, table
from configs import aerial
from hpt_jax import parallel
from hpt_jax.augment.policies import POLICIES
from hpt_jax.config import default_config
from hpt_jax.data import loader
from hpt_jax.library import Library
from hpt_jax.models.backbone import init_backbone
from hpt_jax.run import make_plan
from hpt_jax.telemetry.display import Display
from hpt_jax.training import Training

JPEGS, HEIGHT, WIDTH, QUALITY = 200, 375, 500, 90
SIZE = 224  # of a view, in pixels
BATCH = 8
CROP_TURNS, LOOP_TURNS = 5, 3
LEAD = 2  # steps before those that are timed, and batches after them


def rows(asked: run.Asked) -> Iterator[table.Measured]:
    """The rows of this part."""
    images = asked.out / "host_input"
    make_images(images / "jpegs", JPEGS, HEIGHT, WIDTH)
    make_images(images / "small", 512, 64, 64)
    on_disk = training(host_config(images), "host")
    yield from crops(on_disk, images / "jpegs")
    yield loop("loop_resident", training(resident_config(images), "resident"), 30)
    yield loop("loop_host", on_disk, 4)


def make_images(folder: Path, count: int, height: int, width: int) -> None:
    """Writes JPEGs that are as hard to decode as photographs, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index:03}.jpg"
        if not path.exists():
            path.write_bytes(_jpeg(np.random.default_rng(index), height, width))


def _jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    pixels = np.full((height, width, 3), 128.0)
    for cells, contrast in ((4, 70), (16, 35), (64, 14), (128, 8)):  # from coarse to fine
        coarse = rng.normal(size=(cells, cells, 3))
        coarse = (coarse + coarse[:, :, :1]) / 2  # colours of a scene are alike
        for channel in range(3):
            plane = Image.fromarray(coarse[:, :, channel].astype(np.float32))
            fine = plane.resize((width, height), Image.Resampling.BICUBIC)
            pixels[:, :, channel] += contrast * np.asarray(fine)
    pixels += 14 * rng.normal(size=(height, width, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def host_config(images: Path) -> ConfigDict:
    """A training at 224 px on JPEGs that are read for every batch."""
    config = default_config()
    config.data_dir = str(images)
    config.update(batch_size=BATCH, image_size=SIZE)
    config.model.update(arch="resnet10", bn_groups=1)
    config.moco.queue_size = 1024
    config.input.store_px = min(HEIGHT, WIDTH)
    config.stages.only = dict(dataset="folder:jpegs", steps=1000)
    config.arms.T = ("only",)
    return config


def resident_config(images: Path) -> ConfigDict:
    """The target's own training of `configs/aerial.py`, on other images."""
    config = aerial.get_config()
    config.data_dir = str(images)
    config.update(seeds=(0,), target="", shared_stages=())
    only = {**config.stages.scratch, "dataset": "folder:small", "steps": 1000}
    config.stages = ConfigDict({"only": only})
    config.arms = ConfigDict({"T": ("only",)})
    return config


def training(config: ConfigDict, pipeline: str) -> Training:
    """What the loop of a config's one stage is made of."""
    config.input.pipeline = pipeline
    planned = make_plan(config)
    (stage,) = planned.stages
    devices = parallel.make_devices(1)
    data = Library(planned.config.data_dir, devices, Display(quiet=True)).of_stage(stage)
    assert data is not None
    return Training(stage, data, devices)


def crops(on_disk: Training, folder: Path) -> Iterator[table.Measured]:
    """Cuts all images, by us and by Pillow in turns."""
    store = on_disk.data.store
    plans = [on_disk.plan_batch(step) for step in range(JPEGS // BATCH)]
    files = [folder / path.name for path in sorted(folder.iterdir())]
    draws = random.Random(0)

    def ours() -> None:
        for plan in plans:
            loader.make_batch(store.read, plan, SIZE)

    def pillows() -> None:
        for file in files[: len(plans) * BATCH]:
            sample_by_pillow(file, draws)

    ours(), pillows()
    turns = [(_cpu_seconds(ours), _cpu_seconds(pillows)) for _ in range(CROP_TURNS)]
    rate, reference = (len(plans) * BATCH / statistics.median(x) for x in zip(*turns, strict=True))
    yield table.Measured("input_crops", rate)
    yield table.Measured("input_against_pillow", rate, reference)
    yield table.Measured("input_levels_from_pillow", max(map(_levels(store, files), plans)))


def _levels(store: Any, files: list[Path]) -> Callable[[loader.Plan], int]:
    """Plan -> the largest difference of a view from Pillow's, grey levels."""

    def of_plan(plan: loader.Plan) -> int:
        made, largest = loader.make_batch(store.read, plan, SIZE), 0
        for name in ("query", "key"):
            views = plan[name]
            assert isinstance(views, loader.Crops)
            for row, box, view in zip(views.rows, views.boxes, made[name], strict=True):
                top, left, height, width = map(int, box)
                with Image.open(files[store.index[row]]) as image:
                    part = image.crop((left, top, left + width, top + height))
                pillows = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR), int)
                largest = max(largest, int(np.abs(view - pillows).max()))
        return largest

    return of_plan


def sample_by_pillow(file: Path, draws: random.Random) -> list[np.ndarray]:
    """Both views of MoCo-v2, f32[SIZE, SIZE, 3] each, all by Pillow as torchvision calls it."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    return [_view_by_pillow(image, draws) for _ in range(2)]


def _view_by_pillow(image: Image.Image, draws: random.Random) -> np.ndarray:
    policy = POLICIES["moco_v2"]
    area = image.width * image.height
    while True:
        ratio = np.exp(draws.uniform(*np.log(policy.crop_ratio)))
        pixels = area * draws.uniform(*policy.crop_scale)
        width, height = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
        if width <= image.width and height <= image.height:
            break
    left, top = draws.randint(0, image.width - width), draws.randint(0, image.height - height)
    view = image.crop((left, top, left + width, top + height))
    view = view.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if draws.random() < policy.jitter_probability:
        changes: list[Callable[[Image.Image], Image.Image]] = [
            lambda x: ImageEnhance.Brightness(x).enhance(_factor(draws, policy.brightness)),
            lambda x: ImageEnhance.Contrast(x).enhance(_factor(draws, policy.contrast)),
            lambda x: ImageEnhance.Color(x).enhance(_factor(draws, policy.saturation)),
            lambda x: _turn_hue(x, draws.uniform(-policy.hue, policy.hue)),
        ]
        for change in draws.sample(changes, len(changes)):
            view = change(view)
    if draws.random() < policy.grayscale_probability:
        view = Image.merge("RGB", [view.convert("L")] * 3)
    if draws.random() < policy.blur_probability:
        view = view.filter(ImageFilter.GaussianBlur(draws.uniform(*policy.blur_sigma)))
    if draws.random() < policy.flip_probability:
        view = ImageOps.mirror(view)
    pixels = np.asarray(view).astype(np.float32) / np.float32(255)
    mean, std = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
    return (pixels - mean) / std


def _factor(draws: random.Random, reach: float) -> float:
    return draws.uniform(1 - reach, 1 + reach)


def _turn_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(255 * turns)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def loop(name: str, training: Training, steps: int) -> table.Measured:
    """The loop's steps a second, beside the slower of the step's and the host's input; in turns."""
    data = training.data
    carry = training.initial(
        init_backbone(training.settings.model, jax.random.key(0), data.pixel_mean, data.pixel_std)
    )

    def take(batch: Any) -> Any:
        nonlocal carry
        carry, _ = training.take(carry, batch, 0)
        return carry

    def rate(work: Callable[[Any], Any], batches: Iterable[Any], count: int) -> float:
        for batch in itertools.islice(batches, LEAD):
            jax.block_until_ready(work(batch))
        began = time.monotonic()
        for batch in itertools.islice(batches, count):
            done = work(batch)
        jax.block_until_ready(done)
        return count / (time.monotonic() - began)

    def fed(work: Callable[[Any], Any], count: int) -> float:
        with contextlib.closing(training.batches(0, count + 2 * LEAD)) as batches:
            return rate(work, batches, count)

    def turn() -> tuple[float, float]:
        looped, alone = fed(take, steps), rate(take, itertools.repeat(first), steps)
        # What cuts crops on the device is no input that could be the slower one.
        on_host = data.feed.placed is None
        return looped, min(alone, fed(lambda batch: batch, 5 * steps)) if on_host else alone

    with contextlib.closing(training.batches(0, 1)) as batches:
        first = next(batches)
    jax.block_until_ready(take(first))  # compiled
    found = sorted((turn() for _ in range(LOOP_TURNS)), key=lambda pair: pair[0] / pair[1])
    return table.Measured(name, *found[LOOP_TURNS // 2])


def _cpu_seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
