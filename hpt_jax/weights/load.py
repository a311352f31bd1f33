"""Backbones that a stage starts from, ours or anyone's: loaded strictly or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from numpy.typing import ArrayLike

from hpt_jax import checkpoints, remote
from hpt_jax.errors import UserError
from hpt_jax.models.backbone import Backbone, abstract_backbone, init_backbone
from hpt_jax.models.resnet import STEMS, ResNet
from hpt_jax.shapes import DONE
from hpt_jax.weights import dialects, files
from hpt_jax.weights.architecture import architecture_of, depths
from hpt_jax.weights.names import flatten, torch_name
from hpt_jax.workdir import StageFolder, read_json

# Of ImageNet's pixels, as torchvision normalises them.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

# What our files say of themselves beyond their tensors, and of which type it is.
_TOLD = {
    "arch": str, "stem": str, "stem_stride": int, "bn_groups": int, "dtype": str, "image_size": int,
    "lineage": str, "stage_id": str, "missing": list, "pixel_mean": list, "pixel_std": list,
    "pixel_window": list, "center_crop": float,
}  # fmt: skip
STRIDE_ASSUMED = "a file does not say what follows a 3x3 stem: stride 1 and no max-pool are assumed"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """What a file holds.

    Attributes:
      tensors: by torchvision's names, convolutions as [h, w, in, out].
      facts: a model's `ARCHITECTURE_FIELDS`, 'channels', and what the file says of itself.
      pixel_mean: f32[C].
      pixel_std: f32[C].
      pixel_window: i32[2], as in `Backbone`.
      source: where they come from, in words.
      dialect: who names tensors so, in words.
      prefix: what the backbone's names in the file begin with.
      unused: name in the file -> shape, of what is no part of the backbone.
      notes: what was concluded or assumed, in sentences.
    """

    tensors: Mapping[str, Any]
    facts: Mapping[str, Any]
    pixel_mean: np.ndarray
    pixel_std: np.ndarray
    pixel_window: np.ndarray
    source: str
    dialect: str = "hpt_jax"
    prefix: str = ""
    unused: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load(path: str, field: str = "init", prefix: str | None = None) -> Weights:
    """Reads a stage folder of ours, or a file or folder of any dialect (see `dialects`).

    Args:
      path: as the user wrote it.
      field: the config's field or the flag to blame.
      prefix: what the backbone's names in the file begin with; None: found out.

    Raises:
      UserError: there is no backbone in it, or it must not be trusted.
    """
    if _is_stage(path):
        folder = StageFolder(_path(path))
        backbone, lineage = load_stage(folder), read_json(folder.lineage)
        return Weights(
            tensors=flatten(backbone),
            facts=_facts_of_stage(lineage),
            pixel_mean=np.asarray(backbone.pixel_mean),
            pixel_std=np.asarray(backbone.pixel_std),
            pixel_window=np.asarray(backbone.pixel_window),
            source=lineage["words"],
        )
    file = _locate(path, field)
    if file is None:
        fix = "(not found) Check the path; of names nothing is downloaded."
        raise UserError(field, path, files.EXPECTED, fix)
    content = files.read(file, field)
    found = dialects.find(content, prefix, field, path)
    facts = architecture_of(found.tensors, found.stem, field, path)
    _check_finite(found.tensors, field, path)
    _check_timm(files.timm_config(file), depths(found.tensors), field, path)
    told = _told(content.metadata, facts["channels"], field, path)
    facts |= {name: value for name, value in told.items() if name != "arch"}
    if told.get("arch") in depths(found.tensors):
        facts["arch"] = told["arch"]  # which a partial file may leave open
    notes = list(found.notes)
    if STEMS[facts["stem"]].stride is None and "stem_stride" not in told:
        notes.append(STRIDE_ASSUMED)
    mean, std, assumed = _pixels(told, facts["channels"], found.pixels, file)
    window = np.array(told.get("pixel_window", (0, 0)), np.int32)
    source = f"{path}, {told['lineage']}" if told.get("lineage") else path
    return Weights(
        tensors=found.tensors,
        facts=facts,
        pixel_mean=mean,
        pixel_std=std,
        pixel_window=window,
        source=source,
        dialect="hpt_jax" if told else found.dialect,
        prefix=found.prefix,
        unused=found.unused,
        notes=(*notes, *assumed),
    )


def load_stage(folder: StageFolder) -> Backbone:
    """The backbone of a finished stage, as numpy arrays.

    Raises:
      UserError: its last checkpoint is not whole.
    """
    step, fault = _last_step(folder), fault_of_stage(folder)
    if step is None or fault:
        raise lost(folder, fault or "")
    return Backbone(**checkpoints.restore_subtree(folder.checkpoints, step, "backbone"))


def fault_of_stage(folder: StageFolder) -> str | None:
    """What keeps a stage's backbone from being loaded, in words; None if nothing does."""
    if not folder.is_done:
        return "it is not finished"
    step = _last_step(folder)
    if step is None:
        return "it has no whole checkpoint"
    fault = checkpoints.fault_of(folder.checkpoints / str(step))
    return fault and f"checkpoint {step}: {fault}"


def _last_step(folder: StageFolder) -> int | None:
    done = read_json(folder.done, DONE) or {}
    # Stages of earlier versions do not tell.
    found: int | None = done.get("checkpoint", checkpoints.newest_whole(folder.checkpoints))
    return found


def lost(folder: StageFolder, fault: str) -> UserError:
    """The error for a stage whose backbone cannot be loaded."""
    return UserError(
        f"stage {folder.path.name}",
        None,
        f"its last checkpoint, from which others start, but {fault} ({folder.checkpoints})",
        f"Put its files back; or delete {folder.path}, and it is trained again.",
    )


def inspect(path: str) -> Mapping[str, Any] | None:
    """The model's fields and the channels of a checkpoint; None where there is no such file."""
    if _is_stage(path):
        return _facts_of_stage(read_json(StageFolder(_path(path)).lineage))
    return load(path).facts if _locate(path, "init") else None


def _facts_of_stage(lineage: Mapping[str, Any]) -> dict[str, Any]:
    config = lineage["config"]
    return {
        **config["model"],
        "channels": len(lineage["pixel_mean"]),
        "image_size": config["image_size"],
        "center_crop": float(config["input"]["center_crop"]),
        "lineage": lineage["words"],
        "stage_id": lineage["id"],
    }


def fingerprint(path: str) -> str | None:
    """A hash of a checkpoint's content; None where there is no such file."""
    if _is_stage(path):
        return read_json(StageFolder(_path(path)).lineage)["id"]
    file = _locate(path, "init")
    if file is None:
        return None
    if files.is_tensorflow(file):
        parts = sorted(file.parent.glob(f"{file.name}.[di]*"))  # .data-00000-of-00001 and .index
        return "-".join(checkpoints.file_hash(part) for part in parts)
    return checkpoints.file_hash(file)


def with_channels(weights: Weights, channels: int) -> Weights:
    """The same weights for images of another number of channels, by timm's rule.

    For one channel the first convolution is summed over its input channels, which is what it
    computes of grey repeated; for n its channels repeat in turn, scaled by (channels it had) / n,
    which keeps the size of its response. Pixel statistics become their mean, or repeat in turn.
    """
    kernel = weights.tensors.get("conv1.weight", np.zeros(()))
    mean, std = weights.pixel_mean, weights.pixel_std
    had = len(mean)
    if channels == had or kernel.ndim != 4:
        return weights
    if channels == 1:
        how, kernel = "summed over", kernel.sum(2, keepdims=True)
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    else:
        turn = np.arange(channels) % had
        how, mean, std = "repeated in turn from", mean[turn], std[turn]
        kernel = kernel[:, :, turn] * kernel.dtype.type(had / channels)
    note = f"the first convolution takes {channels} channels, {how} its {had}"
    return dataclasses.replace(
        weights,
        tensors={**weights.tensors, "conv1.weight": kernel},
        facts={**weights.facts, "channels": channels},
        pixel_mean=mean,
        pixel_std=std,
        notes=(*weights.notes, note),
    )


def make_backbone(
    model: ResNet,
    rng: jax.Array,
    weights: Weights,
    pixel_mean: np.ndarray,
    pixel_std: np.ndarray,
    pixel_window: ArrayLike = (0, 0),
) -> Backbone:
    """A network with the tensors of `weights`, which `check` has accepted; the rest is random."""
    like = abstract_backbone(model, len(pixel_mean))
    # Compiling what draws takes longer than all the rest, so it waits until something is lacking.
    if flatten(like).keys() - weights.tensors.keys():
        return fill(init_backbone(model, rng, pixel_mean, pixel_std, pixel_window), weights)
    like = dataclasses.replace(
        like,
        pixel_mean=jnp.asarray(pixel_mean, jnp.float32),
        pixel_std=jnp.asarray(pixel_std, jnp.float32),
        pixel_window=jnp.asarray(pixel_window, jnp.int32),
    )
    return fill(like, weights)


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


def imagenet_pixels(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of ImageNet's pixels, f32[channels] each."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    full = np.full(channels, 1, np.float32)
    return full * IMAGENET_MEAN.mean(), full * IMAGENET_STD.mean()


def _told(metadata: Mapping[str, str], channels: int, field: str, source: str) -> dict[str, Any]:
    """What a file of ours says of itself; {} of other files.

    Raises:
      UserError: it is not as we write it.
    """
    if files.METADATA not in metadata:
        return {}
    try:
        content = json.loads(metadata[files.METADATA])
    except (ValueError, RecursionError):
        content = None
    content = content if isinstance(content, dict) else {"stem": None}
    told = {name: value for name, value in content.items() if name in _TOLD}
    pixels = {name: value for name, value in told.items() if name.startswith("pixel_")}
    lengths = {"pixel_mean": channels, "pixel_std": channels, "pixel_window": 2}
    sound = (
        all(type(value) is _TOLD[name] for name, value in told.items())
        and all(len(value) == lengths[name] for name, value in pixels.items())
        and all(type(n) in (int, float) and abs(n) < 1e9 for row in pixels.values() for n in row)
        and min(pixels.get("pixel_std", [1])) > 1e-9
        and ("pixel_mean" in pixels) == ("pixel_std" in pixels)
        and all(type(part) is str for part in told.get("missing", ()))
        and told.get("stem", "small") in STEMS
        and told.get("stem_stride", 1) in (1, 2)
        and 0 < told.get("center_crop", 1.0) <= 1
    )
    if not sound:
        expected = "the facts in the header of an export of hpt_jax, but they are damaged"
        raise UserError(field, source, expected, "Export it again.")
    told["missing"] = [files.printable(part) for part in told.get("missing", ())]
    return {
        name: files.printable(value) if isinstance(value, str) else value
        for name, value in told.items()
        if name != "missing" or value
    }


def _pixels(
    told: Mapping[str, Any], channels: int, pixels: str, file: Path
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Mean and standard deviation of the pixels that the weights take; notes."""
    if "pixel_mean" in told:
        mean, std = (np.asarray(told[f"pixel_{name}"], np.float32) for name in ("mean", "std"))
        return mean, std, ()
    if pixels == "raw":
        return np.zeros(channels, np.float32), np.ones(channels, np.float32), ()
    if pixels == "imagenet":
        return *imagenet_pixels(channels), ()
    config = files.timm_config(file)
    config = config.get("pretrained_cfg", config)  # older ones have no section
    told = config if isinstance(config, dict) else {}
    both = [told[name] for name in ("mean", "std") if isinstance(told.get(name), list)]
    if [len(one) for one in both] == [channels, channels]:
        numbers = [n for one in both for n in one]
        if all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers) and min(both[1]) > 1e-9:
            mean, std = (np.array(one, np.float32) for one in both)
            return mean, std, ("mean and std of pixels are those of config.json beside it",)
    note = "the file does not say how pixels were normalised: ImageNet's mean and std are assumed"
    return *imagenet_pixels(channels), (note,)


def _check_finite(tensors: Mapping[str, np.ndarray], field: str, source: str) -> None:
    for name, value in tensors.items():
        with np.errstate(over="ignore"):
            single = value.astype(np.float32)
        if not np.isfinite(single).all() or (name.endswith("running_var") and (single < 0).any()):
            expected = f"finite numbers and variances of at least 0, but {name} has others"
            raise UserError(field, source, expected, "Take an earlier checkpoint of that training.")


def _check_timm(config: Mapping[str, Any], fitting: list[str], field: str, source: str) -> None:
    """Refuses what config.json says is another network, though names and shapes are the same."""
    name = str(config.get("architecture", "resnet18"))
    plain = re.fullmatch(r"(?:tv_|gluon_|ssl_|swsl_)?(resnet\d+)(?:\..*)?", name)
    others = config.get("model_args", {}).keys() - {"num_classes", "in_chans", "global_pool"}
    if others or plain is None or (config and plain[1] not in fitting):
        arguments = f" with {', '.join(sorted(map(str, others)))}" if others else ""
        expected = (
            f"a plain ResNet, but config.json beside it says {files.printable(name)}{arguments}"
        )
        raise UserError(field, source, expected, "Other networks cannot be loaded.")


def _path(path: str) -> Path:
    """With the user's home for ~, which a shell leaves alone behind an equals sign.

    Of what is at an address the path of a copy.
    """
    if remote.is_address(path):
        return remote.weights(path)
    return Path(os.path.expanduser(path))


def _is_stage(path: str) -> bool:
    folder = StageFolder(_path(path))
    return os.path.isfile(folder.done) and folder.is_done  # of names too long for a file too


def _locate(path: str, field: str) -> Path | None:
    """The file, or the prefix of a TensorFlow checkpoint, that a path means; None: it is absent.

    Raises:
      UserError: it is a folder with nothing to load, or with several.
    """
    here = _path(path)
    name = re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", here.name)
    if name and files.is_tensorflow(here.with_name(name)):
        return here.with_name(name)
    if os.path.isfile(here):
        return here
    if not os.path.isdir(here):
        return None
    ours = ("backbone.safetensors", "backbone.pth")
    inside = [here / name for name in (*ours, *files.TIMM_FILES)]
    inside = [file for file in inside if file.is_file()][:1]
    prefixes = (index.with_suffix("") for index in here.glob("*.index"))
    inside += [prefix for prefix in prefixes if files.is_tensorflow(prefix)]
    if len(inside) == 1:
        return inside[0]
    raise UserError(field, path, files.EXPECTED, _what_else(here, inside))


def _what_else(folder: Path, inside: list[Path]) -> str:
    """What a folder is, and what to take instead."""
    if inside:
        return f"It has several: choose {' or '.join(map(str, inside))}."
    if StageFolder(folder).lineage.is_file():
        return "It is an unfinished stage: run its command again to finish it."
    for above in list(folder.parents)[:2]:
        if StageFolder(above).lineage.is_file():
            return f"It is inside of a stage: take {above}."
    found = sorted((folder / "stages").glob("*/done.json"))
    if found:
        return f"It is a workdir: take its export, or a stage such as {found[-1].parent}."
    known = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt", ".torch")
    weights = sorted(file for file in folder.iterdir() if file.suffix in known)
    if weights:
        return f"It is a folder: choose a file of it, such as {weights[0]}."
    return "It is a folder that no finished stage is in, and no weights."
