"""The template 'adapt': one set of images, one start, and what the data says of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpt_jax.config import AdaptFields
from hpt_jax.errors import UserError
from hpt_jax.models.resnet import ARCHITECTURE_FIELDS

Inspect = Callable[[str], Mapping[str, Any] | None]


def fitting_batch(images: int) -> int:
    """A batch that does not exceed a set; a power of two, which even groups cut."""
    return max(16, min(128, 2 ** (images.bit_length() - 2)))


def fitting_queue(images: int) -> int:
    """A queue no longer than a set, beyond which an image's own old keys are its negatives."""
    return 2 ** (images.bit_length() - 1)


# What a dry run assumes of images that are not there.
_ABSENT_DATA = {
    "images": 1000, "short_side": 224, "channels": 3, "labelled": False, "multi_label": False,
}  # fmt: skip


def expand(
    raw: dict[str, Any], fields: AdaptFields, inspect_data: Inspect, inspect_weights: Inspect
) -> None:
    """Writes stages, arms, target and what the data says of the rest into a config.

    Args:
      raw: the config as nested dicts, short-hand fields taken out; what is not set is chosen. It is
        changed.
      fields: the short-hand fields.
      inspect_data: facts of a dataset (see `data.datasets.inspect`), None where it is not there.
      inspect_weights: the same for a checkpoint.

    Raises:
      UserError: there is no dataset.
    """
    if not fields.data:
        raise UserError("data", "", "a dataset", "Set it with --config.data=folder:PATH.")
    data = inspect_data(fields.data) or _ABSENT_DATA
    raw["batch_size"] = raw["batch_size"] or fitting_batch(data["images"])
    raw["image_size"] = raw["image_size"] or max(32, min(224, round(data["short_side"] / 16) * 16))
    model, moco = raw["model"], raw["moco"]
    # Small, so that it runs on a laptop, where neither the user nor the checkpoint says otherwise.
    known = {"channels": data["channels"], "arch": "resnet10", "width": 16, "stem_stride": 2}
    known["stem"] = "small" if raw["image_size"] < 100 else "imagenet"
    if fields.init != "random":
        known |= inspect_weights(fields.init) or {}
    for name in ARCHITECTURE_FIELDS:
        model[name] = model[name] or known[name]
    # Where some images are grey and some are not, all become what the checkpoint takes; images of
    # other channels stay as they are, and the checkpoint's first convolution is converted.
    if not {known["channels"], data["channels"]} <= {1, 3}:
        known["channels"] = data["channels"]
    raw["input"]["channels"] = raw["input"]["channels"] or known["channels"]
    rate = 0.06 if fields.init == "random" else 0.03
    raw["optimizer"]["learning_rate"] = raw["optimizer"]["learning_rate"] or rate
    queue = max(raw["batch_size"], fitting_queue(data["images"]))
    moco["queue_size"] = moco["queue_size"] or queue
    raw["target"] = fields.data if data["labelled"] else ""
    if data["multi_label"]:  # for which there is no other
        raw["metric"] = "macro_auroc"
    steps = fields.steps or max(100, min(5000, 40 * data["images"] // raw["batch_size"]))
    raw["stages"] = {"adapted": {"dataset": fields.data, "steps": steps}}
    raw["arms"] = {"T": ("adapted",)}
    if fields.init != "random":
        raw["stages"]["base"] = {"init": fields.init, "trainable": "nothing"}
        raw["arms"] = {"B+T": ("base", "adapted")}
    raw["export"] = raw["export"] or next(iter(raw["arms"]))
    if data["labelled"] and fields.init == "random":  # what there was before, to measure against
        raw["arms"] = {"random": ()} | raw["arms"]
    elif data["labelled"]:
        raw["stages"]["statistics"] = {"dataset": fields.data, "trainable": "statistics"}
        before = {"B-direct": ("base",), "B": ("base", "statistics")}
        raw["arms"] = before | raw["arms"]
