"""Mean and standard deviation of a dataset's pixels."""

from __future__ import annotations

import numpy as np

# One grey level: a constant channel would otherwise be divided by zero when it is normalised.
STD_FLOOR = 1.0 / 255.0


def pixel_statistics(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image-weighted mean and standard deviation of each channel, padding left out.

    As the script of the HPT authors has it (`compute-dataset-pixel-mean-std.py`): the mean is the
    mean over images of each image's own mean, and the variance is the mean over images of E[x^2]
    less the square of that mean. A large image counts no more than a small one.

    Args:
      moments: f64[m, 2, C], E[x] and E[x^2] of each image, x in [0, 1]; m >= 1.

    Returns:
      (mean f32[C], std f32[C]); std is at least 1/255.
    """
    first, second = moments.mean(axis=0)
    std = np.sqrt(np.maximum(second - np.square(first), 0.0))
    return first.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32)
