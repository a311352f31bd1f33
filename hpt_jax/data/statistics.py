"""Mean and standard deviation of a dataset's pixels."""

from __future__ import annotations

import numpy as np

from hpt_jax.data.resident import Store

# One grey level: a constant channel would otherwise be divided by zero when it is normalised.
STD_FLOOR = 1.0 / 255.0


def pixel_statistics(store: Store, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image-weighted mean and standard deviation of each channel, padding left out.

    As the script of the HPT authors has it (`compute-dataset-pixel-mean-std.py`): the mean is the
    mean over images of each image's own mean, and the variance is the mean over images of E[x^2]
    less the square of that mean. A large image counts no more than a small one.

    Args:
      store: u8[n, H, W, C] pixels with their true sizes.
      rows: int[m], the rows to take them over, m >= 1.

    Returns:
      (mean f32[C], std f32[C]) of pixels scaled to [0, 1]; std is at least 1/255.
    """
    n, channels = len(rows), store.pixels.shape[-1]
    first = np.zeros(channels, np.float64)
    second = np.zeros(channels, np.float64)
    # Image by image: the float64 copy stays as small as one image.
    for row in rows:
        height, width = store.sizes[row]
        values = store.pixels[row, :height, :width].reshape(-1, channels).astype(np.float64) / 255.0
        first += values.mean(axis=0)
        second += np.square(values).mean(axis=0)
    mean = first / n
    variance = np.maximum(second / n - np.square(mean), 0.0)
    std = np.maximum(np.sqrt(variance), STD_FLOOR)
    return mean.astype(np.float32), std.astype(np.float32)
