"""Whether weights are those that are wanted; if not, the likely cause and its fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hpt_jax.errors import UserError
from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ARCHITECTURE_FIELDS, STEMS, ResNet
from hpt_jax.weights.architecture import depths
from hpt_jax.weights.load import STRIDE_ASSUMED, Weights
from hpt_jax.weights.names import flatten

# How a message names a setting that would help: ('arch', 'resnet18') -> '--arch resnet18'.
Setting = Callable[[str, object], str]


def weights(
    given: Weights,
    wanted: Mapping[str, Any],
    missing_allowed: Iterable[str],
    field: str,
    source: str,
    setting: Setting,
) -> None:
    """Compares what was loaded with a model, first by network, then tensor by tensor.

    Args:
      given: as loaded.
      wanted: a value for each of `ARCHITECTURE_FIELDS`.
      missing_allowed: modules, like 'layer4', that may be absent.
      field: the config's field or the flag to blame.
      source: the file.
      setting: names what to set, so that it fits.

    Raises:
      UserError: as `architecture` and `tensors`.
    """
    architecture(given, wanted, field, source, setting)
    model = ResNet(**{name: wanted[name] for name in ARCHITECTURE_FIELDS})
    # Of the file's own channels: to those of the data its first convolution is converted.
    like = abstract_backbone(model, given.facts["channels"])
    tensors(flatten(like), given.tensors, missing_allowed, field, source, setting)


def architecture(
    given: Weights, wanted: Mapping[str, Any], field: str, source: str, setting: Setting
) -> None:
    """Compares what weights are of with what they are wanted for.

    Args:
      given: as loaded.
      wanted: a value for each of `ARCHITECTURE_FIELDS`.
      field: the config's field or the flag to blame.
      source: the file.
      setting: names what to set, so that it fits.

    Raises:
      UserError: says of what network the file is, and how to take it.
    """
    differ = [name for name in ARCHITECTURE_FIELDS if given.facts[name] != wanted[name]]
    if "arch" in differ and wanted["arch"] in depths(given.tensors):
        differ.remove("arch")
    if "stem_stride" in differ and STEMS[given.facts["stem"]].stride is not None:
        differ.remove("stem_stride")
    if differ:
        fix = " ".join(setting(name, given.facts[name]) for name in differ)
        if "stem_stride" in differ and STRIDE_ASSUMED in given.notes:
            stride = wanted["stem_stride"]
            fix += f" (or import it with --stem-stride {stride}, if it was trained so)"
        expected = f"weights of {_in_words(wanted)}, but they are of {_in_words(given.facts)}"
        raise UserError(field, source, expected, f"To take them as they are: {fix}")


def tensors(
    wanted: Mapping[str, Any],
    given: Mapping[str, Any],
    missing_allowed: Iterable[str],
    field: str,
    source: str,
    setting: Setting,
) -> None:
    """Compares tensors by name and shape.

    Args:
      wanted: name -> array or shape of the configured architecture, as `flatten` gives them.
      given: the same of what is to be loaded.
      missing_allowed: modules, like 'layer4', that may be absent.
      field: the config field to blame.
      source: where `given` comes from, in words.
      setting: names what to set, so that it fits.

    Raises:
      UserError: names and shapes of whatever does not match, the likely cause and its fix.
    """
    allowed = tuple(f"{part}." for part in missing_allowed)
    shapes = {
        name: f"{name} is {list(given[name].shape)}, expected {list(value.shape)}"
        for name, value in wanted.items()
        if name in given and tuple(given[name].shape) != tuple(value.shape)
    }
    missing = {
        name: f"{name} {list(value.shape)} is missing"
        for name, value in wanted.items()
        if name not in given and not name.startswith(allowed)
    }
    extra = {name: f"{name} is not in this architecture" for name in given.keys() - wanted.keys()}
    problems = sorted({**shapes, **missing, **extra}.values())
    if problems:
        shown = "; ".join(problems[:6]) + ("; ..." if len(problems) > 6 else "")
        raise UserError(
            field,
            source,
            f"a backbone of the configured architecture, but {len(problems)} of {len(wanted)} "
            f"tensors do not match: {shown}",
            _fix(wanted, given, list(missing), list(extra), setting),
        )


def _fix(
    wanted: Mapping[str, Any],
    given: Mapping[str, Any],
    missing: list[str],
    extra: list[str],
    setting: Setting,
) -> str:
    """The likeliest cause, and what to set."""
    ours, theirs = wanted["conv1.weight"].shape, given.get("conv1.weight", np.zeros(())).shape
    if len(theirs) == 4 and ours[2] != theirs[2]:
        return (
            f"The weights take images of {theirs[2]} channels, the data has {ours[2]}: "
            f"{setting('channels', theirs[2])} (1: luma, 3: grey is repeated)."
        )
    differ = _differences(wanted, given)
    if differ:
        return f"To take them as they are: {' '.join(setting(*one) for one in differ.items())}"
    if any(name.startswith("conv1.0.") for name in extra):
        return "Its first layer is not one convolution (ResNet-C or D); ours is."
    if all(name in missing for name in wanted if "running_" in name):
        return "It has no statistics of batch norm: it is of another norm, and cannot be loaded."
    if extra and not missing:
        return f"It is a ResNet with parts that ours has not ({extra[0]})."
    if missing:
        parts = ",".join(_parts(missing, wanted))
        return f"The file lacks {parts}. To start them at random: {setting('missing', parts)}"
    return "It is a ResNet of another kind, such as a wide one or a ResNeXt; ours is a plain one."


def _differences(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, object]:
    """The fields of a model in which two differ, as far as names and shapes tell; the given's."""
    differ: dict[str, object] = {}
    if depths(given) and not set(depths(given)) & set(depths(wanted)):
        differ["arch"] = depths(given)[0]
    ours, theirs = (one.get("conv1.weight", np.zeros(())).shape for one in (wanted, given))
    if len(theirs) == 4 and ours[3] != theirs[3]:
        differ["width"] = theirs[3]
    if len(theirs) == 4 and ours[0] != theirs[0]:
        differ["stem"] = "small" if theirs[0] == 3 else "imagenet"
    return differ


def _parts(missing: list[str], wanted: Mapping[str, Any]) -> list[str]:
    """Missing tensors as modules, a whole layer where all of it is missing."""
    parts: dict[str, None] = {}
    for name in missing:
        layer, module = name.partition(".")[0], name.rpartition(".")[0]
        whole = all(other in missing for other in wanted if other.startswith(f"{layer}."))
        parts[layer if whole else module] = None
    return list(parts)


def _in_words(facts: Mapping[str, Any]) -> str:
    stride = f", stride {facts['stem_stride']}" if STEMS[facts["stem"]].stride is None else ""
    return f"{facts['arch']}, width {facts['width']}, stem {facts['stem']}{stride}"
