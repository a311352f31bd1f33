"""Backbones that a stage starts from: our stages and our exports, loaded strictly or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from hpt_jax import checkpoints
from hpt_jax.errors import UserError
from hpt_jax.models.backbone import Backbone
from hpt_jax.weights.export import flatten, torch_name
from hpt_jax.workdir import StageFolder, read_json

_EXPECTED = "a finished stage's folder, or a backbone.safetensors that hpt_jax exported"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """What a file holds.

    Attributes:
      tensors: by torchvision's names, convolutions as [h, w, in, out].
      pixel_mean: f32[C].
      pixel_std: f32[C].
      pixel_window: i32[2], as in `Backbone`.
      source: where they come from, in words.
    """

    tensors: Mapping[str, Any]
    pixel_mean: np.ndarray
    pixel_std: np.ndarray
    pixel_window: np.ndarray
    source: str


def load(path: str) -> Weights:
    """Reads a stage folder of ours or an exported `.safetensors`.

    Raises:
      UserError: if it is neither.
    """
    if _is_stage(path):
        folder = StageFolder(Path(path))
        backbone = load_stage(folder)
        lineage = read_json(folder.lineage)
        return Weights(
            flatten(backbone),
            np.asarray(backbone.pixel_mean),
            np.asarray(backbone.pixel_std),
            np.asarray(backbone.pixel_window),
            lineage["words"],
        )
    tensors, facts = _read_safetensors(path)
    mean, std = (np.asarray(facts[f"pixel_{name}"], np.float32) for name in ("mean", "std"))
    window = np.array(facts.get("pixel_window", (0, 0)), np.int32)
    return Weights(tensors, mean, std, window, f"{path}, {facts['lineage']}")


def load_stage(folder: StageFolder) -> Backbone:
    """The backbone, as numpy arrays, of the newest checkpoint of a stage.

    Raises:
      UserError: if it has no whole checkpoint, though it may have finished.
    """
    steps = checkpoints.steps_in(folder.checkpoints)
    if not steps:
        raise UserError(
            "checkpoints",
            str(folder.checkpoints),
            "a checkpoint whose files are as its manifest says, but they are damaged or gone",
            f"Restore them, or delete {folder.path} and run the stage again.",
        )
    return Backbone(**checkpoints.restore_subtree(folder.checkpoints, steps[-1], "backbone"))


def inspect(path: str) -> Mapping[str, Any] | None:
    """The model's fields and the channels of a checkpoint; None where there is no such file."""
    if not Path(path).exists():
        return None
    if _is_stage(path):
        lineage = read_json(StageFolder(Path(path)).lineage)
        return {**lineage["config"]["model"], "channels": len(lineage["pixel_mean"])}
    return _read_safetensors(path)[1]


def fingerprint(path: str) -> str | None:
    """A hash of a checkpoint's content; None where there is no such file."""
    if not Path(path).exists():
        return None
    if _is_stage(path):
        return read_json(StageFolder(Path(path)).lineage)["id"]
    if not Path(path).is_file():
        raise UserError("init", path, _EXPECTED, "It is a folder that no finished stage is in.")
    return checkpoints.file_hash(Path(path))


def check(
    wanted: Mapping[str, Any],
    given: Mapping[str, Any],
    missing_allowed: tuple[str, ...],
    field: str,
    source: str,
) -> None:
    """Compares tensors by name and shape.

    Args:
      wanted: name -> array or shape of the configured architecture, as `flatten` gives them.
      given: the same of what is to be loaded.
      missing_allowed: modules, like 'layer4', that may be absent.
      field: the config field to blame.
      source: where `given` comes from, in words.

    Raises:
      UserError: names and shapes of whatever does not match, the likely cause and its fix.
    """
    problems = []
    for name, value in wanted.items():
        if name in given and tuple(given[name].shape) != tuple(value.shape):
            shapes = f"{list(given[name].shape)}, expected {list(value.shape)}"
            problems.append(f"{name} is {shapes}")
        elif name not in given and not name.startswith(tuple(f"{m}." for m in missing_allowed)):
            problems.append(f"{name} {list(value.shape)} is missing")
    problems += [f"{name} is not in this architecture" for name in given.keys() - wanted.keys()]
    if problems:
        shown = "; ".join(sorted(problems)[:6]) + ("; ..." if len(problems) > 6 else "")
        raise UserError(
            field,
            source,
            f"a backbone of the configured architecture, but {len(problems)} of {len(wanted)} "
            f"tensors do not match: {shown}",
            _fix(wanted, given),
        )


def fill(like: Backbone, weights: Weights) -> Backbone:
    """`like` with the tensors of `weights`, which `check` has accepted.

    Pixel statistics, and parts that `weights` lacks, stay as they are in `like`.
    """

    def place(tree: Any) -> Any:
        flat = traverse_util.flatten_dict(tree)
        return traverse_util.unflatten_dict(
            {
                path: jnp.asarray(weights.tensors.get(torch_name(*path), value), value.dtype)
                for path, value in flat.items()
            }
        )

    return dataclasses.replace(like, params=place(like.params), batch_stats=place(like.batch_stats))


def _fix(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The likeliest cause, and what to set."""
    ours, theirs = wanted["conv1.weight"].shape, given.get("conv1.weight", np.zeros(())).shape
    if len(theirs) == 4 and ours[2] != theirs[2]:
        return (
            f"The weights take images of {theirs[2]} channels, the data has {ours[2]}: set "
            f"--config.input.channels={theirs[2]} (1: luma, 3: grey is repeated)."
        )
    if len(theirs) == 4 and ours[3] != theirs[3]:
        return f"The weights have --config.model.width={theirs[3]}."
    if len(theirs) == 4 and ours[0] != theirs[0]:
        return f"The weights have --config.model.stem={'small' if theirs[0] == 3 else 'imagenet'}."
    return "Set --config.model.arch, or name the parts the file lacks in `init_missing`."


def _is_stage(path: str) -> bool:
    folder = StageFolder(Path(path))
    return folder.lineage.is_file() and folder.is_done


def _read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors with convolutions as [h, w, in, out], and what the file says of itself."""
    if not Path(path).is_file():
        raise UserError("init", path, _EXPECTED, "(not found, or unfinished) Check the path.")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError("init", path, _EXPECTED, f"It cannot be read: {error}.") from None
    if "hpt_jax" not in metadata:
        raise UserError("init", path, _EXPECTED, "It was not written by hpt_jax.")
    for name, value in tensors.items():
        if value.ndim == 4:
            tensors[name] = value.transpose(2, 3, 1, 0)
    return tensors, json.loads(metadata["hpt_jax"])
