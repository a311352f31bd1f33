"""Promises of the window through which 16-bit images are seen."""

import numpy as np
import pytest

from hpt_jax.data import window


def test_the_window_is_the_quantiles_of_all_pixels():
    rng = np.random.default_rng(0)
    pixels = [rng.gamma(2.0, 900.0, (30, 40)).astype(np.uint16) for _ in range(5)]
    counts = sum(window.histogram(image) for image in pixels)
    expected = np.quantile(np.stack(pixels), [0.001, 0.999], method="inverted_cdf")
    assert window.window_of(counts) == tuple(expected)


@pytest.mark.parametrize("value", [0, 1, 700, 65535])
def test_a_constant_set_still_has_a_window(value):
    low, high = window.window_of(window.histogram(np.full((3, 4), value, np.uint16)))
    assert 0 <= low < high <= 65535
    assert low <= value <= high


def test_a_window_maps_to_0_to_255_rounding_half_up_and_clips():
    values = np.arange(65536, dtype=np.uint16)
    low, high = 1000, 41000
    found = window.apply(values, (low, high))
    inside = np.clip(values.astype(float), low, high)
    expected = np.floor((inside - low) / (high - low) * 255 + 0.5)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(window.apply(values, (0, 65535)), (values + 128.0) // 257)
    # Exactly half way: 1 of 510 is half a grey level.
    assert window.apply(np.array([1], np.uint16), (0, 510)).tolist() == [1]
