"""Promises of what is held, or read when asked for, of a set's images."""

import dataclasses
import io
import threading

import numpy as np
import pytest
from PIL import Image

from hpt_jax.data import store as store_lib
from hpt_jax.data.datasets import open_dataset
from hpt_jax.data.images import ArrayImages, Dataset, Unreadable
from hpt_jax.data.store import Reading
from hpt_jax.errors import UserError

RNG = np.random.default_rng(0)


def noise(height, width, channels):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


@dataclasses.dataclass
class Listed:
    """Images of any shape; None stands for one that cannot be decoded."""

    arrays: list

    def __len__(self):
        return len(self.arrays)

    def read(self, index, short_side=0):
        if self.arrays[index] is None:
            raise Unreadable(self.name_of(index), f"reason {index}")
        return self.arrays[index]

    def name_of(self, index):
        return f"file{index}.png"


def dataset_of(*arrays):
    everything = np.arange(len(arrays))
    return Dataset("folder:some", Listed(list(arrays)), {"train": everything}, "0")


def load(dataset, store_px=0, channels=0, max_unreadable=0.0, max_bytes=float("inf"), **more):
    reading = Reading(store_px, channels)
    return store_lib.load(dataset, reading, max_unreadable, max_bytes, **more)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_shrunk_as_pillow_shrinks_them(channels):
    shapes = [(40, 30), (45, 26), (17, 50), (17, 54), (16, 16)]
    images = [noise(height, width, channels) for height, width in shapes]
    store = load(dataset_of(*images), store_px=16)
    # The nearest to 40 * 16 / 30 = 21.33, 45 * 16 / 26 = 27.69, 47.06, 50.82.
    assert store.sizes.tolist() == [[21, 16], [28, 16], [16, 47], [16, 51], [16, 16]]
    assert store.pixels.shape == (5, 28, 51, channels)
    for row, image in enumerate(images):
        height, width = store.sizes[row]
        pillow = Image.fromarray(image[..., 0] if channels == 1 else image)
        expected = np.asarray(pillow.resize((width, height), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(
            store.pixels[row, :height, :width], expected.reshape(height, width, channels)
        )


def test_small_images_are_never_enlarged_and_zero_is_no_limit():
    images = [noise(5, 9, 3), noise(12, 3, 3)]
    for store_px in (0, 12, 100):
        store = load(dataset_of(*images), store_px=store_px)
        assert store.sizes.tolist() == [[5, 9], [12, 3]]
        for row, image in enumerate(images):
            np.testing.assert_array_equal(
                store.pixels[row, : image.shape[0], : image.shape[1]], image
            )


def test_padding_is_zero_below_and_to_the_right():
    images = [np.full((h, w, 3), 255, np.uint8) for h, w in [(2, 7), (6, 3), (1, 1)]]
    store = load(dataset_of(*images))
    assert store.pixels.shape == (3, 6, 7, 3)
    for row, image in enumerate(images):
        inside = np.zeros((6, 7, 3), bool)
        inside[: image.shape[0], : image.shape[1]] = True
        np.testing.assert_array_equal(store.pixels[row], np.where(inside, 255, 0))


def test_rows_follow_the_order_of_the_dataset_whatever_takes_longest():
    sides = [200, 1, 1, 150, 1, 90] * 4
    images = [np.full((side, side, 1), value, np.uint8) for value, side in enumerate(sides)]
    store = load(dataset_of(*images), store_px=1)
    assert store.index.tolist() == list(range(24))
    assert store.pixels[:, 0, 0, 0].tolist() == list(range(24))


@pytest.mark.parametrize("store_px", [0, 4])
def test_one_channel_is_pillows_luma_and_three_repeat_grey(store_px):
    colour, grey = noise(8, 8, 3), noise(8, 8, 1)

    def shrunk(image):
        size = (store_px, store_px) if store_px else image.size
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    luma = load(dataset_of(colour, grey), store_px, channels=1).pixels
    np.testing.assert_array_equal(luma[0, ..., 0], shrunk(Image.fromarray(colour).convert("L")))
    np.testing.assert_array_equal(luma[1, ..., 0], shrunk(Image.fromarray(grey[..., 0])))
    triple = load(dataset_of(colour, grey), store_px, channels=3).pixels
    np.testing.assert_array_equal(triple[0], shrunk(Image.fromarray(colour)))
    for channel in range(3):
        np.testing.assert_array_equal(
            triple[1, ..., channel], shrunk(Image.fromarray(grey[..., 0]))
        )


def test_five_channels_are_held_as_stored_each_resized_alone():
    image = noise(9, 9, 5)
    store = load(dataset_of(image), store_px=6)
    for channel in range(5):
        plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
        np.testing.assert_array_equal(
            store.pixels[0, ..., channel], plane.resize((6, 6), Image.Resampling.BILINEAR)
        )


def test_mixed_channels_name_a_file_of_each_kind_and_the_fix():
    with pytest.raises(UserError) as caught:
        load(dataset_of(noise(4, 4, 1), noise(4, 4, 1), noise(4, 4, 3)))
    message = str(caught.value)
    assert caught.value.mistakes[0].field == "input.channels"
    assert "file0.png has 1" in message
    assert "file2.png has 3" in message
    assert "--config.input.channels=3" in message


@pytest.mark.parametrize(("has", "channels"), [(5, 3), (5, 1), (1, 5), (3, 2), (2, 3)])
def test_channels_that_do_not_fit_are_refused(has, channels):
    with pytest.raises(UserError) as caught:
        load(dataset_of(noise(4, 4, has)), channels=channels)
    assert caught.value.mistakes[0].field == "input.channels"
    assert f"file0.png with its {has}" in str(caught.value)


def test_few_unreadable_images_are_skipped_and_told():
    images = [noise(3, 3, 3) for _ in range(10)]
    images[2] = images[5] = None
    store = load(dataset_of(*images), max_unreadable=0.2)
    assert store.index.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert store.unreadable == (("file2.png", "reason 2"), ("file5.png", "reason 5"))
    for row, index in enumerate(store.index):
        np.testing.assert_array_equal(store.pixels[row], images[index])


def test_too_many_unreadable_images_are_an_error_that_names_five():
    images = [noise(3, 3, 3) for _ in range(20)]
    for index in range(4, 11):
        images[index] = None
    with pytest.raises(UserError) as caught:
        load(dataset_of(*images), max_unreadable=0.3)
    message = str(caught.value)
    assert caught.value.mistakes[0].field == "folder:some"
    assert "7 of 20" in message
    for index in range(4, 9):
        assert f"file{index}.png: reason {index}" in message
    assert "file9.png" not in message


def test_nothing_readable_is_an_error_whatever_is_allowed():
    with pytest.raises(UserError, match="2 of 2"):
        load(dataset_of(None, None), max_unreadable=1.0)
    with pytest.raises(UserError, match="at least one image"):
        load(dataset_of(), max_unreadable=1.0)


def test_progress_is_told_after_each_image_in_the_calling_thread():
    told = []
    load(
        dataset_of(noise(2, 2, 1), None, noise(2, 2, 1)),
        max_unreadable=0.5,
        progress=lambda done, total: told.append((done, total, threading.get_ident())),
    )
    assert told == [(done, 3, threading.get_ident()) for done in (1, 2, 3)]


def test_a_folder_and_the_same_pixels_in_memory_give_one_store(tmp_path):
    arrays = np.stack([noise(12, 10, 3) for _ in range(4)])
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    folder = load(open_dataset(f"folder:{tmp_path}"), store_px=5)
    memory = load(dataclasses.replace(dataset_of(*arrays), images=ArrayImages("x", arrays)), 5)
    np.testing.assert_array_equal(folder.pixels, memory.pixels)
    np.testing.assert_array_equal(folder.sizes, memory.sizes)


MIXED = [(9, 4), (6, 18), (1, 1), (20, 30), (3, 40)]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_what_is_read_when_asked_for_equals_what_is_held(channels):
    images = [noise(height, width, channels) for height, width in MIXED]
    held = load(dataset_of(*images, None), store_px=5, max_unreadable=0.5)
    read = load(dataset_of(*images, None), store_px=5, max_unreadable=0.5, max_bytes=0)
    assert read.pixels is None
    assert held.unreadable == read.unreadable == (("file5.png", "reason 5"),)
    for name in ("index", "sizes", "moments"):
        np.testing.assert_array_equal(getattr(held, name), getattr(read, name))
    for row in range(len(MIXED)):
        np.testing.assert_array_equal(held.read(row), read.read(row))


def test_pixels_are_held_up_to_the_limit_with_all_padding_counted():
    dataset = dataset_of(noise(4, 2, 3), noise(3, 7, 3))
    needed = 2 * 4 * 7 * 3
    assert load(dataset, max_bytes=needed).pixels.nbytes == needed
    assert load(dataset, max_bytes=needed - 1).pixels is None
    assert load(dataset, max_bytes=needed - 1).padded_bytes == needed


def test_moments_are_the_means_of_x_and_of_its_square():
    image = noise(5, 7, 3)
    moments = load(dataset_of(image), max_bytes=0).moments
    scaled = image / 255
    np.testing.assert_allclose(moments[0, 0], scaled.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(moments[0, 1], np.square(scaled).mean(axis=(0, 1)), rtol=1e-12)


@pytest.mark.parametrize("deep", [False, True])
def test_a_scan_is_found_again_as_it_was(tmp_path, deep):
    images = [noise(height, width, 3) for height, width in MIXED]
    if deep:
        images = [image.astype(np.uint16) * 11 for image in images]
    dataset = dataset_of(*images, None)
    made = load(dataset, store_px=5, max_unreadable=0.5, max_bytes=0)
    store_lib.save_scan(made, tmp_path / "scans" / "one.npz")
    path = tmp_path / "scans" / "one.npz"
    found = store_lib.load_scan(dataset, Reading(5, 0), 0.5, path)
    assert [file.name for file in path.parent.iterdir()] == ["one.npz"]
    assert found.unreadable == made.unreadable
    assert found.reading == made.reading
    assert (found.reading.window is not None) == deep
    for name in ("index", "sizes", "moments"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    np.testing.assert_array_equal(found.read(3), made.read(3))
    with pytest.raises(UserError, match="1 of 6"):
        store_lib.load_scan(dataset, Reading(5, 0), 0.1, path)


def test_a_damaged_scan_counts_as_absent(tmp_path):
    dataset = dataset_of(noise(4, 2, 3), noise(3, 7, 3), None)
    made = load(dataset, max_unreadable=0.5, max_bytes=0)
    path = tmp_path / "one.npz"
    store_lib.save_scan(made, path)
    content = path.read_bytes()

    def found():
        return store_lib.load_scan(dataset, Reading(0, 0), 0.5, path)

    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        assert found() is None, cut
    for place in range(len(content)):  # some bytes, such as those of a date, mean nothing
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        scan = found()
        for name in ("index", "sizes", "moments"):
            if scan is not None:
                np.testing.assert_array_equal(getattr(scan, name), getattr(made, name))
    arrays = dict(np.load(io.BytesIO(content)))
    odd = {
        "index": np.zeros(1, np.int64), "sizes": np.zeros((2, 3), np.int32),
        "moments": np.zeros(2), "window": np.zeros(3, np.int64), "unreadable": np.zeros(()),
    }  # fmt: skip
    for name, value in odd.items():
        np.savez(path, **(arrays | {name: value}))
        assert found() is None, name
        np.savez(path, **{one: array for one, array in arrays.items() if one != name})
        assert found() is None, name
    np.savez(path, **(arrays | {"index": np.array([{}, {}])}))  # a pickle, which is never opened
    assert found() is None
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").rename(path)
    assert found() is None
    path.unlink()
    assert found() is None
    path.mkdir()
    assert found() is None


def test_an_image_that_changes_during_a_run_is_named():
    dataset = dataset_of(noise(4, 4, 3), noise(4, 4, 3))
    store = load(dataset, max_bytes=0)
    dataset.images.arrays[0] = noise(5, 4, 3)
    dataset.images.arrays[1] = None
    with pytest.raises(UserError, match=r"file0\.png has changed: it is now \(5, 4, 3\)"):
        store.read(0)
    with pytest.raises(UserError, match=r"file1\.png has changed: reason 1"):
        store.read(1)


def test_sixteen_bits_are_seen_through_the_window_of_the_training_images():
    train = np.arange(1000, 3000, dtype=np.uint16).reshape(40, 50, 1)
    test = np.array([[0, 1001, 2997, 65535]], np.uint16)[:, :, None]
    dataset = dataset_of(train, test)
    dataset = dataclasses.replace(dataset, splits={"train": np.array([0]), "test": np.array([1])})
    store = load(dataset)
    # 2,000 values once each: 2 of them lie below the 0.1 percentile, 2 above the 99.9.
    low, high = store.reading.window
    assert (low, high) == (1001, 2997)
    assert store.read(1).reshape(-1).tolist() == [0, 0, 255, 255]
    middle = store.read(0).reshape(-1)[999]  # of the value 1999
    assert middle == round((1999 - low) / (high - low) * 255)
    given = store_lib.load(dataset, Reading(0, 0, (0, 65535)), 0.0, float("inf"))
    assert given.reading.window == (0, 65535)
    assert given.read(1).reshape(-1).tolist() == [0, 4, 12, 255]


def test_a_window_means_nothing_to_eight_bits():
    image = noise(4, 4, 3)
    store = store_lib.load(dataset_of(image), Reading(0, 0, (10, 20)), 0.0, float("inf"))
    assert store.reading.window is None
    np.testing.assert_array_equal(store.read(0), image)


@pytest.mark.parametrize("first", [np.uint8, np.uint16])
def test_depths_that_are_mixed_name_the_odd_one(first):
    other = np.uint16 if first is np.uint8 else np.uint8
    images = [np.zeros((3, 3, 1), kind) for kind in (first, first, other)]
    with pytest.raises(UserError, match=r"file2\.png has (8|16)"):
        load(dataset_of(*images))


def test_reading_that_is_left_early_reads_little_more():
    asked = []
    results = store_lib._in_threads(lambda item: asked.append(item) or item, range(10_000))
    assert [next(results), next(results)] == [0, 1]
    results.close()
    assert len(asked) < 1000
