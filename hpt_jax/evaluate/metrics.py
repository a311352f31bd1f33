"""Metrics of class scores, as fractions in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def top1(scores: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of examples whose highest score is at their label.

    Args:
      scores: float [n, classes]; of equal highest scores the first class wins.
      labels: int [n].

    Returns:
      A plain float in [0, 1].

    Raises:
      ValueError: there is no example, the shapes disagree, or a score is NaN (`argmax` would
        take NaN for the highest score and make a broken model look like a bad one).
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not labels.size:
        raise ValueError(
            f"need scores [n, classes] and labels [n], n > 0: {scores.shape=}, {labels.shape=}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} examples have NaN scores")
    return float(np.mean(scores.argmax(axis=1) == labels))
