"""Which image stands in which slot of which step: pure functions of (seed, step).

Nothing here is iterated, so nothing has to be saved: a resumed run asks for its next step and
gets the batch that an uninterrupted run would have had.
"""

from __future__ import annotations

import functools

import numpy as np


def permutation(key: tuple[int, int], n: int) -> np.ndarray:
    """A uniformly random permutation that is the same on every machine and numpy version.

    numpy promises stable streams for its bit generators (NEP 19) but not for what `Generator`
    makes of them: `Generator.permutation` may change with any release, and with it every split
    and every batch. Sorting raw 64-bit words depends on the promised part alone.

    Args:
      key: two integers in [0, 2**64); different keys give independent permutations.
      n: how many items.

    Returns:
      int64[n], each of 0..n-1 once.
    """
    words = np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of one epoch: int64[n], read-only, each of 0..n-1 once.

    Args:
      seed: the stage's seed, in [0, 2**64).
      epoch: which pass over the data, from 0.
      n: how many images the stage has.
    """
    order = permutation((seed, epoch), n)
    order.flags.writeable = False  # callers share the cached array
    return order


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """The images of one global batch.

    Slot i of step s is position p = s * batch_size + i of an endless sequence of shuffled epochs;
    its image is permutation(seed, p // n)[p % n]. Batches run across epochs, nothing is dropped,
    and any n >= 1 works, n < batch_size included.

    Args:
      seed: the stage's seed.
      step: from 0.
      batch_size: slots over all devices and hosts.
      n: how many images the stage has.

    Returns:
      int64[batch_size] of values in [0, n).

    Raises:
      ValueError: for n < 1.
    """
    if n < 1:
        raise ValueError(f"a batch needs at least one image, got n={n}")
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size, dtype=np.int64), n)
    images = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        images[here] = epoch_permutation(seed, epoch, n)[places[here]]
    return images


def uniforms(seed: int, step: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers of one step: float64 of `shape`, uniform in [0, 1), the same everywhere.

    Args:
      seed: in [0, 2**64).
      step: from 0.
      stream: which of a step's independent sequences; at least 1 (0 are the permutations).
      shape: of the result; a longer first axis keeps the numbers of a shorter one.
    """
    return (_raw(seed, step, stream, shape) >> np.uint64(11)) * 2.0**-53


def shuffle(seed: int, step: int, stream: int, count: int, block: int) -> np.ndarray:
    """A permutation of `count` slots within consecutive blocks: int64[count].

    Args:
      seed: as in `uniforms`.
      step: as in `uniforms`.
      stream: as in `uniforms`.
      count: a multiple of `block`.
      block: no slot leaves its block of this many.
    """
    within = np.argsort(_raw(seed, step, stream, (count // block, block)), axis=1, kind="stable")
    return (within + np.arange(0, count, block)[:, None]).reshape(-1)


def _raw(seed: int, step: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    key = np.array([seed, step], np.uint64)
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(shape)
