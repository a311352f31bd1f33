"""The configuration: every field with its default, and the one pure function that resolves it.

A config file holds `get_config()`, which returns `default_config()` with its own values set. The
dataclasses below are the only place where a field, its type and its default are written down.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import re
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from hpt_jax.augment.policies import POLICIES, Policy
from hpt_jax.errors import Mistake, UserError, nearest
from hpt_jax.models.resnet import ARCHITECTURES

TRAINABLE = ("all", "batch_norm", "statistics", "nothing")
EVALUATIONS = ("linear", "knn")
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Model:
    """The backbone."""

    arch: str = "resnet50"
    width: int = 64  # channels of the first stage
    stem: str = "imagenet"  # or 'small': 3x3, no max-pool, for images under about 100 px
    stem_stride: int = 2  # of the small stem
    bn_groups: int = 4  # groups of the global batch; the reference is 4 of 64 examples
    dtype: str = "float32"  # compute dtype: float32, bfloat16 (or float64, for tests)


@dataclasses.dataclass(frozen=True)
class MoCo:
    """MoCo-v2."""

    queue_size: int = 65536  # negatives
    dim: int = 128  # of the embedding
    momentum: float = 0.999  # of the key encoder
    temperature: float = 0.2
    shuffle_block: int = 0  # slots within which keys are shuffled; 0: the global batch


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD."""

    learning_rate: float = 0.03  # peak, at the config's own batch size
    weight_decay: float = 1e-4  # coupled L2 on every trained parameter
    momentum: float = 0.9
    schedule: str = "cosine"  # per step, to 0 at the stage's end; or 'constant'
    warmup_steps: int = 0  # linear


@dataclasses.dataclass(frozen=True)
class Input:
    """From files to pixels."""

    store_px: int = 0  # short side of stored images at most; 0: 8/7 of image_size
    channels: int = 0  # 0: as stored; 1: luma; 3: grey is repeated
    val_fraction: float = 0.1  # of train, cut where a labelled set has no val split
    test_fraction: float = 0.2  # of train, cut where a labelled set has no test split
    center_crop: float = 0.875  # side of the evaluation view, as a share of the short side
    max_unreadable: float = 0.05  # share of unreadable images above which a set is refused


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Devices."""

    map: str = "shard_map"  # or 'pmap'
    devices: int = 0  # 0: all


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pretraining stage, resolved: its own fields, and the shared ones it may override."""

    dataset: str = ""  # 'folder:PATH' or 'package:NAME'
    splits: tuple[str, ...] = ("train", "val")  # what is pretrained on
    subset: float | int = 1.0  # a float is a fraction, an int a count of its images
    steps: int | tuple[int, ...] = 0  # a tuple: one run each, where the stage is last in its arm
    trainable: str = "all"
    init: str = "random"  # or a path; used only where the stage comes first in an arm
    init_missing: tuple[str, ...] = ()  # parts that a partial file may lack, e.g. ('layer4',)
    batch_size: int = 256  # global, in examples
    image_size: int = 224  # pixels
    model: Model = Model()
    moco: MoCo = MoCo()
    optimizer: Optimizer = Optimizer()
    augment: Policy = POLICIES["moco_v2"]
    input: Input = Input()

    @property
    def budgets(self) -> tuple[int, ...]:
        """Its steps as a tuple."""
        return self.steps if isinstance(self.steps, tuple) else (self.steps,)


_SECTION = "Write a dict of its fields."

# Fields that a config sets once and a stage may override.
SHARED = ("batch_size", "image_size", "model", "moco", "optimizer", "augment", "input")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run, resolved."""

    name: str = "hpt"  # of the study, in results.csv
    template: str = "stages"
    seeds: tuple[int, ...] = (0,)
    stages: Mapping[str, Stage] = dataclasses.field(default_factory=dict)
    arms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    target: str = ""  # the dataset on which every arm is evaluated; '': no evaluation
    evaluations: tuple[str, ...] = EVALUATIONS
    shared_stages: tuple[str, ...] = ()  # trained with seeds[0] alone
    metric: str = "top1"
    domain: str = ""  # aerial, driving, medical, natural, illustrations
    data_dir: str = ""  # relative folders are below it
    export: str = ""  # the arm whose last backbone is written to export/; '': none
    log_every_steps: int = 50
    save_every_steps: int = 0  # 0: by minutes alone
    save_every_minutes: float = 5.0
    parallel: Parallel = Parallel()
    dry_run: bool = False
    shared: Stage = Stage()  # the shared fields, for stages that no one wrote down


@dataclasses.dataclass(frozen=True)
class AdaptFields:
    """Short-hand fields of the template 'adapt'; 0 and '' are chosen from the data."""

    data: str = ""
    init: str = "random"
    steps: int = 0


TEMPLATE_FIELDS: dict[str, Any] = {"stages": None, "adapt": AdaptFields}


def default_config(template: str = "stages") -> config_dict.ConfigDict:
    """A mutable config with every field at its default, for config files to fill in."""
    # Neither locked nor type-safe: `resolve` reports all mistakes at once, where ml_collections
    # would stop at the first.
    config = config_dict.ConfigDict(type_safe=False)
    for field in dataclasses.fields(Config):
        if field.name not in ("shared", "stages", "arms"):
            config[field.name] = _mutable(getattr(Config(), field.name))
    for name in SHARED:
        config[name] = _mutable(getattr(Stage(), name))
    # The parts of a policy are unset until someone overrides the policy's own.
    config.augment = {"policy": "moco_v2", **dict.fromkeys(typing.get_type_hints(Policy))}
    for name in ("stages", "arms"):  # they keep their order
        config[name] = config_dict.ConfigDict(type_safe=False, sort_keys=False)
    config.template = template
    if TEMPLATE_FIELDS[template] is not None:
        for field in dataclasses.fields(TEMPLATE_FIELDS[template]):
            config[field.name] = field.default
    return config


def _mutable(value: Any) -> Any:
    nested = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if nested else value


def load(path: str) -> config_dict.ConfigDict:
    """Runs a config file's `get_config()`.

    Raises:
      UserError: if there is no such file, or whatever it raises: with its file and line.
    """
    if not Path(path).is_file():
        raise UserError("--config", path, "a config file", "(not found) Check the path.")
    try:
        namespace: dict[str, Any] = {"__name__": "config", "__file__": path}
        exec(compile(Path(path).read_bytes(), path, "exec"), namespace)
        if "get_config" not in namespace:
            raise UserError(path, None, "a function get_config()", "Define it.")
        config = namespace["get_config"]()
    except UserError:
        raise
    except Exception as error:  # whatever a config file raises is its author's to mend
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        raise UserError(
            f"{path}:{line}" if line else path,
            None,
            "a config file whose get_config() returns a config",
            f"It raised {type(error).__name__}: {error}",
        ) from None
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(
            path,
            type(config).__name__,
            "get_config() to return a ConfigDict",
            "Start from hpt_jax.config.default_config().",
        )
    return config


Inspect = Callable[[str], Mapping[str, Any] | None]


def resolve(
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]] = (),
    inspect_data: Inspect = lambda name: None,
    inspect_weights: Inspect = lambda path: None,
) -> Config:
    """Applies overrides, expands the template, checks everything and fills in what was left out.

    Args:
      config: what `get_config()` returned, or a plain nested dict.
      overrides: (dotted field, text) pairs, as from `--config.a.b=text`.
      inspect_data: for templates that choose from the data: facts of a dataset (see
        `data.datasets.inspect`), None where it is not there.
      inspect_weights: the same for a checkpoint (see `weights.inspect`).

    Raises:
      UserError: with all mistakes in one go.
    """
    plain = config.to_dict() if isinstance(config, config_dict.ConfigDict) else dict(config)
    raw = copy.deepcopy(plain)
    mistakes: list[Mistake] = []
    template = dict(overrides).get("template", raw.get("template", "stages"))
    if template not in tuple(TEMPLATE_FIELDS):
        fix = nearest(str(template), TEMPLATE_FIELDS)
        raise UserError("template", template, "a known template", fix)
    raw["template"] = template
    for path, text in overrides:
        _override(raw, path, text, mistakes)
    fields = TEMPLATE_FIELDS[template]
    if fields is not None:
        names = {field.name for field in dataclasses.fields(fields)}
        short = {name: raw.pop(name) for name in names if name in raw}
        built = _build(fields, short, "", mistakes)
        _resolve_stages(copy.deepcopy(raw), mistakes)
        if mistakes:  # a template must not compute with values of the wrong type
            raise UserError.of(mistakes)
        _adapt(raw, built, inspect_data, inspect_weights)
    resolved = _resolve_stages(raw, mistakes)
    mistakes += _check(resolved, alone=bool(mistakes))
    if mistakes:
        raise UserError.of(mistakes)
    return resolved


def _override(raw: dict[str, Any], path: str, text: str, mistakes: list[Mistake]) -> None:
    """Sets one field of the nested dict; stages and arms must already be there."""
    node, hints, names = raw, _top_hints(raw["template"]), path.split(".")
    for depth, name in enumerate(names):
        if not isinstance(hints, Mapping):
            parent = ".".join(names[:depth])
            fix = f"Set --config.{parent}=VALUE."
            mistakes.append(Mistake(f"config.{path}", text, f"nothing below {parent}", fix))
            return
        if name not in hints:
            here = ".".join(names[: depth + 1])
            fix = _suggest(name, hints)
            mistakes.append(Mistake(f"config.{here}", None, "a known field", fix))
            return
        hints = hints[name]
        if name in ("stages", "arms") and depth == 0:
            entries = raw.get(name)
            hints = dict.fromkeys(entries if isinstance(entries, Mapping) else (), hints)
        if depth < len(names) - 1 and isinstance(hints, Mapping):
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
            if not isinstance(node, dict):
                return  # the section itself is a mistake, and is reported as one
    if isinstance(hints, Mapping):
        fix = f"Set one of: {', '.join(hints)}."
        mistakes.append(Mistake(f"config.{path}", text, "one field", fix))
    else:
        node[names[-1]] = _parsed(text, hints)


def _parsed(text: str, hint: Any) -> Any:
    """The text of an override as a value; whether it is of type `hint` is checked later."""
    if hint is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    # A shell eats quotes and brackets, so `a,b` and a single item are tuples too.
    if hint == tuple[str, ...] and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if hint == tuple[int, ...] and type(value) is int else value


def _suggest(name: object, known: Iterable[str]) -> str:
    known = list(known)
    return nearest(str(name), known) if known else "There are none in this config."


def _top_hints(template: str) -> dict[str, Any]:
    """The schema as nested dicts of types, as a user sees it."""
    sections = {name: _hints(hint) for name, hint in typing.get_type_hints(Stage).items()}
    sections["augment"] = {"policy": str, **_hints(Policy)}
    top = {name: _hints(hint) for name, hint in typing.get_type_hints(Config).items()}
    del top["shared"]
    top |= {name: sections[name] for name in SHARED}
    top["stages"] = sections
    top["arms"] = tuple[str, ...]
    if TEMPLATE_FIELDS[template] is not None:
        top |= _hints(TEMPLATE_FIELDS[template])
    return top


def _hints(hint: Any) -> Any:
    return typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else hint


def _resolve_stages(raw: dict[str, Any], mistakes: list[Mistake]) -> Config:
    """Fills each stage with the shared fields that it does not override."""
    shared = {name: raw.pop(name) for name in SHARED if raw.get(name) is not None}
    arms = {}
    for name, members in _entries(raw, "arms", mistakes).items():
        arms[name] = _coerce(members, tuple[str, ...], f"arms.{name}", mistakes, ())
    inherited: list[Mistake] = []
    default = _build_stage(shared, "", inherited)
    mistakes += inherited
    stages = {}
    for name, own in _entries(raw, "stages", mistakes).items():
        at = f"stages.{name}."
        found: list[Mistake] = []
        if not isinstance(own, Mapping):
            mistakes.append(Mistake(f"stages.{name}", own, "a section", _SECTION))
            continue
        stages[name] = _build_stage(_merge(shared, own), at, found)
        mistakes += _once(inherited, found, at)
    known = _top_hints(raw.get("template", "stages"))
    top = _build(Config, raw, "", mistakes, ("stages", "arms", "shared"), known)
    return dataclasses.replace(top, stages=stages, arms=arms, shared=default)


def _entries(raw: dict[str, Any], name: str, mistakes: list[Mistake]) -> dict[str, Any]:
    """Takes `stages` or `arms` out of the nested dict."""
    entries = raw.pop(name, None) or {}
    if isinstance(entries, Mapping):
        return {str(key): value for key, value in entries.items()}
    mistakes.append(Mistake(name, entries, "a section", _SECTION))
    return {}


def _merge(shared: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """A stage's own fields over the shared ones, section by section; None is unset."""
    merged = dict(shared)
    for name, value in own.items():
        if isinstance(value, Mapping) and isinstance(shared.get(name), Mapping):
            merged[name] = _merge(shared[name], value)
        elif value is not None:
            merged[name] = value
    return merged


def _build_stage(values: dict[str, Any], where: str, mistakes: list[Mistake]) -> Stage:
    values = dict(values)
    augment = values.pop("augment", {})
    stage = _build(Stage, values, where, mistakes)
    return dataclasses.replace(stage, augment=_build_policy(augment, f"{where}augment", mistakes))


def _build_policy(values: Any, where: str, mistakes: list[Mistake]) -> Policy:
    if not isinstance(values, Mapping):
        mistakes.append(Mistake(where, values, "a section", _SECTION))
        return Policy()
    name = values.get("policy", "moco_v2")
    if name not in tuple(POLICIES):
        fix = nearest(str(name), POLICIES)
        mistakes.append(Mistake(f"{where}.policy", name, "a known policy", fix))
        return Policy()
    parts = {k: v for k, v in values.items() if k != "policy" and v is not None}
    overridden = dataclasses.asdict(POLICIES[name]) | parts
    return _build(
        Policy, overridden, f"{where}.", mistakes, known=("policy", *typing.get_type_hints(Policy))
    )


def _build(
    cls: Any,
    values: Any,
    where: str,
    mistakes: list[Mistake],
    skip: tuple[str, ...] = (),
    known: Iterable[str] | None = None,
) -> Any:
    """An instance of a dataclass from a dict, noting unknown fields and wrong types.

    Args:
      cls: the dataclass.
      values: what it is built from; None is unset, and so is what is of the wrong type.
      where: the place of `values` in the config, with a dot at its end.
      mistakes: new ones are added.
      skip: fields that may not be given.
      known: the names to suggest from, where they are not the dataclass's own.
    """
    if not isinstance(values, Mapping):
        mistakes.append(Mistake(where.rstrip("."), values, "a section", _SECTION))
        return cls()
    hints = {k: v for k, v in typing.get_type_hints(cls).items() if k not in skip}
    built = {}
    for name, value in values.items():
        if name not in hints:
            fix = _suggest(name, set(known or hints) - {name})
            mistakes.append(Mistake(f"{where}{name}", None, "a known field", fix))
        elif value is None:
            continue
        elif dataclasses.is_dataclass(hints[name]):
            built[name] = _build(hints[name], value, f"{where}{name}.", mistakes)
        else:
            default = getattr(cls(), name)
            built[name] = _coerce(value, hints[name], f"{where}{name}", mistakes, default)
    return cls(**built)


# What a message calls a type.
_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple[str, ...]: "a tuple of names such as ('a', 'b')",
    tuple[int, ...]: "a tuple of whole numbers such as (0, 1)",
    tuple[float, float]: "two numbers such as (0.1, 2.0)",
    float | int: "a number",
    int | tuple[int, ...]: "a whole number, or a tuple of them such as (50, 200)",
}


def _coerce(value: Any, hint: Any, where: str, mistakes: list[Mistake], default: Any) -> Any:
    """`value` as the type `hint`; where it is of another type, a mistake and the default."""
    fits = _fit(value, hint)
    if fits is None:
        fix = f"Set it with --config.{where}=VALUE."
        mistakes.append(Mistake(where, value, _EXPECTED[hint], fix))
        return default
    return fits[0]


def _fit(value: Any, hint: Any) -> tuple[Any] | None:
    """(value as hint,), or None if it does not fit."""
    if isinstance(hint, types.UnionType):
        # A float annotation must not swallow the ints of `float | int`: 1 image is not 100 %.
        exact = [h for h in typing.get_args(hint) if h is type(value)]
        for option in (*exact, *typing.get_args(hint)):
            if (fits := _fit(value, option)) is not None:
                return fits
        return None
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, (tuple, list)):
            return None
        each = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        parts = [_fit(v, h) for v, h in zip(value, each, strict=False)]
        if len(value) != len(each) or any(part is None for part in parts):
            return None
        return (tuple(part[0] for part in parts if part is not None),)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return (float(value),) if abs(value) < float("inf") else None
    return (value,) if type(value) is hint else None


# What a dry run assumes of images that are not there.
_ABSENT_DATA = {"images": 1000, "short_side": 224, "channels": 3, "labelled": False}


def _adapt(
    raw: dict[str, Any], fields: AdaptFields, inspect_data: Inspect, inspect_weights: Inspect
) -> None:
    """Template 'adapt': one folder, one init, and what the data says of the rest."""
    if not fields.data:
        raise UserError("data", "", "a dataset", "Set it with --config.data=folder:PATH.")
    data = inspect_data(fields.data) or _ABSENT_DATA
    # Powers of two keep batches in even groups; a batch never exceeds the set.
    raw["batch_size"] = raw["batch_size"] or max(
        16, min(128, 2 ** (data["images"].bit_length() - 2))
    )
    raw["image_size"] = raw["image_size"] or max(32, min(224, round(data["short_side"] / 16) * 16))
    model, moco = raw["model"], raw["moco"]
    known = {"channels": data["channels"]}
    if fields.init != "random":
        known |= inspect_weights(fields.init) or {}
        model |= {k: known[k] for k in ("arch", "width", "stem", "stem_stride") if k in known}
    elif raw["image_size"] < 100:
        model |= {"stem": "small"}
    # Where some images are grey and some are not, all become what most pretrained models take.
    raw["input"]["channels"] = raw["input"]["channels"] or known["channels"]
    rate = 0.06 if fields.init == "random" else 0.03
    raw["optimizer"]["learning_rate"] = raw["optimizer"]["learning_rate"] or rate
    # A queue beyond the set would hold an image's own old keys as its negatives.
    moco["queue_size"] = moco["queue_size"] or max(
        raw["batch_size"], 2 ** (data["images"].bit_length() - 1)
    )
    raw["target"] = fields.data if data["labelled"] else ""
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


class _Checks:
    """Mistakes found below one place of the config.

    Args:
      at: the place, with a dot at its end.
      alone: whether to judge each field by itself, since another one is wrong already and what
        they demand of each other would mislead.
    """

    def __init__(self, at: str, alone: bool):
        self.at = at
        self.alone = alone
        self.mistakes: list[Mistake] = []

    def need(self, ok: bool, field: str, value: object, expected: str, fix: str = "") -> None:
        """Notes a mistake unless `ok`."""
        if not ok:
            fix = fix or f"Set --config.{self.at}{field}."
            self.mistakes.append(Mistake(self.at + field, value, expected, fix))

    def need_together(
        self, ok: bool, field: str, value: object, expected: str, fix: str = ""
    ) -> None:
        """The same for what depends on other fields too."""
        self.need(ok or self.alone, field, value, expected, fix)


def _once(shared: list[Mistake], own: list[Mistake], at: str) -> list[Mistake]:
    """A stage's own mistakes: those it did not inherit from the shared fields."""
    seen = {(m.field, repr(m.value)) for m in shared}
    return [m for m in own if (m.field.removeprefix(at), repr(m.value)) not in seen]


def _check(config: Config, alone: bool) -> list[Mistake]:
    """Ranges, names and, unless `alone`, what fields demand of each other."""
    mistakes = _check_top(config, alone)
    shared = _check_shared(config.shared, "", alone)
    mistakes += shared
    for name, stage in config.stages.items():
        at = f"stages.{name}."
        own = _check_shared(stage, at, alone)
        mistakes += _once(shared, own, at) + _check_stage(stage, at, alone)
    return mistakes


def _check_top(config: Config, alone: bool) -> list[Mistake]:
    checks = _Checks("", alone)
    need = checks.need
    rule = "letters, digits and any of _ . @ + - %, not starting with a dot"
    safe = re.compile(r"[\w@+%-][\w.@+%-]*")
    for field, names in (("name", [config.name]), ("stages", config.stages), ("arms", config.arms)):
        for name in names:
            need(bool(safe.fullmatch(name)), field, name, rule, "Choose another name.")
    # jax.random.key keeps 32 bits of a seed: beyond them, seeds would silently be equal.
    good = bool(config.seeds) and min(config.seeds) >= 0 and max(config.seeds) < 2**32
    need(good, "seeds", config.seeds, "at least one, each in [0, 2**32)")
    need(len(set(config.seeds)) == len(config.seeds), "seeds", config.seeds, "distinct seeds")
    _check_arms(config, checks.need_together)
    for name in config.evaluations:
        known = nearest(name, EVALUATIONS)
        need(name in EVALUATIONS, "evaluations", name, "a known evaluation", known)
    need(config.metric == "top1", "metric", config.metric, "'top1'")
    arm = config.export
    known = _suggest(arm, config.arms)
    checks.need_together(not arm or arm in config.arms, "export", arm, "the name of an arm", known)
    need(config.log_every_steps >= 1, "log_every_steps", config.log_every_steps, "at least 1")
    need(config.save_every_steps >= 0, "save_every_steps", config.save_every_steps, "at least 0")
    minutes = config.save_every_minutes
    need(minutes > 0, "save_every_minutes", minutes, "more than 0")
    maps = ("shard_map", "pmap")
    need(config.parallel.map in maps, "parallel.map", config.parallel.map, f"one of {maps}")
    need(config.parallel.devices >= 0, "parallel.devices", config.parallel.devices, "at least 0")
    return checks.mistakes


def _check_arms(config: Config, need: Callable[..., None]) -> None:
    """Checks what arms, stages, the target and shared stages demand of each other."""
    need(bool(config.arms), "arms", None, "at least one arm", "For example arms.T = ('target',).")
    for arm, names in config.arms.items():
        for name in names:
            known = _suggest(name, config.stages)
            need(name in config.stages, f"arms.{arm}", name, "a stage", known)
    need(
        bool(config.target) or () not in config.arms.values(),
        "target",
        config.target,
        "a dataset, since an empty arm is random weights with the target's pixel statistics",
    )
    shared = config.shared_stages
    for name in shared:
        known = _suggest(name, config.stages)
        need(name in config.stages, "shared_stages", name, "a stage", known)
    for arm, names in config.arms.items():
        # One model for all seeds cannot start from a parent that each seed has its own of.
        last = max((i for i, name in enumerate(names) if name in shared), default=0)
        for name in names[:last]:
            expected = f"{name!r} too, which comes before {names[last]!r} in the arm {arm!r}"
            need(name in shared, "shared_stages", shared, expected)


def _check_shared(stage: Stage, at: str, alone: bool) -> list[Mistake]:
    """Checks the fields that stages share."""
    checks = _Checks(at, alone)
    need, batch = checks.need, stage.batch_size
    need(batch >= 2, "batch_size", batch, "at least 2")
    need(stage.image_size >= 8, "image_size", stage.image_size, "at least 8 pixels")
    _check_model(stage.model, need)
    _check_moco(stage.moco, need)
    if batch >= 2:
        _check_batch(stage, checks.need_together)
    opt = stage.optimizer
    need(opt.learning_rate >= 0, "optimizer.learning_rate", opt.learning_rate, "at least 0")
    need(opt.weight_decay >= 0, "optimizer.weight_decay", opt.weight_decay, "at least 0")
    need(0 <= opt.momentum < 1, "optimizer.momentum", opt.momentum, "a number in [0, 1)")
    schedules = ("cosine", "constant")
    need(opt.schedule in schedules, "optimizer.schedule", opt.schedule, f"one of {schedules}")
    need(opt.warmup_steps >= 0, "optimizer.warmup_steps", opt.warmup_steps, "at least 0")
    _check_policy(stage.augment, need)
    _check_input(stage.input, need)
    return checks.mistakes


def _check_model(model: Model, need: Callable[..., None]) -> None:
    known = nearest(model.arch, ARCHITECTURES)
    need(model.arch in ARCHITECTURES, "model.arch", model.arch, "a known architecture", known)
    need(model.width >= 1, "model.width", model.width, "at least 1")
    need(model.stem in ("imagenet", "small"), "model.stem", model.stem, "imagenet or small")
    need(model.stem_stride in (1, 2), "model.stem_stride", model.stem_stride, "1 or 2")
    dtypes = ("float32", "bfloat16", "float64")
    need(model.dtype in dtypes, "model.dtype", model.dtype, f"one of {dtypes}")
    need(model.bn_groups >= 1, "model.bn_groups", model.bn_groups, "at least 1")


def _check_moco(moco: MoCo, need: Callable[..., None]) -> None:
    need(moco.queue_size >= 1, "moco.queue_size", moco.queue_size, "at least 1")
    need(moco.dim >= 2, "moco.dim", moco.dim, "at least 2")
    need(0 <= moco.momentum <= 1, "moco.momentum", moco.momentum, "a number in [0, 1]")
    need(moco.temperature > 0, "moco.temperature", moco.temperature, "more than 0")
    need(moco.shuffle_block >= 0, "moco.shuffle_block", moco.shuffle_block, "at least 0")


def _check_batch(stage: Stage, need: Callable[..., None]) -> None:
    """Checks what batch norm, queue and shuffling demand of the batch."""
    batch, groups = stage.batch_size, stage.model.bn_groups
    size, block = stage.moco.queue_size, stage.moco.shuffle_block
    if groups >= 1:
        need(
            batch % groups == 0 and batch >= 2 * groups,
            "model.bn_groups",
            groups,
            f"a number that cuts batch_size = {batch} into equal groups of at least 2",
        )
    if size >= 1:
        need(size >= batch, "moco.queue_size", size, f"at least batch_size = {batch}")
    smallest = min(2 * batch // max(groups, 1), batch)
    need(
        block <= 0 or (block >= smallest and batch % block == 0),
        "moco.shuffle_block",
        block,
        f"0, or a divisor of batch_size = {batch} that holds at least two batch-norm groups",
    )


def _check_policy(policy: Policy, need: Callable[..., None]) -> None:
    for field in dataclasses.fields(Policy):
        name, value = f"augment.{field.name}", getattr(policy, field.name)
        if field.name.endswith("_probability"):
            need(0 <= value <= 1, name, value, "a number in [0, 1]")
        elif field.name == "hue":
            need(0 <= value <= 0.5, name, value, "a number in [0, 0.5], in turns")
        elif isinstance(value, float):
            need(value >= 0, name, value, "at least 0")
        elif field.name == "crop_scale":
            need(0 < value[0] <= value[1] <= 1, name, value, "(low, high), 0 < low <= high <= 1")
        else:
            need(0 < value[0] <= value[1], name, value, "(low, high) with 0 < low <= high")


def _check_input(values: Input, need: Callable[..., None]) -> None:
    need(values.store_px >= 0, "input.store_px", values.store_px, "at least 0 pixels")
    need(values.channels >= 0, "input.channels", values.channels, "at least 0")
    crop = values.center_crop
    need(0 < crop <= 1, "input.center_crop", crop, "a share in (0, 1]")
    for name in ("val_fraction", "test_fraction"):
        share = getattr(values, name)
        need(0 < share < 0.5, f"input.{name}", share, "a share between 0 and 0.5")
    share = values.max_unreadable
    need(0 <= share < 1, "input.max_unreadable", share, "a share in [0, 1)")


def _check_stage(stage: Stage, at: str, alone: bool) -> list[Mistake]:
    """Checks the fields that only a stage has."""
    checks = _Checks(at, alone)
    need, trainable = checks.need, stage.trainable
    close = nearest(trainable, TRAINABLE)
    need(trainable in TRAINABLE, "trainable", trainable, f"one of {TRAINABLE}", close)
    if trainable in ("all", "batch_norm"):
        budgets = stage.budgets
        given = need if stage.steps != 0 else checks.need_together
        given(bool(budgets) and min(budgets) >= 1, "steps", stage.steps, "at least 1 step")
        need(len(set(budgets)) == len(budgets), "steps", stage.steps, "distinct numbers")
    if trainable != "nothing":
        example = "For example 'folder:PATH'."
        checks.need_together(bool(stage.dataset), "dataset", "", "a dataset", example)
    need(bool(stage.splits), "splits", stage.splits, "at least one split")
    need(len(set(stage.splits)) == len(stage.splits), "splits", stage.splits, "distinct splits")
    for split in stage.splits:
        allowed = "train or val: test images are never pretrained on"
        need(split in ("train", "val"), "splits", split, allowed)
    subset = stage.subset
    good = 0 < subset <= 1 if isinstance(subset, float) else subset >= 1
    need(good, "subset", subset, "a fraction in (0, 1] or a count of at least 1")
    return checks.mistakes
