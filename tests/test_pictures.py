"""Pictures show what training sees, and the neighbours that brute force finds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from hpt_jax import moco, parallel, pictures, plan, training
from hpt_jax.augment import policies
from hpt_jax.config import Input, MoCo, Model
from hpt_jax.config import Stage as StageConfig
from hpt_jax.data import store as store_lib
from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.data.order import batch_indices
from hpt_jax.feed import Feed
from hpt_jax.library import StageData
from hpt_jax.shapes import NEIGHBOURS, fits

SIZE, BATCH = 16, 24


def dataset(channels: int = 3, multi_label: bool = False) -> Dataset:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 20, 18, channels), np.uint8)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    if multi_label:
        labels = rng.integers(0, 2, (60, 3)).astype(np.uint8)
    cuts = {"train": np.arange(40), "val": np.arange(40, 45), "test": np.arange(45, 60)}
    return Dataset(
        "toy",
        ArrayImages("toy", pixels),
        cuts,
        "f",
        lambda: labels,
        ("cat", "dog", "<b>"),
        multi_label,
    )


def data_of(one: Dataset, resident: bool = True, devices: int = 8) -> StageData:
    on = parallel.make_devices(devices)
    store = store_lib.load(one, store_lib.Reading(0, 0), 0.0, float("inf"))
    placed = on.replicate(store.pixels) if resident else None
    feed = Feed(dataclasses.replace(store, pixels=None), on, placed)
    moments = np.zeros(one.images.read(0).shape[-1], np.float32)
    return StageData(feed, np.arange(45), one.splits, moments, moments + 1)


def stage_of(**fields: object) -> plan.Stage:
    config = StageConfig(
        dataset="toy",
        steps=2,
        batch_size=BATCH,
        image_size=SIZE,
        model=Model(arch="resnet10", width=4, stem="small", bn_groups=8),
        moco=MoCo(queue_size=32, dim=8, shuffle_block=8),
        augment=policies.POLICIES["moco_v2"],
        input=Input(center_crop=1.0),
        **fields,
    )
    return plan.Stage("t", "t-1", config, 7, None, "f", "random")


@pytest.mark.parametrize("resident", [True, False])
def test_views_are_those_of_the_train_step(resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, data = stage_of(), data_of(dataset(), resident)
    settings = moco.make_settings(
        stage.config, training.make_model(stage.config.model, data.feed.devices), 3
    )
    rng = jax.random.key(99)
    shown = pictures.sample_views(training.Training(stage, data, data.feed.devices), rng)

    rows = data.rows[batch_indices(stage.seed, 0, BATCH, len(data.rows))]
    pixels = data.dataset.images.pixels
    for place in range(pictures.VIEWED):
        whole = Image.fromarray(pixels[rows[place]][1:19])  # the central square of 20 x 18
        expected = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BILINEAR), int)
        assert np.abs(shown[place, 0] - expected).max() <= 1

    # What the train step itself is fed with and makes of it, less the normalisation.
    monkeypatch.setattr(moco.photometric, "normalize", lambda image, mean, std: image)
    for step in range(pictures.PAIRS):
        planned = moco.plan_batch(settings, stage.seed, step, rows, data.store.sizes[rows])
        (batch,) = data.feed.batches(lambda _: planned, range(1), SIZE)  # noqa: B023
        batch = {name: data.feed.devices.gather(part) for name, part in batch.items()}
        state = moco.State(step, rng, *[None] * (len(dataclasses.fields(moco.State)) - 2))
        state = state.replace(backbone=pictures_backbone())
        query = moco._prepare(settings, state, batch["query"], np.arange(BATCH), moco.QUERY)
        key = moco._prepare(settings, state, batch["key"], batch["key_slots"], moco.KEY)
        key = moco.unshuffle(key, batch["key_slots"])
        for column, seen in ((1 + 2 * step, query), (2 + 2 * step, key)):
            difference = shown[:, column] - 255 * np.asarray(seen)[: pictures.VIEWED]
            assert np.abs(difference).max() <= 3  # a grey level of a crop, through jitter
            assert np.abs(difference).mean() < 0.5


def pictures_backbone() -> moco.Backbone:
    return moco.Backbone(None, None, np.zeros(3), np.ones(3))


def test_views_differ_from_each_other_and_not_from_run_to_run() -> None:
    stage, data = stage_of(), data_of(dataset())
    parts = training.Training(stage, data, data.feed.devices)
    first, again, other = (pictures.sample_views(parts, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[:, 1:].astype(int) - other[:, 1:]).mean() > 5
    for i in range(5):
        for j in range(i):
            assert np.abs(first[:, i].astype(int) - first[:, j]).mean() > 5


@pytest.mark.parametrize("multi_label", [False, True])
def test_neighbours_are_those_of_brute_force(tmp_path: Path, multi_label: bool) -> None:
    data = data_of(dataset(multi_label=multi_label), devices=1)
    features = np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32)
    path = tmp_path / "s" / "neighbours-1.json"
    asked = pictures.question(data, labelled=True)
    pictures.write_neighbours(path, features, asked, data, stage_of().config)
    shown = json.loads(path.read_text())["queries"]

    names, labels = data.dataset.class_names, data.labels
    hot = labels if multi_label else np.eye(3, dtype=int)[labels]
    queries = [int(one["image"][4:-1]) for one in shown]
    assert len(set(queries)) == 5
    assert set(queries) <= set(range(45, 60))
    for query, one in zip(queries, shown, strict=True):
        assert one["classes"] == [names[i] for i in range(3) if hot[query, i]]
        cosines = {
            row: features[query] @ features[row]
            / np.sqrt((features[query] @ features[query]) * (features[row] @ features[row]))
            for row in range(40)
        }  # fmt: skip
        expected = sorted(cosines, key=lambda row: -cosines[row])[:5]
        found = one["neighbours"]
        assert [near["image"] for near in found] == [f"toy[{row}]" for row in expected]
        for near, row in zip(found, expected, strict=True):
            assert near["cosine"] == pytest.approx(cosines[row], abs=1e-6)
            assert near["right"] == any(hot[query] & hot[row])
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (6 * 96, 5 * 96)
        tile = np.asarray(picture.crop((0, 96, 96, 192)))[::6, ::6]
    crop = Image.fromarray(data.dataset.images.pixels[queries[1]][1:19])
    expected_tile = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR), int)
    assert np.abs(tile - expected_tile).max() <= 1


def test_neighbours_need_no_labels(tmp_path: Path) -> None:
    whole = dataset()
    data = data_of(dataclasses.replace(whole, read_labels=None, class_names=()), devices=1)
    asked = pictures.question(data, labelled=False)
    assert sorted(asked.rows) == list(range(45)), "those that are pretrained on"
    features = np.random.default_rng(1).normal(size=(len(asked.rows), 6)).astype(np.float32)
    path = tmp_path / "neighbours-1.json"
    pictures.write_neighbours(path, features, asked, data, stage_of().config)
    shown = json.loads(path.read_text())
    assert fits(shown, NEIGHBOURS)
    length = features / np.linalg.norm(features, axis=1, keepdims=True)
    for place, one in enumerate(shown["queries"]):
        others = range(len(shown["queries"]), 45)
        nearest = sorted(others, key=lambda at: -(length[at] @ length[place]))[:5]
        assert one["image"] == f"toy[{asked.rows[place]}]"
        assert one["classes"] == []
        assert [near["image"] for near in one["neighbours"]] == [
            f"toy[{asked.rows[at]}]" for at in nearest
        ]
        assert not any("right" in near for near in one["neighbours"])
    assert pictures.neighbours_are_whole(path)


@pytest.mark.parametrize(("count", "queries"), [(1, 1), (2, 1), (7, 3), (12, 5)])
def test_a_few_images_have_the_neighbours_that_there_are(
    tmp_path: Path, count: int, queries: int
) -> None:
    data = dataclasses.replace(data_of(dataset(), devices=1), rows=np.arange(count))
    asked = pictures.question(data, labelled=False)
    features = np.ones((count, 3), np.float32)
    path = tmp_path / "neighbours-1.json"
    pictures.write_neighbours(path, features, asked, data, stage_of().config)
    shown = json.loads(path.read_text())["queries"]
    assert [len(one["neighbours"]) for one in shown] == [min(5, count - queries)] * queries


def test_queries_are_spread_over_classes() -> None:
    rows, labels = np.arange(20, 100), np.repeat([9, 0, 1, 2, 3], [20, 60, 15, 3, 2])
    chosen = pictures.spread(rows, labels)
    assert set(labels[chosen[:4]]) == {0, 1, 2, 3}
    assert len(set(chosen.tolist())) == 5
    assert set(chosen.tolist()) <= set(rows.tolist())
    np.testing.assert_array_equal(chosen, pictures.spread(rows, labels))
    assert len(pictures.spread(rows[:3], labels)) == 3


@pytest.mark.parametrize(
    ("channels", "visible"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (5, (0, 1, 2))]
)
def test_any_number_of_channels_can_be_looked_at(channels: int, visible: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, channels), np.uint8)
    picture = np.asarray(pictures.montage(images))
    assert picture.shape == (2 * 96, 3 * 96, 3)
    tile = picture[96:, 192:][::12, ::12]
    np.testing.assert_array_equal(tile, images[1, 2][..., list(visible)])


def test_large_images_are_reduced() -> None:
    assert pictures.montage(np.zeros((1, 2, 224, 224, 3), np.uint8)).size == (192, 96)
