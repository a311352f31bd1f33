"""Evaluation: how often features are computed, many linear probes at once, kNN's memory.

- `features_computed`: a run with `knn`, `linear` and `linear_10` of two stages; the number of
  times that a row of the target goes through one backbone, at most. (Views that `linear_sgd` and
  the looks of `measures.csv` draw are other views, and no part of it.)
- `probes_<n>_classes`: 64 probes (8 rates x 4 decays x 2 seeds) by one call of `linear_sgd.train`,
  over the same 64 by one call each, already compiled. Both are given the same features, which are
  there before the clock starts, so that nothing comes of views being shared. The row is of 2,048
  features, for which the paper's probe is made (ResNet-50); those of a small network are printed.
  Beside them: 12 probes over one where the features of new views are part of it, as in a run.
- `knn_similarities_held`: all that the compiled classifier of 20,000 by 20,000 images holds beside
  its inputs and outputs, over the bytes of their whole matrix of similarities.
- Printed beside them: fine-tuning 4 learning rates vmapped over all weights, by the 4 in turn.

Each ratio of seconds is the median of alternating pairs in one process.
"""

from __future__ import annotations

import io
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from benchmarks import run as command
from benchmarks.pairs import alternating
from benchmarks.table import Measured, Skipped
from hpt_jax import run
from hpt_jax.config import LinearSGD, default_config
from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.data.store import Reading, load
from hpt_jax.evaluate import features, knn, linear_sgd
from hpt_jax.feed import Feed
from hpt_jax.models.backbone import init_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import make_devices
from hpt_jax.telemetry.display import Display

PAIRS = 3
STEPS, BATCH, VALIDATION = 20, 512, 280
GRID = {
    "learning_rates": tuple(10.0 ** -np.arange(8)),
    "weight_decays": (0.0, 1e-5, 1e-4, 1e-3),
    "seeds": (0, 1),
}
WIDTHS = {128: "ResNet-10 of width 16", 2048: "ResNet-50"}
KNN_IMAGES, KNN_FEATURES = 20_000, 128


def rows(asked: command.Asked) -> Iterator[Measured | Skipped]:
    """The rows of this part."""
    yield Measured("features_computed", features_computed(asked))
    for classes in (7, 45):
        for width, network in WIDTHS.items():
            together, in_turn = probes(width, classes)
            found = Measured(f"probes_{classes}_classes", together, in_turn)
            print(
                f"  64 probes, {classes} classes, {width} features ({network}): {found.ratio:.3f}"
            )
        yield found
    many, one = probes_with_views()
    print(f"  12 probes and their views: {many / one:.2f} times one, {many / one / 12:.3f} of 12")
    together, in_turn = finetuning()
    print(f"  fine-tuning, 4 rates vmapped: {together / in_turn:.2f} times the 4 in turn")
    yield Measured("knn_similarities_held", *knn_bytes())


def features_computed(asked: command.Asked) -> int:
    """How often a row of the target goes through one backbone, at most."""
    config = default_config()
    config.update(name="features", seeds=(0,), batch_size=32, image_size=16)
    config.model.update(arch="resnet10", width=8, stem="small")
    config.moco.queue_size = 64
    config.update(target="package:digits", evaluations=("knn", "linear", "linear_10"))
    config.stages.target = dict(dataset="package:digits", steps=2)
    config.arms.update({"random": (), "T": ("target",)})
    seen: Counter[tuple[bytes, int]] = Counter()
    extract = features.extract

    def counted(model, backbone, feed, shown, *rest):  # type: ignore[no-untyped-def]
        weights = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(backbone))
        seen.update((weights, int(row)) for row in shown)
        return extract(model, backbone, feed, shown, *rest)

    quiet = Display(Console(file=io.StringIO()))
    # Kept, since the process goes on with its compilation cache.
    folder = asked.out / "features"
    shutil.rmtree(folder, ignore_errors=True)
    with mock.patch.object(features, "extract", counted):
        run.run(config, folder, display=quiet)
    return max(seen.values())


def probes(width: int, classes: int) -> tuple[float, float]:
    """Seconds of 64 probes at once, and in turn."""
    rng = np.random.default_rng(0)
    batches = [
        (
            jnp.asarray(rng.standard_normal((BATCH, width)), jnp.float32),
            rng.integers(classes, size=BATCH).astype(np.int32),
        )
        for _ in range(STEPS)
    ]
    val_x = rng.standard_normal((VALIDATION, width)).astype(np.float32)
    val_y = rng.integers(classes, size=VALIDATION).astype(np.int32)

    def train(**grid: tuple) -> None:
        settings = LinearSGD(steps=STEPS, batch_size=BATCH, eval_every=STEPS, **grid)
        linear_sgd.train(batches, val_x, val_y, classes, "top1", settings, 0)

    def in_turn() -> None:
        for values in itertools.product(*GRID.values()):
            train(**{name: (value,) for name, value in zip(GRID, values, strict=True)})

    return alternating(lambda: train(**GRID), in_turn, PAIRS)


def probes_with_views() -> tuple[float, float]:
    """Seconds of 12 linear probes at once and of one, with the features of their views."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(512, 37, 37, 3)).astype(np.uint8)
    labels = rng.integers(7, size=len(pixels)).astype(np.int32)
    every = np.arange(len(pixels))
    dataset = Dataset("made", ArrayImages("made", pixels), {"train": every}, "0", lambda: labels)
    store = load(dataset, Reading(0, 0), 0.0, float("inf"))
    devices = make_devices(1)
    feed = Feed(store, devices, devices.replicate(store.pixels))
    model = ResNet("resnet10", 16, "small")
    half = np.full(3, 0.5, np.float32)
    backbone = init_backbone(model, jax.random.key(0), half, half)
    val = features.extract(model, backbone, feed, every, 32, 0.875)

    def train(**grid: tuple) -> None:
        settings = LinearSGD(steps=STEPS, batch_size=BATCH, eval_every=STEPS, **grid)
        views = features.augmented(model, backbone, feed, every, 32, settings, 0)
        batches = ((batch, labels[shown]) for batch, shown in views)
        linear_sgd.train(batches, val, labels, 7, "top1", settings, 0)

    many = {"learning_rates": (1.0, 0.1, 0.01), "weight_decays": (0.0, 1e-4), "seeds": (0, 1)}
    return alternating(lambda: train(**many), lambda: train(learning_rates=(1.0,)), PAIRS)


def finetuning(candidates: int = 4) -> tuple[float, float]:
    """Seconds of three steps of fine-tuning vmapped over candidates, and of the same in turn."""
    model = ResNet("resnet10", 16, "small")
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    labels = jnp.arange(64) % 7
    variables = model.init(jax.random.key(1), images, False)
    head = linear_sgd.init(0, model.features, 7)
    params = {"backbone": variables["params"], "head": head}

    def step(params: dict, rate: jax.Array) -> dict:
        def loss(params: dict) -> jax.Array:
            given = {"params": params["backbone"], "batch_stats": variables["batch_stats"]}
            found, _ = model.apply(given, images, train=True, mutable=["batch_stats"])
            return linear_sgd.loss_of(params["head"], found, labels)

        return optax.tree.add_scale(params, -rate, jax.grad(loss)(params))

    rates = jnp.geomspace(1e-3, 1e-2, candidates)
    alone, together = jax.jit(step), jax.jit(jax.vmap(step))
    stacked = jax.tree.map(lambda x: jnp.stack([x] * candidates), params)
    return alternating(
        lambda: jax.block_until_ready([together(stacked, rates) for _ in range(3)]),
        lambda: jax.block_until_ready([alone(params, rate) for _ in range(3) for rate in rates]),
        PAIRS,
    )


def knn_bytes() -> tuple[int, int]:
    """What the compiled classifier holds for itself, and the whole matrix of similarities."""
    images = jax.ShapeDtypeStruct((KNN_IMAGES, KNN_FEATURES), jnp.float32)
    labels = jax.ShapeDtypeStruct((KNN_IMAGES,), jnp.int32)
    program = knn._votes.lower(images, labels, images, 45, 20, 0.07).compile()
    held = program.memory_analysis().temp_size_in_bytes
    return held, KNN_IMAGES**2 * np.dtype(np.float32).itemsize
