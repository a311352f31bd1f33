"""Proof that weights were loaded whole: what matched, what did not, what they compute."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hpt_jax.errors import UserError
from hpt_jax.models.backbone import Backbone, jit_once
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights.load import Weights
from hpt_jax.weights.names import flatten

SIDE = 64  # pixels, of the fixed image


@dataclasses.dataclass(frozen=True)
class Proof:
    """What is known of a load; kept in `lineage.json`.

    Attributes:
      source: the weights, in words.
      dialect: who names tensors so.
      prefix: what their names in the file begin with.
      matched: tensors of the backbone that came from the file.
      expected: tensors that the backbone has.
      missing: the others, which start at random.
      unused: name in the file -> shape, of what was left there.
      notes: what was concluded or assumed, in sentences.
      features: of the fixed image, in evaluation mode: their mean, standard deviation and first
        four, to compare with the library that the weights come from (see docs/weights.md).
    """

    source: str
    dialect: str
    prefix: str
    matched: int
    expected: int
    missing: tuple[str, ...]
    unused: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    features: Mapping[str, Any]

    def lines(self) -> Iterator[str]:
        """The proof for a terminal; names beyond the first few are in `lineage.json`."""
        share = 100 * self.matched / self.expected
        yield f"weights from {self.source}"
        yield f"  dialect: {self.dialect}" + (f", below {self.prefix!r}" if self.prefix else "")
        yield f"  backbone tensors matched: {self.matched}/{self.expected} ({share:.4g} %)"
        if self.missing:
            yield f"  missing, start at random: {_some(self.missing)}"
        if self.unused:
            named = [f"{name} {list(shape)}" for name, shape in self.unused.items()]
            yield f"  not part of the backbone: {_some(named)}"
        for note in self.notes:
            yield f"  note: {note}"
        first = " ".join(f"{value:.4g}" for value in self.features["first"])
        yield (
            f"  features of the fixed image: mean {self.features['mean']:.4g}, "
            f"std {self.features['std']:.4g}, first {first}"
        )


def prove(weights: Weights, model: ResNet, backbone: Backbone, field: str) -> Proof:
    """Compares a filled backbone with what it was filled from, and runs it.

    Args:
      weights: as loaded.
      model: of the backbone.
      backbone: with the weights in it.
      field: the config's field or the flag to blame.

    Raises:
      UserError: what they compute is not finite.
    """
    wanted = flatten(backbone)
    image = fixed_image(len(backbone.pixel_mean))
    values = features(model, backbone, image)[0].astype(np.float64)
    if not np.isfinite(values).all():
        expected = "weights whose features are finite, on the fixed image"
        raise UserError(field, weights.source, expected, "Take an earlier checkpoint.")
    return Proof(
        source=weights.source,
        dialect=weights.dialect,
        prefix=weights.prefix,
        matched=len(wanted.keys() & weights.tensors.keys()),
        expected=len(wanted),
        missing=tuple(name for name in wanted if name not in weights.tensors),
        unused={name: tuple(shape) for name, shape in weights.unused.items()},
        notes=weights.notes,
        features={
            "mean": float(values.mean()),
            "std": float(values.std()),
            "first": [float(value) for value in values[:4]],
        },
    )


def fixed_image(channels: int) -> np.ndarray:
    """f32[1, 64, 64, channels], already normalised: sin(0.1 (c + 1) row) cos(0.1 column)."""
    row, column, channel = np.ogrid[:SIDE, :SIDE, :channels]
    return (np.sin(0.1 * (channel + 1) * row) * np.cos(0.1 * column)).astype(np.float32)[None]


def features(model: ResNet, backbone: Backbone, images: np.ndarray) -> np.ndarray:
    """f32[n, features] of normalised images [n, h, w, channels] in evaluation mode."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(_forward(model)(backbone.variables, images))


@functools.cache
def _forward(model: ResNet) -> Callable[..., jax.Array]:
    full = model.clone(dtype=jnp.promote_types(jnp.float32, model.dtype))  # not in bfloat16
    return jit_once(lambda variables, x: full.apply(variables, x, train=False))


def _some(names: list[str] | tuple[str, ...], most: int = 4) -> str:
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
