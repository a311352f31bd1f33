"""Promises of the pixel statistics."""

import dataclasses

import numpy as np
import pytest

from hpt_jax.data import store
from hpt_jax.data.images import Dataset
from hpt_jax.data.statistics import pixel_statistics


def moments_of(images):
    dataset = Dataset("some", Listed(images), {"train": np.arange(len(images))}, "0")
    return store.load(dataset, store.Reading(0, 0), 0.0, 0).moments


@dataclasses.dataclass
class Listed:
    """Images of any shape."""

    arrays: list

    def __len__(self):
        return len(self.arrays)

    def read(self, index, short_side=0):
        return self.arrays[index]

    def name_of(self, index):
        return f"image {index}"


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_statistics_equal_the_authors_formula(channels):
    rng = np.random.default_rng(channels)
    images = [
        rng.integers(0, high, (h, w, channels), dtype=np.uint8)
        for h, w, high in [(4, 6, 256), (9, 2, 100), (1, 1, 30), (5, 5, 200)]
    ]
    mean, std = pixel_statistics(moments_of(images))
    scaled = [(image / 255.0).reshape(-1, channels) for image in images]
    expected = np.mean([[np.mean(x[:, c]) for c in range(channels)] for x in scaled], axis=0)
    squares = np.mean([[np.mean(x[:, c] ** 2) for c in range(channels)] for x in scaled], axis=0)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(squares - expected**2), rtol=1e-6)


def test_of_images_of_one_size_they_are_the_plain_mean_and_standard_deviation():
    images = np.random.default_rng(0).integers(0, 256, (6, 7, 8, 3), dtype=np.uint8)
    mean, std = pixel_statistics(moments_of(list(images)))
    np.testing.assert_allclose(mean, (images / 255.0).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255.0).std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_large_image_weighs_no_more_than_a_small_one():
    images = [np.zeros((50, 50, 1), np.uint8), np.full((1, 1, 1), 255, np.uint8)]
    mean, std = pixel_statistics(moments_of(images))
    np.testing.assert_allclose([mean[0], std[0]], [0.5, 0.5], rtol=1e-6)


def test_a_constant_channel_can_be_divided_by():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 1] = 77
    image[::2, :, 2] = 255
    mean, std = pixel_statistics(moments_of([image, image]))
    np.testing.assert_allclose(mean, [0, 77 / 255, 0.5], rtol=1e-6)
    np.testing.assert_allclose(std, [1 / 255, 1 / 255, 0.5], rtol=1e-6)
