"""Sixteen bits to eight: one window for a whole dataset, so that its images stay comparable."""

from __future__ import annotations

import numpy as np


def histogram(pixels: np.ndarray) -> np.ndarray:
    """How often each value occurs: u8 or u16[...] -> int64[65536]."""
    counts = np.zeros(2**16, np.int64)
    for rows in pixels:  # all at once, they would be widened eightfold
        counts += np.bincount(rows.reshape(-1), minlength=2**16)
    return counts


def window_of(counts: np.ndarray, low: float = 0.001, high: float = 0.999) -> tuple[int, int]:
    """The window between two quantiles of all pixels.

    Args:
      counts: int64[65536], as `histogram` gives them, of at least one pixel.
      low: share of the pixels at or below the lower end.
      high: share of the pixels at or below the upper end.

    Returns:
      (lower, upper), with lower < upper even where all pixels are alike.
    """
    below = np.cumsum(counts)
    # The smallest value that at least this share of the pixels does not exceed.
    ends = np.searchsorted(below, np.array([low, high]) * below[-1], side="left")
    lower, upper = int(ends[0]), int(ends[1])
    return (lower, upper) if lower < upper else (max(lower - 1, 0), max(lower, 1))


def apply(pixels: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Maps a window to 0..255, rounding half up; what lies beyond is clipped.

    Args:
      pixels: u16[...].
      window: (lower, upper), lower < upper.

    Returns:
      u8[...]; in whole numbers, so that it is the same on every machine.
    """
    lower, upper = window
    span = upper - lower
    above = np.clip(np.arange(2**16), lower, upper) - lower
    return ((2 * 255 * above + span) // (2 * span)).astype(np.uint8)[pixels]
