"""Promises of the host pipeline, and of its equality with pixels that devices hold."""

import collections
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hpt_jax import config as config_lib
from hpt_jax import moco, parallel
from hpt_jax.augment import geometric
from hpt_jax.data import loader, order
from hpt_jax.data import store as store_lib
from hpt_jax.data.datasets import open_dataset
from hpt_jax.data.loader import Crops
from hpt_jax.feed import Feed
from hpt_jax.models.resnet import ResNet

SIZES = [(20, 30), (6, 18), (1, 1), (40, 9), (13, 200), (64, 64), (33, 34)]


def noise(count=7, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 256, (*SIZES[row % len(SIZES)], channels), dtype=np.uint8)
        for row in range(count)
    ]


def plan_of(sizes, batch=6, seed=0):
    """Two views of `batch` images, in different orders, and an array that passes along."""
    sizes = np.asarray(sizes)

    def plan(step):
        rows = order.batch_indices(seed, step, batch, len(sizes))
        other = rows[::-1]
        draws = order.uniforms(seed, step, 1, (batch, geometric.BOX_DRAWS))
        return {
            "random": Crops(
                rows,
                geometric.random_resized_crop_boxes(draws, sizes[rows], (0.2, 1), (0.75, 1.33)),
            ),
            "center": Crops(other, geometric.center_crop_boxes(sizes[other], 0.875)),
            "slots": np.arange(batch),
        }

    return plan


def gathered(batches):
    return [{name: np.asarray(part) for name, part in batch.items()} for batch in batches]


@pytest.fixture(params=["simd", "pillow"])
def kernel(request, monkeypatch):
    """With the library that resizes fast, and without."""
    if request.param == "pillow":
        monkeypatch.setattr(loader, "simd", None)


def triangle(length, size):
    """Of each pixel of a line the share in each pixel of the line resized: f64[size, length]."""
    distance = np.abs(
        np.arange(1, 2 * length, 2) * size - np.arange(1, 2 * size, 2)[:, None] * length
    )
    weights = np.maximum(2 * max(length, size) - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_a_crop_equals_exact_arithmetic_and_pillows_within_one_grey_level(channels):
    rng = np.random.default_rng(0)
    beyond = values = 0
    for _ in range(50):
        height, width = rng.integers(1, 300, 2)
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        sides = rng.integers(1, (height + 1, width + 1))
        top, left = rng.integers(0, (height, width) - sides + 1)
        size = int(rng.integers(1, 130))
        found = loader.crop_and_resize(image, np.array([top, left, *sides], np.float32), size)
        cut = image[top : top + sides[0], left : left + sides[1]]
        rows, columns = triangle(sides[0], size), triangle(sides[1], size)
        for channel in range(channels):
            plane = np.ascontiguousarray(cut[..., channel])
            exact = rows @ plane @ columns.T
            assert np.abs(found[..., channel] - exact).max() < 1.1  # of which rounding is a half
            pillows = Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)
            differ = np.abs(found[..., channel] - np.asarray(pillows, int))
            beyond, values = beyond + (differ > 1).sum(), values + differ.size
    # Both round between the passes: a tie in every pixel of a line can fall both ways.
    assert beyond < 1e-5 * values


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_host_crop_equals_a_devices_within_one_grey_level(channels):
    images = noise(channels=channels)
    stored = np.zeros((len(images), 64, 200, channels), np.uint8)
    for row, image in enumerate(images):
        stored[row, : image.shape[0], : image.shape[1]] = image
    plan = plan_of(SIZES, batch=len(SIZES))
    for step in range(3):
        for crops in list(plan(step).values())[:2]:
            for row, box in zip(crops.rows, crops.boxes, strict=True):
                host = loader.crop_and_resize(images[row], box, 16)
                device = np.asarray(geometric.crop_and_resize(stored[row], jnp.asarray(box), 16))
                assert host.shape == device.shape == (16, 16, channels)
                assert np.abs(host.astype(int) - device.astype(int)).max() <= 1


def test_batches_come_in_order_and_equal_those_made_one_by_one():
    images = noise(20)
    plan = plan_of([image.shape[:2] for image in images])
    threads = set()

    def read(row):
        threads.add(threading.get_ident())
        return images[row]

    made = list(loader.batches(read, plan, range(3, 40), 12))
    assert threading.get_ident() not in threads
    assert len(made) == 37
    for step, batch in zip(range(3, 40), made, strict=True):
        alone = loader.make_batch(images.__getitem__, plan(step), 12)
        assert batch.keys() == alone.keys() == {"random", "center", "slots"}
        for name, part in batch.items():
            np.testing.assert_array_equal(part, alone[name])


def test_each_image_of_a_batch_is_decoded_once_for_all_its_views():
    images, reads = noise(20), collections.Counter()

    def read(row):
        reads[row] += 1
        return images[row]

    plan = plan_of([image.shape[:2] for image in images], batch=15)(2)
    loader.make_batch(read, plan, 8)
    assert reads == dict.fromkeys(plan["random"].rows.tolist(), 1)


@pytest.mark.parametrize("hosts", [2, 3, 6])
def test_the_hosts_parts_together_are_the_batch_and_each_reads_its_own(hosts):
    images = noise(20)
    plan = plan_of([image.shape[:2] for image in images])
    whole = list(loader.batches(images.__getitem__, plan, range(4), 8))
    parts, reads = [], []
    for host in range(hosts):
        seen = []

        def read(row, seen=seen):
            seen.append(row)
            return images[row]

        parts.append(list(loader.batches(read, plan, range(4), 8, (host, hosts))))
        reads.append(set(seen))
    for step in range(4):
        for name, batch in whole[step].items():
            together = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(together, batch)
    wanted = [
        plan(step)[name].rows.reshape(hosts, -1)
        for step in range(4)
        for name in ("random", "center")
    ]
    for host in range(hosts):
        assert reads[host] == {int(row) for rows in wanted for row in rows[host]}


def test_with_shuffle_blocks_of_a_hosts_share_no_image_is_read_twice():
    stage = config_lib.Stage(
        batch_size=16, image_size=8, moco=config_lib.MoCo(queue_size=16, shuffle_block=8)
    )
    settings = moco.make_settings(stage, ResNet(), 3)
    rows = np.arange(16)
    plan = moco.plan_batch(settings, 0, 0, rows, np.tile([20, 20], (16, 1)))
    for host in range(2):
        part = loader.part_of(plan, host, 2)
        assert (
            set(part["query"].rows) == set(part["key"].rows) == set(range(8 * host, 8 * host + 8))
        )


def test_a_mistake_in_a_thread_reaches_the_caller_as_it_is():
    images = noise()

    def read(row):
        if row == 4:
            raise KeyError("a bug")
        return images[row]

    batches = loader.batches(read, plan_of(SIZES), range(10), 8)
    with pytest.raises(KeyError, match="a bug"):
        list(batches)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("store_px", [0, 14])
@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_host_and_resident_pipelines_give_the_same_batches(tmp_path, kind, store_px, mapping):
    """Of a folder of ragged, tiny and large files, on one device and on four."""
    for row, image in enumerate(noise(9)):
        Image.fromarray(image).save(tmp_path / f"{row}.{kind}")
    dataset = open_dataset(f"folder:{tmp_path}")
    reading = store_lib.Reading(store_px, 0)
    held = store_lib.load(dataset, reading, 0.0, float("inf"))
    on_disk = store_lib.load(dataset, reading, 0.0, 0)
    plan = plan_of(held.sizes, batch=8)
    made = []
    for count in (1, 4):
        devices = parallel.make_devices(count, mapping)
        made.append(Feed(held, devices, devices.replicate(held.pixels)))
        made.append(Feed(on_disk, devices, None))
    batches = [
        [feed.devices.gather(batch) for batch in feed.batches(plan, range(3), 12)] for feed in made
    ]
    for step in range(3):
        one = batches[0][step]
        for other in batches[1:]:
            assert other[step].keys() == one.keys()
            for name, part in other[step].items():
                assert part.shape == one[name].shape
                difference = np.abs(part.astype(int) - one[name].astype(int))
                assert difference.max() <= (0 if name == "slots" else 1)


def test_a_closed_feed_leaves_no_thread_behind():
    images = noise()
    before = threading.active_count()
    batches = loader.batches(images.__getitem__, plan_of(SIZES), range(1000), 8)
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(10)
    assert threading.active_count() <= before
