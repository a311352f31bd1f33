"""Weighted k-nearest-neighbour classification of frozen features.

The classifier of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination" (CVPR 2018, section 3.4): the k nearest training features by cosine similarity
s vote for their classes with weight exp(s / T). Both k and T are fixed beforehand, so nothing
is chosen on any data.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_BLOCK_ELEMENTS = 1 << 23
_BLOCK_QUERIES = 128


def predict(
    train_x: ArrayLike,
    train_y: ArrayLike,
    x: ArrayLike,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Votes of the k nearest training examples for each class.

    Similarities exist only for one block of queries at a time: at most 128 queries, fewer where
    128 rows against all training examples would pass 2^23 numbers (32 MiB in float32).

    Args:
      train_x: float [n, d] features; an all-zero row has similarity 0 to everything.
      train_y: int [n], labels in [0, num_classes), or zeros and ones [n, num_classes].
      x: float [m, d] features to classify.
      num_classes: number of columns of the result.
      k: neighbours that vote; at most n do. Of equally near ones, those earlier in `train_x`.
      temperature: T, in units of cosine similarity.

    Returns:
      Float [m, num_classes], each class's share of the weights, in the features' dtype. Shares, so
      that they can be compared between queries too.

    Raises:
      ValueError: shapes disagree, there is no training example, k < 1, or a label is none of those
        that `train_y` may have.
    """
    train_x, x = jnp.asarray(train_x), jnp.asarray(x)
    labels = np.asarray(train_y)
    n = train_x.shape[0]
    fits = labels.shape in ((n,), (n, num_classes))
    if train_x.ndim != 2 or x.shape[1:] != train_x.shape[1:] or not fits or n == 0:
        raise ValueError(
            f"need train_x [n, d], train_y [n] or [n, {num_classes}], x [m, d], n > 0: "
            f"{train_x.shape=}, {labels.shape=}, {x.shape=}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1: {k=}")
    if labels.min() < 0 or labels.max() >= (num_classes if labels.ndim == 1 else 2):
        raise ValueError(f"labels span {labels.min()}..{labels.max()}: {num_classes=}")
    votes = _votes(train_x, jnp.asarray(labels), x, num_classes, min(k, n), temperature)
    return np.asarray(votes)


@partial(jax.jit, static_argnames=("num_classes", "k"))
def _votes(
    train_x: jax.Array,
    train_y: jax.Array,
    x: jax.Array,
    num_classes: int,
    k: int,
    temperature: float,
) -> jax.Array:
    train_x = _unit(train_x)

    def vote(query: jax.Array) -> jax.Array:
        # The default precision of accelerators is coarse enough to change who is nearest.
        similarity = jnp.matmul(train_x, query, precision=jax.lax.Precision.HIGHEST)
        nearest, where = jax.lax.top_k(similarity, k)
        weight = jax.nn.softmax(nearest / temperature)
        # A product with one-hot rows, because a scatter-add is not deterministic on GPUs.
        rows = train_y[where]
        if rows.ndim == 1:
            rows = jax.nn.one_hot(rows, num_classes)
        return jnp.matmul(weight, rows.astype(weight.dtype), precision=jax.lax.Precision.HIGHEST)

    block = max(1, min(_BLOCK_QUERIES, _BLOCK_ELEMENTS // train_x.shape[0]))
    return jax.lax.map(vote, _unit(x), batch_size=block)


def _unit(x: jax.Array) -> jax.Array:
    """Rows scaled to length 1; zero rows stay zero."""
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.maximum(length, jnp.finfo(x.dtype).tiny)
