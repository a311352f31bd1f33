"""What a stage is and where it comes from, for people and for later stages to read."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import numpy as np

from hpt_jax import plan
from hpt_jax.library import StageData
from hpt_jax.models.backbone import Backbone
from hpt_jax.weights.proof import Proof

_PACKAGES = ("hpt_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def lineage(
    stage: plan.Stage, data: StageData | None, initial: Backbone, proof: Proof | None
) -> dict[str, Any]:
    """The content of `lineage.json`.

    Args:
      stage: planned.
      data: its images, or None where it reads none.
      initial: the backbone it starts from, with the pixel statistics it will use.
      proof: that the weights it starts from are whole; None where they are not from a file.
    """
    return {
        "id": stage.id,
        "kin": kin(stage),
        "words": words(stage),
        "branch": {"trunk": stage.trunk, "step": stage.branch_step} if stage.trunk else None,
        "seed": stage.seed,
        "recipe_version": plan.RECIPE_VERSION,
        "config": dataclasses.asdict(stage.config),
        "parents": [
            {"id": parent.id, "dataset": parent.config.dataset, "fingerprint": parent.fingerprint}
            for parent in stage.chain[:-1]
        ],
        "weights": dataclasses.asdict(proof) if proof else None,
        "dataset": _dataset(stage, data) if data else None,
        "pixel_mean": [float(x) for x in np.asarray(initial.pixel_mean)],
        "pixel_std": [float(x) for x in np.asarray(initial.pixel_std)],
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def words(stage: plan.Stage) -> str:
    """The chain in one line: `base (package:mnist, 300 steps) -> target (...)`."""
    parts = []
    for one in stage.chain:
        how = f"{one.steps} steps" if one.trains else one.config.trainable
        if one.parent is None and one.config.init != "random":
            how += f", from {one.config.init}"
        parts.append(f"{one.name} ({', '.join(p for p in (one.config.dataset, how) if p)})")
    return " -> ".join(parts)


def kin(stage: plan.Stage) -> str:
    """A hash that stages share which differ in the content of their dataset alone."""
    hashed = plan.identity(stage.config, stage.seed, stage.start, "")
    return plan.content_hash([stage.name, stage.config.dataset, hashed])


def _dataset(stage: plan.Stage, data: StageData) -> dict[str, Any]:
    dataset = data.dataset
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "images": len(dataset.images),
        "pretrained_on": len(data.rows),
        "unreadable": [path for path, _ in data.store.unreadable],
        "pixel_window": data.store.reading.window,
        # Which images were cut from train, and which a subset kept, cannot be read off the files.
        "cut": {split: dataset.splits[split].tolist() for split in dataset.cut},
        "subset": data.store.index[data.rows].tolist() if stage.config.subset != 1.0 else None,
    }
