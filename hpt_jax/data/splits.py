"""Cutting splits and subsets: seeded, stratified, the same on every machine."""

from __future__ import annotations

import numpy as np

from hpt_jax.data.order import permutation
from hpt_jax.errors import UserError

# What folders and sets of the catalog call them.
SPLIT_NAMES = {
    "train": ("train",),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
SPLITS = tuple(SPLIT_NAMES)
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}

# First words of the keys of `order.permutation`. A split must not change with the run's seed;
# a subset has the seed in the other word, away from the keys (seed, epoch) of the batches.
_SPLIT_KEY = 0x73706C6974
_SUBSET_KEY = 0x737562736574


def subset(
    dataset_indices: np.ndarray, labels: np.ndarray | None, amount: float | int, seed: int
) -> np.ndarray:
    """A seeded part of some images, with the classes in proportion.

    Each class gets its share, rounded, and at least one image where `amount` allows one for each
    class; what the smallest classes gain by that the others lose. With one seed, a smaller subset
    of an unlabelled set is a part of a larger one.

    Args:
      dataset_indices: int64[n], the images to choose from.
      labels: of all the dataset's images, looked up at `dataset_indices`, or None.
      amount: a float in (0, 1] is a fraction of n (at least one image), an int a count.
      seed: in [0, 2**64).

    Returns:
      int64[m], sorted.

    Raises:
      UserError: `amount` is out of range.
    """
    chosen_from = np.asarray(dataset_indices, np.int64)
    n = len(chosen_from)
    total = max(1, round(amount * n)) if isinstance(amount, float) else amount
    if amount <= 0 or (isinstance(amount, float) and amount > 1) or total > n:
        raise UserError(
            "subset",
            amount,
            f"a fraction in (0, 1] or a count from 1 to {n}, the number of images there are",
            "Write a number with a decimal point for a fraction, without for a count.",
        )
    if labels is None:
        return np.sort(chosen_from[permutation((_SUBSET_KEY, seed), n)[:total]])
    _, classes, sizes = np.unique(
        strata(labels[chosen_from]), return_inverse=True, return_counts=True
    )
    least = np.full_like(sizes, 1 if total >= len(sizes) else 0)
    counts = _apportion(total, total * sizes / n, least, sizes, (_SUBSET_KEY + 1, seed))
    ranks = _ranks_in_class(classes, sizes, (_SUBSET_KEY, seed))
    return np.sort(chosen_from[ranks < counts[classes]])


def strata(labels: np.ndarray) -> np.ndarray:
    """The group of each image, by which splits and subsets are kept in proportion: int[n].

    Args:
      labels: i32[n], which are the groups; or u8[n, classes] zeros and ones, where each image
        counts under the rarest of its labels (the first of equally rare ones), and those without
        any are a group of their own.
    """
    if labels.ndim == 1:
        return labels
    # Rarest first; images without a label find nothing there, and take what comes after all.
    rarest_first = np.argsort(labels.sum(axis=0), kind="stable")
    has = labels[:, rarest_first] > 0
    return np.where(has.any(axis=1), rarest_first[has.argmax(axis=1)], labels.shape[1])


def with_cut_splits(
    given: dict[str, np.ndarray], labels: np.ndarray, fractions: dict[str, float]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Cuts the missing ones of val and test from train, by class; one of each class stays.

    Every class gives its share rounded up or down, unless that would empty it. Where hardly an
    image shares its class with another, so that a split would stay empty, the cut does not look at
    classes. It depends on the data alone, so that all seeds and studies are judged on the same
    images.

    Args:
      given: 'train' and perhaps others -> sorted int64 indices.
      labels: as in `strata`, looked up at these indices.
      fractions: split -> share of the train set as given.

    Returns:
      All three splits and the names of those that were cut.
    """
    missing = tuple(split for split in ("val", "test") if split not in given)
    splits = given | _cut(given["train"], strata(labels[given["train"]]), missing, fractions)
    if not all(len(splits[split]) for split in missing if fractions[split]):
        alike = np.zeros(len(given["train"]), np.int32)
        splits = given | _cut(given["train"], alike, missing, fractions)
    return {split: splits[split] for split in SPLITS}, missing


def _cut(
    train: np.ndarray, groups: np.ndarray, missing: tuple[str, ...], fractions: dict[str, float]
) -> dict[str, np.ndarray]:
    """'train' and the missing splits, each group in proportion and never emptied."""
    _, classes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    ranks = _ranks_in_class(classes, sizes, (_SPLIT_KEY, 0))
    splits = {}
    taken = np.zeros_like(sizes)
    for split in missing:
        key = (_SPLIT_KEY, SPLITS.index(split))
        shares = fractions[split] * sizes
        most = np.minimum(sizes - 1 - taken, np.ceil(shares).astype(sizes.dtype))
        # At least one image, so that a small set has something to be judged on.
        total = min(max(1, round(float(shares.sum()))), int(most.sum()))
        counts = _apportion(total, shares, np.minimum(np.floor(shares), most), most, key)
        here = (ranks >= taken[classes]) & (ranks < (taken + counts)[classes])
        splits[split] = train[here]
        taken = taken + counts
    return {"train": train[ranks >= taken[classes]], **splits}


def _ranks_in_class(classes: np.ndarray, sizes: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Each item's place in its own class's random order: int64[n].

    Args:
      classes: int[n] in [0, len(sizes)).
      sizes: int[c], how many items each class has.
      key: of `order.permutation`.
    """
    shuffled = permutation(key, len(classes))
    grouped = shuffled[np.argsort(classes[shuffled], kind="stable")]
    ranks = np.empty(len(classes), np.int64)
    ranks[grouped] = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def _apportion(
    total: int, shares: np.ndarray, least: np.ndarray, most: np.ndarray, key: tuple[int, int]
) -> np.ndarray:
    """Rounds `shares` to whole numbers that sum to `total`, by largest remainder.

    Args:
      total: from sum(least) to sum(most).
      shares: float[c], what each class would get if images could be cut.
      least: number[c], the fewest that each class gets.
      most: int[c], the most that each class gets.
      key: of `order.permutation`; decides between equal shares.

    Returns:
      int[c] that sums to `total`.
    """
    # In random order: else the classes first in the alphabet would win every tie.
    order = permutation(key, len(shares))
    shares, least, most = shares[order], least[order], most[order]
    rounded = np.clip(np.floor(shares), least, most).astype(np.int64)
    while rounded.sum() < total:
        rounded[np.argmax(np.where(rounded < most, shares - rounded, -np.inf))] += 1
    while rounded.sum() > total:
        rounded[np.argmax(np.where(rounded > least, rounded - shares, -np.inf))] -= 1
    counts = np.empty_like(rounded)
    counts[order] = rounded
    return counts
