"""From what a user wrote to a checked `Config`: overrides, templates, shared fields, types."""

from __future__ import annotations

import ast
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from hpt_jax import adapt, studies
from hpt_jax.adapt import Inspect
from hpt_jax.augment.policies import POLICIES, Policy
from hpt_jax.config import MADE, SHARED, TEMPLATE_FIELDS, Choice, Config, Stage
from hpt_jax.errors import Mistake, UserError, nearest
from hpt_jax.validate import check, once, suggest

_SECTION = "Write a dict of its fields."

# How a template's short-hand fields become stages, arms and the rest.
_EXPAND: dict[str, Callable[..., tuple[Choice, ...]]] = {
    "adapt": adapt.expand,
    "study": studies.expand,
}


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
    raw = _copied(plain)
    mistakes: list[Mistake] = []
    template = dict(overrides).get("template", raw.get("template", "stages"))
    if not isinstance(template, str) or template not in TEMPLATE_FIELDS:
        fix = nearest(str(template), TEMPLATE_FIELDS)
        raise UserError("template", template, "a known template", fix)
    raw["template"] = template
    for path, text in overrides:
        _override(raw, path, text, mistakes)
    fields = TEMPLATE_FIELDS[template]
    choices: tuple[Choice, ...] = ()
    if fields is not None:
        names = {field.name for field in dataclasses.fields(fields)}
        short = {name: raw.pop(name) for name in names if name in raw}
        built = _build(fields, short, "", mistakes)
        _resolve_stages(_copied(raw), mistakes)
        if mistakes:  # a template must not compute with values of the wrong type
            raise UserError.of(mistakes)
        choices = _EXPAND[template](raw, built, inspect_data, inspect_weights)
    resolved = dataclasses.replace(_resolve_stages(raw, mistakes), choices=choices)
    mistakes += check(resolved, alone=bool(mistakes))
    if mistakes:
        raise UserError.of(mistakes)
    return resolved


def _copied(values: Mapping[str, Any], depth: int = 4) -> dict[str, Any]:
    """A copy of all that is changed here, down to the fields of a stage's sections.

    What a field holds is anyone's: it may hold itself, or refuse to be copied.
    """
    return {
        name: _copied(value, depth - 1) if depth > 1 and isinstance(value, Mapping) else value
        for name, value in values.items()
    }


def value_of(name: str, config: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> Any:
    """What `resolve` will find in a field at the top, for those who must know it beforehand.

    Its type is not checked yet.
    """
    texts = [text for path, text in overrides if path == name]
    hint = typing.get_type_hints(Config)[name]
    return _parsed(texts[-1], hint) if texts else config.get(name)


def _override(raw: dict[str, Any], path: str, text: str, mistakes: list[Mistake]) -> None:
    """Sets one field of the nested dict; stages and arms must already be there."""
    node, hints, names = raw, _top_hints(raw["template"]), path.split(".")
    fields = TEMPLATE_FIELDS[raw["template"]]
    if fields is not None and names[0] in ("stages", "arms"):
        expected = f"nothing, since the template {raw['template']!r} makes the {names[0]}"
        known = ", ".join(field.name for field in dataclasses.fields(fields))
        mistakes.append(Mistake(f"config.{path}", text, expected, f"Set one of: {known}."))
        return
    for depth, name in enumerate(names):
        if not isinstance(hints, Mapping):
            parent = ".".join(names[:depth])
            fix = f"Set --config.{parent}=VALUE."
            mistakes.append(Mistake(f"config.{path}", text, f"nothing below {parent}", fix))
            return
        if name not in hints:
            here = ".".join(names[: depth + 1])
            fix = suggest(name, hints)
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
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as documented
        value = {"true": True, "false": False}.get(text.lower(), text)
    # A shell eats quotes and brackets, so `a,b` and a single item are tuples too.
    if hint == tuple[str, ...] and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    alone = {tuple[int, ...]: (int,), tuple[float, ...]: (int, float)}.get(hint, ())
    return (value,) if type(value) in alone else value


def _top_hints(template: str) -> dict[str, Any]:
    """The schema as nested dicts of types, as a user sees it."""
    sections = {name: _hints(hint) for name, hint in typing.get_type_hints(Stage).items()}
    sections["augment"] = {"policy": str, **_hints(Policy)}
    top = {name: _hints(hint) for name, hint in typing.get_type_hints(Config).items()}
    for name in MADE:
        del top[name]
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
    shared = {name: raw.pop(name, None) for name in SHARED}
    shared = {name: value for name, value in shared.items() if value is not None}
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
        mistakes += once(inherited, found, at)
    known = _top_hints(raw.get("template", "stages"))
    top = _build(Config, raw, "", mistakes, ("stages", "arms", *MADE), known)
    return dataclasses.replace(top, stages=stages, arms=arms, shared=default)


def _entries(raw: dict[str, Any], name: str, mistakes: list[Mistake]) -> dict[str, Any]:
    """Takes `stages` or `arms` out of the nested dict."""
    entries = raw.pop(name, None)
    entries = {} if entries is None else entries
    if isinstance(entries, Mapping):
        return {str(key): value for key, value in entries.items()}
    mistakes.append(Mistake(name, entries, "a section", _SECTION))
    return {}


def _merge(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's own fields over the shared ones, section by section; None is unset."""
    merged = dict(shared)
    for name, value in own.items():
        if isinstance(value, Mapping) and isinstance(shared.get(name), Mapping):
            merged[name] = dict(shared[name]) | _given(value)
        elif value is not None:
            merged[name] = value
    return merged


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


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
    if not isinstance(name, str) or name not in POLICIES:
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
            fix = suggest(name, set(known or hints) - {name})
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
    tuple[float, ...]: "a tuple of numbers such as (0.33, 0.67)",
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
        return (float(value),) if abs(value) <= sys.float_info.max else None
    return (value,) if type(value) is hint else None
