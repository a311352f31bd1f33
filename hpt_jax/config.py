"""The configuration: every field with its default, and the loading of config files.

A config file holds `get_config()`, which returns `default_config()` with its own values set. The
dataclasses below are the only place where a field, its type and its default are written down.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from hpt_jax.augment.policies import POLICIES, Policy
from hpt_jax.errors import UserError, nearest

TRAINABLE = ("all", "batch_norm", "statistics", "nothing")
METHODS = ("moco",)
EVALUATIONS = (
    "linear",
    "knn",
    "linear_sgd",
    "linear_<labels>",
    "finetune_<labels>",
    "finetune_full",
)
METRICS = ("top1", "macro_auroc")
ANALYSES = (
    "separability",
    "semi_supervised",
    "sequential",
    "augmentation_robustness",
    "data_robustness",
    "base_quality",
)
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Model:
    """The backbone."""

    arch: str = "resnet50"
    width: int = 64  # channels of the first stage
    stem: str = "imagenet"  # or 'small': 3x3, no max-pool, for images under about 100 px
    # (or 'simclr', 'solo': variants of the two for weights from there)
    stem_stride: int = 2  # of a stem of 3x3
    bn_groups: int = 4  # groups of the global batch; the reference is 4 of 64 examples
    dtype: str = "float32"  # compute dtype: float32, bfloat16 (or float64, for tests)


@dataclasses.dataclass(frozen=True)
class MoCo:
    """MoCo-v2."""

    queue_size: int = 65536  # negatives
    dim: int = 128  # of the embedding
    momentum: float = 0.999  # of the key encoder
    temperature: float = 0.2
    mask_own_keys: bool = False  # leaves an image's own old keys out of its negatives
    shuffle_block: int = 0  # slots within which keys are shuffled; 0: the global batch


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD."""

    learning_rate: float = 0.03  # peak, at the config's own batch size
    weight_decay: float = 1e-4  # coupled L2 on every trained parameter
    momentum: float = 0.9
    schedule: str = "cosine"  # per step, to 0 at the stage's end; or 'constant', or 'anytime'
    decay: float = 0.2  # of 'anytime': the last share of the steps, in which the rate falls to 0
    warmup_steps: int = 0  # linear


@dataclasses.dataclass(frozen=True)
class Input:
    """From files to pixels."""

    store_px: int = 0  # short side of stored images at most; 0: 8/7 of image_size
    channels: int = 0  # 0: as stored; 1: luma; 3: grey is repeated
    pipeline: str = "auto"  # 'resident': decoded once and held; 'host': read as needed; by size
    memory_gib: float = 0.0  # of images held decoded, at most; 0: a quarter of what is free
    val_fraction: float = 0.1  # of train, cut where a labelled set has no val split
    test_fraction: float = 0.2  # of train, cut where a labelled set has no test split
    center_crop: float = 0.875  # side of the evaluation view, as a share of the short side
    max_unreadable: float = 0.05  # share of unreadable images above which a set is refused


@dataclasses.dataclass(frozen=True)
class LinearSGD:
    """The paper's linear probe; all rates, decays and seeds are trained at once."""

    steps: int = 5000
    batch_size: int = 512
    learning_rates: tuple[float, ...] = (30.0,)  # the best on validation is tested
    weight_decays: tuple[float, ...] = (0.0,)  # the same
    seeds: tuple[int, ...] = (0,)  # of the weights it starts from; results are their mean
    drops: tuple[float, ...] = (0.3302, 0.6666)  # shares of the steps, each a tenfold fall
    eval_every: int = 100  # steps between two scores on validation
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of RandomResizedCrop, shares of the area
    flip_probability: float = 0.5


@dataclasses.dataclass(frozen=True)
class Finetune:
    """The paper's fine-tuning: all weights, a new linear head."""

    learning_rates: tuple[float, ...] = (0.01, 0.001)  # the best on validation is tested
    steps: tuple[int, ...] = (2500,)  # schedules, among which validation chooses too
    epochs: tuple[int, ...] = (90,)  # more schedules, in passes over the labelled images
    head_multiplier: float = 100.0  # of the head's learning rate
    batch_size: int = 256
    bn_groups: int = 4  # of a batch
    weight_decay: float = 0.0
    drops: tuple[float, ...] = (1 / 3, 2 / 3)  # shares of the steps, each a tenfold fall
    eval_every: int = 100  # steps between two scores on validation
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of RandomResizedCrop, shares of the area
    flip_probability: float = 0.5


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Devices."""

    map: str = "shard_map"  # or 'pmap'
    devices: int = 0  # 0: all
    deterministic: bool = False  # on GPU: bit for bit the same every time, but slower


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pretraining stage, resolved: its own fields, and the shared ones it may override."""

    dataset: str = ""  # 'folder:PATH', 'package:NAME' or 'tfds:NAME'
    splits: tuple[str, ...] = ("train", "val")  # what is pretrained on
    subset: float | int = 1.0  # a float is a fraction, an int a count of its images
    steps: int | tuple[int, ...] = 0  # a tuple: one run each, where the stage is last in its arm
    trainable: str = "all"
    init: str = "random"  # or a path; used only where the stage comes first in an arm
    init_missing: tuple[str, ...] = ()  # parts that a partial file may lack, e.g. ('layer4',)
    method: str = "moco"  # how it is trained
    batch_size: int = 256  # global, in examples
    image_size: int = 224  # pixels
    model: Model = Model()
    moco: MoCo = MoCo()
    optimizer: Optimizer = Optimizer()
    augment: Policy = POLICIES["moco_v2"]
    input: Input = Input()

    @property
    def budgets(self) -> tuple[int, ...]:
        """Its steps as a tuple; stages that do not train ignore them."""
        if self.trainable not in ("all", "batch_norm"):
            return (0,)
        return self.steps if isinstance(self.steps, tuple) else (self.steps,)


# Fields that a config sets once and a stage may override.
SHARED = ("method", "batch_size", "image_size", "model", "moco", "optimizer", "augment", "input")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a template chose from the data, or the user in its place.

    Attributes:
      field: as on the command line.
      value: as it is shown.
      reason: why, in a line.
    """

    field: str
    value: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run, resolved."""

    name: str = "hpt"  # of the study, in results.csv
    template: str = "stages"
    analysis: str = ""  # which of the paper's it is, and so how the report draws it; '': none
    seeds: tuple[int, ...] = (0,)
    stages: Mapping[str, Stage] = dataclasses.field(default_factory=dict)
    arms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    target: str = ""  # the dataset on which every arm is evaluated; '': no evaluation
    evaluations: tuple[str, ...] = ("linear", "knn")
    label_seeds: tuple[int, ...] = (0, 1, 2)  # of the subsets of <labels>; results are their mean
    linear_sgd: LinearSGD = LinearSGD()
    finetune: Finetune = Finetune()
    shared_stages: tuple[str, ...] = ()  # trained with seeds[0] alone
    metric: str = "top1"  # or 'macro_auroc', the one for sets of several labels an image
    domain: str = ""  # aerial, driving, medical, natural, illustrations
    data_dir: str = ""  # relative folders are below it, and prepared sets of TFDS
    export: str = ""  # the arm whose last backbone is written to export/; '': none
    log_every_steps: int = 50
    save_every_steps: int = 0  # 0: by minutes alone
    save_every_minutes: float = 5.0
    keep_checkpoints: int = 2  # of each stage, the newest; if one is damaged the next is taken
    keep_every_steps: int = 0  # saves and keeps every multiple of it as well; 0: none
    parallel: Parallel = Parallel()
    dry_run: bool = False
    shared: Stage = Stage()  # the shared fields, for stages that no one wrote down
    choices: tuple[Choice, ...] = ()  # of a template that tells why


# Fields of `Config` that no one sets.
MADE = ("shared", "choices")


@dataclasses.dataclass(frozen=True)
class AdaptFields:
    """Short-hand fields of the template 'adapt'; 0 and '' are chosen from the data."""

    data: str = ""
    init: str = "random"
    steps: int | tuple[int, ...] = 0  # a tuple: a run for each


@dataclasses.dataclass(frozen=True)
class StudyFields:
    """Short-hand fields of the template 'study'; 0, '' and () are chosen by triple and scale."""

    triple: str = ""  # a name of `paper.TRIPLES`, which gives what base, source, target leave out
    base: str = ""  # a dataset to train the base on, or a checkpoint
    source: str = ""
    target: str = ""
    scale: str = "small"  # for a laptop, or 'paper': ResNet-50 at 224 px, for accelerators
    base_steps: tuple[int, ...] = ()  # the last one, but for base_quality, which trains them all
    source_steps: int = 0  # after the base
    source_scratch_steps: int = 0  # from random weights; `source_steps`, where that is given
    steps: tuple[int, ...] = ()  # on the target, after base or source
    scratch_steps: tuple[int, ...] = ()  # on the target, from random weights; the same as steps
    bn_steps: tuple[int, ...] = ()  # on the target, of HPT-BN; the last of steps


TEMPLATE_FIELDS: dict[str, Any] = {"stages": None, "adapt": AdaptFields, "study": StudyFields}


def labels_of(evaluation: str) -> int | None:
    """How many labels an evaluation is named after: 1000 of 'finetune_1000', None of 'linear'."""
    named = re.fullmatch(r"(?:linear|finetune)_([1-9][0-9]{0,8})", evaluation)
    return int(named[1]) if named else None


def default_config(template: str = "stages") -> config_dict.ConfigDict:
    """A mutable config with every field at its default, for config files to fill in.

    In a template with short-hand fields all others are None, which is unset: it can then tell what
    a config chose from what is left to it.
    """
    # Neither locked nor type-safe: `resolve` reports all mistakes at once, where ml_collections
    # would stop at the first.
    config = config_dict.ConfigDict(type_safe=False)
    for field in dataclasses.fields(Config):
        if field.name not in ("stages", "arms", *MADE):
            config[field.name] = _mutable(getattr(Config(), field.name), template)
    for name in SHARED:
        config[name] = _mutable(getattr(Stage(), name), template)
    # The parts of a policy are unset until someone overrides the policy's own.
    config.augment = {"policy": "moco_v2", **dict.fromkeys(typing.get_type_hints(Policy))}
    for name in ("stages", "arms"):  # they keep their order
        config[name] = config_dict.ConfigDict(type_safe=False, sort_keys=False)
    config.template = template
    if TEMPLATE_FIELDS[template] is not None:
        for field in dataclasses.fields(TEMPLATE_FIELDS[template]):
            config[field.name] = field.default
    return config


def _mutable(value: Any, template: str) -> Any:
    unset = TEMPLATE_FIELDS[template] is not None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.asdict(value)
        return dict.fromkeys(fields) if unset else fields
    return None if unset else value


def load(path: str) -> config_dict.ConfigDict:
    """Runs a config file's `get_config()`.

    Raises:
      UserError: if there is no such file, or whatever it raises: with its file and line.
    """
    if not os.path.isfile(path):  # False too for what cannot be a path
        folder = os.path.dirname(path)
        beside = os.path.join(glob.escape(folder), "*.py")
        there = glob.glob(beside) if os.path.isdir(folder or ".") else ()
        fix = f"(not found) {nearest(path, there) if there else 'Check the path.'}"
        raise UserError("--config", path, "a config file", fix)
    try:
        namespace: dict[str, Any] = {"__name__": "config", "__file__": path}
        exec(compile(Path(path).read_bytes(), path, "exec"), namespace)
        if "get_config" not in namespace:
            raise UserError(path, None, "a function get_config()", "Define it.")
        config = namespace["get_config"]()
        if isinstance(config, config_dict.ConfigDict):
            config.to_dict()  # as `resolve` will; one that holds itself has no end
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a config file raises is its author's to mend
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        raise UserError(
            f"{path}:{line}" if line else path,
            None,
            "a config file whose get_config() returns a config",
            f"It raised {traceback.format_exception_only(error)[-1].strip()}",
        ) from None
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(
            path,
            type(config).__name__,
            "get_config() to return a ConfigDict",
            "Start from hpt_jax.config.default_config().",
        )
    return config
