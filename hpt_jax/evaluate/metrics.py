"""Metrics of class scores, as fractions in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hpt_jax.errors import UserError


def check_metric(metric: str, multi_label: bool) -> None:
    """Refuses top-1 where an image may have any number of labels.

    Raises:
      UserError: for that.
    """
    if metric == "top1" and multi_label:
        raise UserError(
            "metric",
            metric,
            "macro_auroc, since an image of this target may have any number of labels",
            "Set --config.metric=macro_auroc.",
        )


def score(metric: str, scores: ArrayLike, labels: ArrayLike) -> tuple[float, tuple[int, ...]]:
    """A metric by its name, and the classes that it leaves out as undefined.

    Args:
      metric: 'top1' or 'macro_auroc'.
      scores: float [n, classes].
      labels: int [n], or zeros and ones [n, classes].
    """
    return (top1(scores, labels), ()) if metric == "top1" else macro_auroc(scores, labels)


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
    _check_numbers(scores)
    return float(np.mean(scores.argmax(axis=1) == labels))


def macro_auroc(scores: ArrayLike, labels: ArrayLike) -> tuple[float, tuple[int, ...]]:
    """Mean over classes of the area under the ROC curve; ties count half.

    A class of which every example, or none, is positive has no such area and is left out. (The HPT
    authors' code counts it as 0: `O/datasets/auroc.py`.)

    Args:
      scores: float [n, classes].
      labels: int [n], each class against the rest, or zeros and ones [n, classes].

    Returns:
      (the mean, the indices of the classes left out).

    Raises:
      ValueError: there is no example, the shapes disagree, or a score is NaN.
      UserError: every class is left out.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape not in (scores.shape, scores.shape[:1]) or not labels.size:
        raise ValueError(
            "need scores [n, classes] and labels [n] or [n, classes], n > 0: "
            f"{scores.shape=}, {labels.shape=}"
        )
    _check_numbers(scores)
    classes = scores.shape[1]
    positive = labels[:, None] == np.arange(classes) if labels.ndim == 1 else labels > 0
    counts = positive.sum(axis=0)
    defined = np.flatnonzero((counts > 0) & (counts < len(scores)))
    if not len(defined):
        raise UserError(
            "metric",
            "macro_auroc",
            "a class with positive and with negative examples in every split",
            "Add labelled images to val and test, or choose other splits.",
        )
    areas = [_auroc(scores[:, index], positive[:, index]) for index in defined]
    return float(np.mean(areas)), tuple(np.setdiff1d(np.arange(classes), defined).tolist())


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, by ranks (Mann-Whitney)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal scores share their mean rank
    first = int(positive.sum())
    above = ranks[place][positive].sum() - first * (first + 1) / 2
    return float(above / (first * (len(scores) - first)))


def _check_numbers(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} examples have NaN scores")
