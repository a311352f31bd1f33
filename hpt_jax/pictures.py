"""Small pictures for the report, made while a run has pixels and features at hand."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hpt_jax import config as config_lib
from hpt_jax.augment import geometric
from hpt_jax.data import loader, order
from hpt_jax.data.loader import Crops
from hpt_jax.data.store import Store
from hpt_jax.library import StageData
from hpt_jax.models.backbone import jit_once
from hpt_jax.shapes import NEIGHBOURS
from hpt_jax.training import Training
from hpt_jax.workdir import read_json, whole, write_json

VIEWED, PAIRS = 6, 2  # images of `views.png`, and how many (query, key) of each
ASKED, NEAREST = 5, 5  # images of `neighbours-*.png`, and how many neighbours of each
SAMPLE = 2000  # images among which neighbours are looked for where there are no labels
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
THUMBNAIL = 96  # longest side of one image, pixels


def write_views(path: Path, parts: Training, rng: jax.Array) -> np.ndarray:
    """Saves `sample_views`, one image a row: the evaluation view, then (query, key) pairs.

    Returns:
      The picture, u8[height, width, 3].
    """
    return _save(montage(sample_views(parts, rng)), path)


def sample_views(parts: Training, rng: jax.Array) -> np.ndarray:
    """The stage's first images, and how training sees them.

    Pair p is what step p would show of the images that step 0 has in its first slots; pair 0 is
    what step 0 does show.

    Args:
      parts: of a stage that trains.
      rng: the key of its state.

    Returns:
      u8[images, 1 + 2 * PAIRS, size, size, channels], not normalised.
    """
    config, rows = parts.stage.config, parts.rows(0)
    slots = np.arange(min(VIEWED, config.batch_size, len(parts.data.rows)))
    pairs = [_pair(parts, rng, step, rows, slots) for step in range(PAIRS)]
    plain = evaluation_views(parts.data.store, rows[slots], config)[:, None]
    return np.concatenate([plain, *pairs], axis=1)


def _pair(
    parts: Training, rng: jax.Array, step: int, rows: np.ndarray, slots: np.ndarray
) -> np.ndarray:
    """The (query, key) that a step shows of some slots of a batch: u8[n, 2, size, size, c]."""
    # On one device, however many hold the state.
    rng = jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(rng))))
    stage, store, method, settings = parts.stage, parts.data.store, parts.method, parts.settings
    planned = method.plan_batch(settings, stage.seed, step, rows, store.sizes[rows])
    # Keys stand in other slots than their queries.
    places = {"query": slots, "key": np.argsort(planned["key_slots"])[slots]}
    crops = {
        name: Crops(planned[name].rows[place], planned[name].boxes[place])
        for name, place in places.items()
    }
    cut = loader.make_batch(store.read, crops, stage.config.image_size)
    views = []
    for view, name in enumerate(places):
        seen = _distort(method, settings)(rng, step, cut[name], slots, view)
        views.append(np.asarray(np.round(255 * seen.astype(np.float32)), np.uint8))
    return np.stack(views, axis=1)


def write_contact_sheet(path: Path, parts: Training, rng: jax.Array, step: int) -> None:
    """Saves the whole batch of a step, (query, key) by (query, key), slots from left to right.

    The arguments are those of `sample_views`, and the step, from 0.
    """
    count = parts.stage.config.batch_size
    pairs = _pair(parts, rng, step, parts.rows(step), np.arange(count))
    empty = np.zeros((-count % across(count), *pairs.shape[1:]), np.uint8)
    cells = np.concatenate([pairs, empty])
    _save(montage(cells.reshape(-1, 2 * across(count), *pairs.shape[2:])), path)


def across(count: int) -> int:
    """How many pairs stand in a row of a contact sheet, which is then about square."""
    return math.ceil(math.sqrt(count / 2))


def evaluation_views(store: Store, rows: np.ndarray, config: config_lib.Stage) -> np.ndarray:
    """What evaluations see of some rows of a store, u8[n, size, size, channels]."""
    boxes = geometric.center_crop_boxes(store.sizes[rows], config.input.center_crop)
    return loader.make_batch(store.read, {"image": Crops(rows, boxes)}, config.image_size)["image"]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """Whose neighbours are looked for, and among which images.

    Attributes:
      rows: int64[n], the rows of the store that features are needed of.
      queries: int64[q], places in `rows`.
      among: int64[m], places in `rows`.
      labelled: whether there are labels, by which a neighbour is right or wrong.
    """

    rows: np.ndarray
    queries: np.ndarray
    among: np.ndarray
    labelled: bool


def question(data: StageData, labelled: bool) -> Question:
    """A few test images among those of train; without labels a few among a sample of the others."""
    if labelled:
        queries = spread(data.splits["test"], data.labels)
        return Question(np.arange(len(data.store)), queries, data.splits["train"], True)
    rows = data.rows[order.permutation((0, 0), len(data.rows))][:SAMPLE]
    count = min(ASKED, max(1, len(rows) // 2))
    places = np.arange(len(rows))
    return Question(rows, places[:count], places[count:], False)


def write_neighbours(
    path: Path, features: np.ndarray, asked: Question, data: StageData, config: config_lib.Stage
) -> np.ndarray:
    """Saves the nearest of some images to a few others: a JSON, and a PNG beside it.

    Args:
      path: the JSON; row i of the PNG shows query i, then its neighbours.
      features: f32[n, d], of `asked.rows`.
      asked: whose neighbours, among which.
      data: the images.
      config: of the stage, for the evaluation view.

    Returns:
      The picture, u8[height, width, 3].
    """
    store = data.store
    labels = data.labels if asked.labelled else np.zeros(0)
    found, cosines = nearest(features, asked.queries, asked.among)
    rows = asked.rows[np.concatenate([asked.queries[:, None], found], axis=1)]

    def known(row: int) -> list[int]:
        if not asked.labelled:
            return []
        return [int(labels[row])] if labels.ndim == 1 else np.flatnonzero(labels[row]).tolist()

    def named(row: int) -> dict[str, Any]:
        classes = [data.dataset.class_names[label] for label in known(row)]
        return {"image": store.dataset.images.name_of(int(store.index[row])), "classes": classes}

    def neighbour(query: int, row: int, cosine: float) -> dict[str, Any]:
        one = named(row) | {"cosine": float(cosine)}
        if asked.labelled:  # one label in common is enough
            one["right"] = not set(known(query)).isdisjoint(known(row))
        return one

    shown = [
        named(query)
        | {"neighbours": [neighbour(query, *one) for one in zip(near, of_query, strict=True)]}
        for (query, *near), of_query in zip(rows.tolist(), cosines, strict=True)
    ]
    images = evaluation_views(store, rows.reshape(-1), config)
    cells = images.reshape(*rows.shape, *images.shape[1:])
    picture = _save(montage(cells), path.with_suffix(".png"))
    write_json(path, {"queries": shown})
    return picture


def neighbours_are_whole(path: Path) -> bool:
    """Whether what `write_neighbours` wrote is there, and can be shown."""
    try:
        picture = path.with_suffix(".png").read_bytes()
    except OSError:
        return False
    # Decoding all of them at every start would take seconds.
    return picture.endswith(_PNG_END) and read_json(path, NEIGHBOURS) is not None


def spread(rows: np.ndarray, labels: np.ndarray, count: int = ASKED) -> np.ndarray:
    """A few rows, of as many classes as there are; the same whichever model is looked at.

    Args:
      rows: int64[n], to choose from.
      labels: of all rows, i32[...] or u8[..., classes]; of several labels the first counts.
      count: how many, at most.
    """
    shuffled = rows[order.permutation((0, 0), len(rows))]
    first = labels if labels.ndim == 1 else labels.argmax(axis=1)
    seen: collections.Counter[int] = collections.Counter()
    before = []  # how many of its class come before each
    for label in first[shuffled].tolist():
        before.append(seen[label])
        seen[label] += 1
    return shuffled[np.argsort(before, kind="stable")[:count]]


def nearest(
    features: np.ndarray, queries: np.ndarray, among: np.ndarray, count: int = NEAREST
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `among` with the largest cosine to each query, and these cosines.

    Args:
      features: f32[n, d], of all rows.
      queries: int64[q], rows.
      among: int64[m], rows; of equally near ones the earlier.
      count: neighbours of each query, at most.

    Returns:
      int64[q, k] and f32[q, k], nearest first.
    """
    # Without a copy of the features, which may be most of the memory.
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    lengths = np.maximum(lengths, np.finfo(features.dtype).tiny)
    cosines = (features[queries] @ features.T / lengths[queries, None] / lengths)[:, among]
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return among[places], np.take_along_axis(cosines, places, axis=1)


def montage(images: np.ndarray) -> Image.Image:
    """Square images u8[rows, columns, size, size, channels] side by side, without gaps.

    Small ones are enlarged by whole pixels, large ones reduced to `THUMBNAIL`. Of channels other
    than one and three the first three are shown, or the first.
    """
    shown = images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)
    rows, columns, size = shown.shape[:3]
    if size > THUMBNAIL:
        size = THUMBNAIL
        flat = [loader.resize(one, size, size) for one in shown.reshape(-1, *shown.shape[2:])]
        shown = np.reshape(flat, (rows, columns, size, size, 3))
    else:
        shown = shown.repeat(THUMBNAIL // size, axis=2).repeat(THUMBNAIL // size, axis=3)
    height, width = rows * shown.shape[2], columns * shown.shape[3]
    return Image.fromarray(shown.swapaxes(1, 2).reshape(height, width, 3))


def _save(picture: Image.Image, path: Path) -> np.ndarray:
    with whole(path) as temporary:
        picture.save(temporary, format="png", optimize=True)
    return np.asarray(picture)


@functools.cache
def _distort(method: ModuleType, settings: Any) -> Callable[..., jax.Array]:
    """(key, step, crops, slots, which view) -> views in [0, 1]."""

    def one(rng: jax.Array, step: Any, image: jax.Array, slot: jax.Array, view: Any) -> jax.Array:
        return method.distorted(settings, rng, step, image, slot, view)

    return jit_once(jax.vmap(one, (None, None, 0, 0, None)))
