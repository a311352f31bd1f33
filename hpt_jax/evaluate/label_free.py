"""What features are like, told without labels.

None of these is accuracy: they tell collapse from learning, and one point of a run from another.
"""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits


def rankme(features: np.ndarray) -> float:
    """RankMe (Garrido et al., "RankMe", ICML 2023, equation 1): the effective rank.

    The exponential of the entropy of the singular values as shares of their sum: 1 where all rows
    lie on one line, min(n, d) where they fill all directions alike.

    Args:
      features: float[n, d], as they are.
    """
    # A second thread of LAPACK spins for a core that another program has: it makes seconds of 3 ms.
    with threadpool_limits(1):
        values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    shares = values / max(values.sum(), np.finfo(np.float64).tiny) + 1e-7
    return float(np.exp(-np.sum(shares * np.log(shares))))


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """How far apart two views of an image are (Wang and Isola, ICML 2020, section 4.1.1).

    Args:
      first: float[n, d], features of one view of each image.
      second: of another.

    Returns:
      The mean squared distance of the features on the unit sphere, in [0, 4].
    """
    return float(np.mean(np.sum(np.square(unit(first) - unit(second)), axis=1)))


def uniformity(features: np.ndarray) -> float:
    """How evenly images lie on the sphere (Wang and Isola, ICML 2020, section 4.1.2).

    Args:
      features: float[n, d].

    Returns:
      log E exp(-2 d^2) over pairs of different images, in [-8, 0]; lower is more even. 0 where
      there is no pair.
    """
    if len(features) < 2:
        return 0.0
    features = unit(features)
    cosines = features @ features.T
    upper = np.triu_indices(len(features), 1)
    return float(np.log(np.mean(np.exp(-2 * (2 - 2 * cosines[upper])))))


def retrieval(first: np.ndarray, second: np.ndarray) -> float:
    """How well a view finds its own image among all, by cosine.

    The mean logarithm of the place at which the own image's other view comes, which tells 1st from
    2nd as it tells 100th from 200th, as a share of the way from chance to always being first.

    Args:
      first: float[n, d], features of one view of each image.
      second: of another.

    Returns:
      1 - E[ln place] / E[ln place by chance]: 1 where it always comes first, 0 by chance. Others
      that are as near come before it.
    """
    cosines = unit(second) @ unit(first).T
    own = np.diagonal(cosines).copy()
    np.fill_diagonal(cosines, np.inf)
    places = np.sum(cosines >= own[:, None], axis=1)
    by_chance = np.mean(np.log(np.arange(1, len(own) + 1)))
    return float(1 - np.mean(np.log(places)) / by_chance) if by_chance else 1.0


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of unit length, f64; rows of zeros stay."""
    features = features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)
