"""A look at the features of a stage while it trains, on a sample of its images, without labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hpt_jax import health, stopping
from hpt_jax.augment import geometric, photometric
from hpt_jax.data import order
from hpt_jax.data.loader import Crops, Plan
from hpt_jax.evaluate import knn, label_free
from hpt_jax.library import StageData
from hpt_jax.models.backbone import Backbone
from hpt_jax.parallel import AXIS, Devices
from hpt_jax.telemetry import writers
from hpt_jax.training import Carry, Training
from hpt_jax.workdir import StageFolder, write_json

SAMPLE = 512  # images, at most
_SEED = 1 << 63  # which no stage has: its views are not those that a step trains on


def is_due(step: int, last: int) -> bool:
    """Whether to look after `step` steps: 0, 25, 35, 50, 71, ..., twice a doubling, and at the end.

    But for the end it does not depend on how long the stage is, which stages of one trunk share.
    """
    if step in (0, last):
        return True
    doublings = 2 * math.log2(step / 25)
    return step >= 25 and round(25 * 2 ** (round(doublings) / 2)) == step


def measure(
    training: Training, backbone: Backbone, rng: jax.Array, labelled: bool
) -> dict[str, float]:
    """What a backbone's features are like.

    The images, their views and so the numbers are the same for equal backbones.

    Args:
      training: of a stage that trains.
      backbone: its query encoder's.
      rng: the key of its state.
      labelled: whether the images have classes, and these may be looked at.

    Returns:
      'rankme' and 'uniformity' of the evaluation view of each image; 'alignment' and 'retrieval' of
      two augmented views (see `evaluate.label_free`); and for labelled images 'knn', the accuracy
      of nearest neighbours within the sample, which no test image is in.
    """
    plain, first, second = sample_features(training, backbone, rng)
    found = {
        "rankme": label_free.rankme(plain),
        "uniformity": label_free.uniformity(plain),
        "alignment": label_free.alignment(first, second),
        "retrieval": label_free.retrieval(first, second),
    }
    found |= {"knn": _knn(plain, training.data)} if labelled else {}
    # LAPACK's last digits depend on where in memory it works.
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def _knn(features: np.ndarray, data: StageData) -> float:
    """Accuracy by nearest neighbours: each half of the sample by the labels of the other."""
    labels, half = data.labels[sample_rows(data)], len(features) // 2
    right = 0
    for known, asked in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        classes = len(data.dataset.class_names)
        votes = knn.predict(features[known], labels[known], features[asked], classes)
        right += int(np.sum(votes.argmax(axis=1) == labels[asked]))
    return right / len(features)


def sample_rows(data: StageData) -> np.ndarray:
    """The images that are looked at, as rows of the store: int64[n]; the same for all seeds."""
    rows = data.rows
    return rows[order.permutation((_SEED, 0), len(rows))[:SAMPLE]]


def sample_features(
    training: Training, backbone: Backbone, rng: jax.Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f32[n, features] of the evaluation view of each sampled image, and of two augmented views."""
    config, store, devices = training.stage.config, training.data.store, training.data.feed.devices
    sampled, batch = sample_rows(training.data), config.batch_size

    def rows_of(number: int) -> np.ndarray:
        # The last batch is filled up with the first images, so that all have one shape.
        return sampled[np.arange(number * batch, (number + 1) * batch) % len(sampled)]

    def plan_batch(number: int) -> Plan:
        rows = rows_of(number)
        sizes = store.sizes[rows]
        planned = training.method.plan_batch(training.settings, _SEED, number, rows, sizes)
        boxes = geometric.center_crop_boxes(sizes, config.input.center_crop)
        return {**planned, "plain": Crops(rows, boxes)}

    numbers = range(-(-len(sampled) // batch))
    program = _compiled(training.method, training.settings, devices)
    dtype = jnp.promote_types(jnp.float32, config.model.dtype)
    found = []
    for number, made in zip(
        numbers,
        training.data.feed.batches(plan_batch, numbers, config.image_size, dtype),
        strict=True,
    ):
        slots = devices.gather(made["key_slots"])
        plain, query, key = devices.gather(program(backbone, rng, np.int32(number), made))
        found.append((plain, query, key[np.argsort(slots)]))
    plain, query, key = (np.concatenate(part)[: len(sampled)] for part in zip(*found, strict=True))
    return plain, query, key


class Observer:
    """Writes down what a stage tells of itself, and the verdict on it.

    Args:
      training: the stage.
      folder: of the stage.
      start: the step that training goes on from; what was written beyond it is dropped.
      labelled: as in `measure`.
      line: told of each verdict.
      refresh: called when something new is on the disk.
    """

    def __init__(
        self,
        training: Training,
        folder: StageFolder,
        start: int,
        labelled: bool,
        line: Callable[[str], None],
        refresh: Callable[[], None],
    ):
        self._training, self._folder, self._labelled = training, folder, labelled
        self._line, self._refresh = line, refresh
        self._metrics = writers.MetricsWriter(folder.metrics, start)
        self._measures = writers.MetricsWriter(
            folder.measures, start, self._metrics.events, "measures/"
        )
        # The verdict on losses is MoCo's; of another method the features alone are judged.
        self._of_moco = "queue_fill" in training.method.METRICS
        self._facts = health.facts(training.stage)
        self._past = health.history(self._facts, self._losses, self._measures.rows)
        self._level, self._advised = "", False

    def log(self, step: int, means: Mapping[str, float], data_wait: float) -> None:
        """Writes what an interval was like.

        Args:
          step: at its end.
          means: of the metrics.
          data_wait: the share of its time in which there was no batch; to TensorBoard alone, since
            it is another one each time.
        """
        self._metrics.write(step, means)
        self._metrics.events.write_scalars(step, {"data_wait": data_wait})
        self._judge(step)

    def look(self, step: int, carry: Carry) -> None:
        """Measures the features after `step` steps."""
        state = carry.state
        backbone, rng = self._training.devices.narrowed((state.backbone, state.rng))
        found = measure(self._training, backbone, rng, self._labelled)
        self._measures.write(step, found)
        self._judge(step, look=True)

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Gives TensorBoard a picture u8[height, width, 3]."""
        self._metrics.events.write_image(step, name, picture)

    @property
    def _losses(self) -> health.Rows:
        return self._metrics.rows if self._of_moco else []

    def _judge(self, step: int, look: bool = False) -> None:
        stage, images = self._training.stage, len(self._training.data.rows)
        measures = self._measures.rows
        found = health.judge(self._facts, self._losses, measures)
        self._past += [found] if look else []
        advice = "" if found.level == "alarm" else stopping.advice(stage, images, measures)
        write_json(self._folder.health, health.as_json(found, self._past, advice))
        if look or found.level != self._level:
            mark = "alarm: " if found.level == "alarm" else ""
            self._line(f"{mark}{stage.id}: step {step}: {found.text}")
        if advice and (not self._advised or step == stage.steps):
            self._line(f"{stage.id}: step {step}: {advice}")
        self._level, self._advised = found.level, bool(advice)
        self._refresh()

    def close(self) -> None:
        """Closes TensorBoard's files."""
        self._metrics.close()
        self._measures.close()


@functools.cache
def _compiled(method: ModuleType, settings: Any, devices: Devices) -> Callable[..., Any]:
    """(backbone, key, number of the batch, batch) -> features of its three views."""

    def program(
        backbone: Backbone, rng: jax.Array, number: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, ...]:
        rows = batch["query"].shape[0]
        slots = lax.axis_index(AXIS) * rows + jnp.arange(rows)

        # Both are compiled as part of the program; so they are traced once for all views.
        @jax.jit
        def features(images: jax.Array) -> jax.Array:
            images = photometric.normalize(images, backbone.pixel_mean, backbone.pixel_std)
            found: jax.Array = settings.model.apply(backbone.variables, images, train=False)
            return found

        @jax.jit
        def distorted(images: jax.Array, slots: jax.Array, view: int) -> jax.Array:
            def one(image: jax.Array, slot: jax.Array) -> jax.Array:
                return method.distorted(settings, rng, number, image, slot, view)

            return jax.vmap(one)(images, slots)

        plain = batch["plain"].astype(jnp.promote_types(jnp.float32, settings.model.dtype)) / 255
        query = distorted(batch["query"], slots, 0)
        views = plain, query, distorted(batch["key"], batch["key_slots"], 1)
        return tuple(features(view) for view in views)

    return devices.map(program, (False, False, False, True), sharded_out=True, donate=False)
