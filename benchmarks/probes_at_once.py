"""What training many probes in one program gains, as a ratio to one after another.

    python benchmarks/probes_at_once.py

1. `linear_sgd`: 12 probes (3 rates x 2 decays x 2 seeds) side by side on the same views, against
   one probe alone; 12 times that is what one after another would take.
2. Fine-tuning: 4 learning rates vmapped over all the weights of a ResNet-10, against the 4 in turn,
   which is what `evaluate/finetune.py` does.

Each ratio is the median of alternating pairs in one process. Results stand in docs/probes.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hpt_jax.config import LinearSGD
from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.data.store import Reading, load
from hpt_jax.evaluate import features, linear_sgd
from hpt_jax.feed import Feed
from hpt_jax.models.backbone import init_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import make_devices

PAIRS = 5
IMAGES, SIDE, CLASSES = 512, 37, 7


def ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Median over alternating pairs of the seconds of `one` by those of `other`, both warm."""
    one(), other()
    found = []
    for _ in range(PAIRS):
        seconds = []
        for run in (one, other):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        found.append(seconds[0] / seconds[1])
    return statistics.median(found)


def probes() -> float:
    """12 linear probes at once, by one."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(IMAGES, SIDE, SIDE, 3)).astype(np.uint8)
    labels = rng.integers(CLASSES, size=IMAGES).astype(np.int32)
    rows = np.arange(IMAGES)
    dataset = Dataset("made", ArrayImages("made", pixels), {"train": rows}, "0", lambda: labels)
    store = load(dataset, Reading(0, 0), 0.0, float("inf"))
    devices = make_devices(1)
    feed = Feed(store, devices, devices.replicate(store.pixels))
    model = ResNet("resnet10", 16, "small")
    half = np.full(3, 0.5, np.float32)
    backbone = init_backbone(model, jax.random.key(0), half, half)
    one = LinearSGD(steps=20, batch_size=512, learning_rates=(1.0,), eval_every=20)
    many = LinearSGD(
        steps=20, batch_size=512, learning_rates=(1.0, 0.1, 0.01), weight_decays=(0.0, 1e-4),
        seeds=(0, 1), eval_every=20,
    )  # fmt: skip
    val = features.extract(model, backbone, feed, rows, 32, 0.875)

    def train(settings: LinearSGD) -> None:
        views = features.augmented(model, backbone, feed, rows, 32, settings, 0)
        batches = ((batch, labels[shown]) for batch, shown in views)
        linear_sgd.train(batches, val, labels, CLASSES, "top1", settings, 0)

    return ratio(lambda: train(many), lambda: train(one))


def finetuning(candidates: int = 4) -> float:
    """Steps of fine-tuning vmapped over candidates, by the same in turn."""
    model = ResNet("resnet10", 16, "small")
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    labels = jnp.arange(64) % CLASSES
    variables = model.init(jax.random.key(1), images, False)
    head = linear_sgd.init(0, model.features, CLASSES)
    params = {"backbone": variables["params"], "head": head}

    def step(params: dict, rate: jax.Array) -> dict:
        def loss(params: dict) -> jax.Array:
            given = {"params": params["backbone"], "batch_stats": variables["batch_stats"]}
            found, _ = model.apply(given, images, train=True, mutable=["batch_stats"])
            return linear_sgd.loss_of(params["head"], found, labels)

        return optax.tree.add_scale(params, -rate, jax.grad(loss)(params))

    rates = jnp.geomspace(1e-3, 1e-2, candidates)
    alone = jax.jit(step)
    together = jax.jit(jax.vmap(step))
    stacked = jax.tree.map(lambda x: jnp.stack([x] * candidates), params)
    return ratio(
        lambda: jax.block_until_ready([together(stacked, rates) for _ in range(3)]),
        lambda: jax.block_until_ready([alone(params, rate) for _ in range(3) for rate in rates]),
    )


if __name__ == "__main__":
    many = probes()
    print(f"linear_sgd: 12 probes at once take {many:.2f} times one, {many / 12:.3f} of 12 in turn")
    print(f"fine-tuning: 4 candidates vmapped take {finetuning():.2f} times the 4 in turn")
