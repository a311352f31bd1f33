"""The template 'adapt': one set of images, one start, and what the data says of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hpt_jax.config import AdaptFields, Choice, Optimizer
from hpt_jax.errors import UserError
from hpt_jax.models.resnet import ARCHITECTURE_FIELDS

Inspect = Callable[[str], Mapping[str, Any] | None]
Facts = Mapping[str, Any]

LEAST_BATCH, _MOST_BATCH = 16, 128
_LEAST_SIDE, _MOST_SIDE = 32, 224  # pixels
_LEAST_STEPS, _MOST_STEPS = 100, 5000
_PASSES = 40  # over the images
_LEAST_GROUP = 16  # images over which batch norm takes its statistics
# Small, so that it runs on a laptop, where neither the user nor the checkpoint says otherwise.
_NETWORK = {"arch": "resnet10", "width": 16, "stem_stride": 2}
# Below this side, in pixels, the first convolution must not shrink the image fourfold.
_SMALL_STEM_BELOW = 100
# What has no effect on images without colours.
_COLOURS = ("saturation", "hue", "grayscale_probability")
# What a dry run assumes of images that are not there, and says so.
_ABSENT_DATA = {
    "images": 1000, "short_side": 224, "channels": 3, "grey": False, "labelled": False,
    "classes": 0, "multi_label": False,
}  # fmt: skip
_BY_YOU = "set by you"
_MAY_BE_EMPTY = ("target", "export")
_WIDEST = 24  # of values that a column is made for


def fitting_batch(images: int) -> int:
    """A batch that does not exceed a set; a power of two, which even groups cut."""
    return max(LEAST_BATCH, min(_MOST_BATCH, 2 ** (images.bit_length() - 2)))


def fitting_groups(batch: int) -> int:
    """Batch-norm groups of a batch: four of at least 16, else fewer, but never one."""
    large = [groups for groups in (4, 3, 2) if batch % (groups * _LEAST_GROUP) == 0]
    return large[0] if large else 2


def fitting_queue(images: int, batch: int) -> int:
    """A queue no longer than a set, beyond which an image's own old keys are its negatives."""
    return max(batch, 2 ** (images.bit_length() - 1))


def fitting_side(short_side: int) -> int:
    """The side of views, in pixels, of images that have this median short side."""
    return max(_LEAST_SIDE, min(_MOST_SIDE, round(short_side / 16) * 16))


def fitting_steps(images: int, batch: int) -> int:
    """Forty passes over a set, within limits."""
    return max(_LEAST_STEPS, min(_MOST_STEPS, _PASSES * images // batch))


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


class _Chooser:
    """Sets what the user has not set, and keeps what was chosen and why."""

    def __init__(self, raw: dict[str, Any]):
        self._raw = raw
        self.choices: list[Choice] = []

    def fill(self, field: str, value: Any) -> tuple[Any, bool]:
        """Sets a field, by its dotted path, unless the user has.

        0 and '' count as unset, but for fields that may be empty.

        Returns:
          What it then holds, and whether the user has set it.
        """
        *sections, name = field.split(".")
        node = self._raw
        for section in sections:
            node[section] = node.get(section) or {}
            node = node[section]
        given = node.get(name)
        empty = given == "" or (type(given) is int and given == 0)
        by_you = given is not None and (not empty or field in _MAY_BE_EMPTY)
        if not by_you:
            node[name] = value
        return node[name], by_you

    def choose(self, field: str, value: Any, reason: str) -> Any:
        """Sets a field, unless the user has, and says so; returns what it then holds."""
        held, by_you = self.fill(field, value)
        self.say(field, held, _BY_YOU if by_you else reason)
        return held

    def say(self, field: str, value: Any, reason: str) -> None:
        """Keeps a choice."""
        self.choices.append(Choice(field, str(value) or "none", reason))


def expand(
    raw: dict[str, Any], fields: AdaptFields, inspect_data: Inspect, inspect_weights: Inspect
) -> tuple[Choice, ...]:
    """Writes stages, arms, target and what the data says of the rest into a config.

    Args:
      raw: the config as nested dicts, short-hand fields taken out; what is not set is chosen. It is
        changed.
      fields: the short-hand fields.
      inspect_data: facts of a dataset (see `data.survey.facts`), None where it is not there.
      inspect_weights: the same for a checkpoint.

    Returns:
      What was chosen and what the user chose instead, each with the reason.

    Raises:
      UserError: there is no dataset, or it has too few images.
    """
    if not fields.data:
        raise UserError("data", "", "a dataset", "Set it with --config.data=folder:PATH.")
    data = inspect_data(fields.data) or _ABSENT_DATA
    weights = {} if fields.init == "random" else inspect_weights(fields.init) or {}
    _check_enough(fields.data, data["images"], raw.get("batch_size") or LEAST_BATCH)
    chooser = _Chooser(raw)
    _choose_images(chooser, data, weights)
    _choose_network(chooser, raw["image_size"], weights)
    _choose_batch(chooser, data["images"])
    steps = _choose_schedule(chooser, fields, data["images"], raw["batch_size"])
    _choose_augmentation(chooser, data)
    judged = _choose_judge(chooser, fields, data)
    raw["stages"], raw["arms"] = _stages(fields, judged, steps)
    chooser.fill("export", list(raw["arms"])[-1])
    return tuple(chooser.choices)


def lines(choices: Sequence[Choice]) -> list[str]:
    """Choices for a terminal, in columns; none where there are none."""
    if not choices:
        return []
    names = max(len(choice.field) for choice in choices)
    values = max(len(one.value) for one in choices if len(one.value) <= _WIDEST)
    told = [f"  {one.field:<{names}}  {one.value:<{values}}  {one.reason}" for one in choices]
    return ["chosen (any of it can be set: --config.FIELD=VALUE)", *told]


def _check_enough(name: str, images: int, batch: int) -> None:
    if images >= batch:
        return
    expected = f"at least {batch} images to learn from, a batch, but it has {images}"
    raise UserError("data", name, expected, "Add images, or set a smaller --config.batch_size.")


def _choose_images(chooser: _Chooser, data: Facts, weights: Facts) -> None:
    """Size and channels of what the network sees."""
    short = data["short_side"]
    side, reason = fitting_side(short), f"the images' median short side is {short:,} px"
    if side == _MOST_SIDE and short > side:
        reason += f", {_MOST_SIDE} the most that is chosen"
        if short > 4 * side:
            reason += "; tiles of the images would keep their detail"
    chooser.choose("image_size", side, reason)
    has = data["channels"]
    channels, reason = _channels(1 if data["grey"] else has, weights.get("channels"))
    if data["grey"] and has == 3:
        reason += ", though stored as RGB"
    chooser.choose("input.channels", channels, reason)


def _channels(has: int, takes: int | None) -> tuple[int, str]:
    """Channels of the input, where the images have some and a checkpoint, if any, takes some."""
    kinds = {1: "grey", 3: "colour"}
    told = f"the images are {kinds[has]}" if has in kinds else f"the images have {has}"
    if takes is None or takes == has:
        return has, told
    if {takes, has} == {1, 3}:
        made = "grey is repeated" if takes == 3 else "they become grey"
        return takes, f"the checkpoint takes {takes}, {told}: {made}"
    # The checkpoint's first convolution is converted.
    return has, f"{told}; the checkpoint, which takes {takes}, is converted"


def _choose_network(chooser: _Chooser, image_size: int, weights: Facts) -> None:
    known = {"stem": "small" if image_size < _SMALL_STEM_BELOW else "imagenet", **_NETWORK}
    reason = "small enough for a laptop; with a GPU: resnet50 of width 64"
    if weights:
        known, reason = known | dict(weights), "the checkpoint's"
    held = {name: chooser.fill(f"model.{name}", known[name]) for name in ARCHITECTURE_FIELDS}
    by_you = [name for name, (_, was_set) in held.items() if was_set]
    if by_you:
        reason = f"{' and '.join(by_you)} {_BY_YOU}"
    arch, width, stem, stride = (value for value, _ in held.values())
    chooser.say("model", f"{arch}, width {width}", f"stem {stem}, stride {stride}; {reason}")


def _choose_batch(chooser: _Chooser, images: int) -> None:
    """Batch, its groups, and the queue of keys."""
    batch = fitting_batch(images)
    reason = f"at most half of the {images:,} images"
    if batch in (LEAST_BATCH, _MOST_BATCH):
        reason = f"the {'least' if batch == LEAST_BATCH else 'most'} that is chosen"
    batch = chooser.choose("batch_size", batch, reason)
    groups = fitting_groups(batch)
    reason = f"of {batch // groups}; a key never shares its query's statistics"
    chooser.choose("model.bn_groups", groups, reason)
    queue = fitting_queue(images, batch)
    reason = f"at most the {images:,} images, so that few keys are of one image"
    chooser.choose("moco.queue_size", queue, reason if queue <= images else "as many as a batch")


def _choose_schedule(
    chooser: _Chooser, fields: AdaptFields, images: int, batch: int
) -> int | tuple[int, ...]:
    """Steps, which are returned, and the rates that go with them."""
    fitting = fitting_steps(images, batch)
    steps = fields.steps or fitting
    each = steps if isinstance(steps, tuple) else (steps,)
    passes = _listed(f"{one * batch / images:.3g}" for one in each)
    reason = f"{passes} passes over the {images:,} images that are trained on"
    if not fields.steps and fitting in (_LEAST_STEPS, _MOST_STEPS):
        reason += f", the {'fewest' if fitting == _LEAST_STEPS else 'most'} that are chosen"
    # Not by the steps asked for: runs of other lengths are to have the same rows.
    chooser.fill("log_every_steps", min(50, max(10, fitting // 100)))
    chooser.say("steps", _listed(each), f"{_BY_YOU}: {reason}" if fields.steps else reason)
    rate, reason = Optimizer().learning_rate, "for weights that have learned already"
    if fields.init == "random":
        rate, reason = 2 * rate, "from random weights; half of it from a checkpoint"
    chooser.choose("optimizer.learning_rate", rate, reason)
    reason = "what ends at one number of steps can be ended early, or lengthened, afterwards"
    chooser.choose("optimizer.schedule", "anytime", reason)
    reason = "the key encoder has few steps to follow, not hundreds of thousands"
    chooser.choose("moco.momentum", 0.99, reason)
    return steps


def _choose_augmentation(chooser: _Chooser, data: Facts) -> None:
    """The policy, less what has no effect on the images."""
    policy, by_you = chooser.fill("augment.policy", "moco_v2")
    off = []
    if data["grey"] or data["channels"] != 3:
        off = [name for name in _COLOURS if not chooser.fill(f"augment.{name}", 0.0)[1]]
    reason = "crops, colours, blur and flips: switch off what makes another class of an image"
    if by_you and policy != "moco_v2":
        reason = _BY_YOU
    elif off:
        reason = "crops, brightness, contrast, blur and flips; the rest is of colours"
    chooser.say("augment.policy", f"{policy}, less colours" if off else policy, reason)


def _choose_judge(chooser: _Chooser, fields: AdaptFields, data: Facts) -> bool:
    """What tells whether it helps; returns whether labels do."""
    if data["labelled"]:
        reason = f"it has {data['classes']:,} {'labels' if data['multi_label'] else 'classes'}"
    else:
        reason = "no labels: judged by measures that need none (measures.csv)"
    target = chooser.choose("target", fields.data if data["labelled"] else "", reason)
    if data["multi_label"] and target == fields.data:  # for which there is no other
        chooser.fill("metric", "macro_auroc")
    return bool(target)


def _stages(
    fields: AdaptFields, judged: bool, steps: int | tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Stages, and arms: with labels, also what there was before, to measure against."""
    stages: dict[str, Any] = {"adapted": {"dataset": fields.data, "steps": steps}}
    if fields.init == "random":
        before: dict[str, tuple[str, ...]] = {"random": ()}
        return stages, {**(before if judged else {}), "T": ("adapted",)}
    stages["base"] = {"init": fields.init, "trainable": "nothing"}
    arms: dict[str, tuple[str, ...]] = {"B+T": ("base", "adapted")}
    if judged:
        stages["statistics"] = {"dataset": fields.data, "trainable": "statistics"}
        arms = {"B-direct": ("base",), "B": ("base", "statistics"), **arms}
    return stages, arms
