"""The template 'study': one of the paper's analyses of one base, source and target.

Expands the short-hand fields of `config.StudyFields` into stages and arms. A stage that several
analyses have has one name and one recipe, so that studies in one workdir share it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from hpt_jax.adapt import Inspect, fitting_batch, fitting_queue
from hpt_jax.augment.policies import ROBUSTNESS
from hpt_jax.config import ANALYSES, Choice, StudyFields
from hpt_jax.data import SCHEMES
from hpt_jax.errors import Mistake, UserError, nearest
from hpt_jax.models.resnet import ARCHITECTURE_FIELDS
from hpt_jax.paper import DATASETS, TRIPLES, Triple

Arms = dict[str, tuple[str, ...]]
_KINDS = " or ".join(f"{scheme}:..." for scheme in SCHEMES)

PERCENTS = (1, 10, 25, 100)  # of the target's images


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a study is, where its config says nothing else.

    Attributes:
      fields: of the config.
      budgets: of `StudyFields`.
      budgets_of: the same for single analyses, before `budgets`.
      largest_queue: the queue's size, where the dataset has as many images or more.
      rates: learning rate from random weights and of the source; and on the target of what has
        learned already.
      labels: of the semi-supervised probes, where there are not more classes.
      probes: the other evaluations, the figures' first.
      tunes_sequential: whether sequential pretraining is judged by fine-tuning too.
      one_base: whether all seeds start from one base and one source, as from public checkpoints;
        else each seed has its own, so that the spread over seeds is the whole hierarchy's.
    """

    fields: Mapping[str, Any]
    budgets: Mapping[str, Any]
    budgets_of: Mapping[str, Mapping[str, Any]]
    largest_queue: int
    rates: tuple[float, float]
    labels: int
    probes: tuple[str, ...]
    tunes_sequential: bool
    one_base: bool


SCALES = {
    # What docs/reproduction.md was measured with.
    "small": Scale(
        fields=dict(
            image_size=32,
            seeds=(0, 1, 2),
            model=dict(arch="resnet10", width=16, stem="small"),
            moco=dict(momentum=0.99),  # the key encoder has hundreds of steps, not thousands
            finetune=dict(steps=(100,), epochs=(), batch_size=64, bn_groups=1, eval_every=20),
            save_every_minutes=1.0,
        ),
        budgets=dict(
            base_steps=(1000,),
            source_steps=400,
            source_scratch_steps=400,
            steps=(200,),
            scratch_steps=(200,),
            bn_steps=(200,),
        ),
        budgets_of={
            # 1,600 from scratch are what base, source and target take together.
            "separability": dict(steps=(10, 50, 200), scratch_steps=(50, 200, 600, 1600)),
            "base_quality": dict(base_steps=(100, 300, 1000)),
        },
        largest_queue=4096,
        rates=(0.12, 0.06),
        labels=100,
        probes=("linear", "knn"),
        tunes_sequential=False,  # for it would take longer than all else in that study
        one_base=False,
    ),
    "paper": Scale(
        fields={},  # the defaults are the paper's
        budgets=dict(
            base_steps=(1_000_900,),  # 200 epochs of ImageNet in batches of 256
            source_steps=50_000,
            source_scratch_steps=200_000,
            steps=(5_000,),
            scratch_steps=(100_000,),
            bn_steps=(5_000,),
        ),
        budgets_of={
            "separability": dict(
                steps=(50, 500, 5_000, 50_000),
                scratch_steps=(5_000, 50_000, 100_000, 200_000, 400_000),
            ),
            "semi_supervised": dict(scratch_steps=(400_000,)),
            "base_quality": dict(base_steps=(100_090, 1_000_900, 4_003_600)),  # 20, 200, 800 epochs
        },
        largest_queue=65_536,
        rates=(0.03, 0.03),
        labels=1000,
        probes=("linear_sgd", "linear"),
        tunes_sequential=True,
        one_base=True,
    ),
}

# What a dry run assumes of images that are not there.
_ABSENT: Mapping[str, Any] = {"images": 100_000, "channels": 3, "classes": 0, "multi_label": False}


def expand(
    raw: dict[str, Any], fields: StudyFields, inspect_data: Inspect, inspect_weights: Inspect
) -> tuple[Choice, ...]:
    """Writes stages, arms, target and evaluations into a config.

    Args:
      raw: the config as nested dicts, short-hand fields taken out; None is unset. It is changed.
      fields: the short-hand fields.
      inspect_data: facts of a dataset (see `data.datasets.inspect`), None where it is not there.
      inspect_weights: the same for a checkpoint.

    Returns:
      Nothing: what is chosen here is chosen by the scale.

    Raises:
      UserError: short-hand fields are wrong or missing; all of them at once.
    """
    analysis = raw.get("analysis") or ""
    fields = _checked(fields, analysis, inspect_weights)
    scale = SCALES[fields.scale]
    budgets = {**scale.budgets, **scale.budgets_of.get(analysis, {})}
    # Who sets one budget means the arms beside it too.
    if fields.steps:
        budgets |= {"scratch_steps": fields.steps, "bn_steps": fields.steps[-1:]}
    if fields.source_steps:
        budgets["source_scratch_steps"] = fields.source_steps
    fields = dataclasses.replace(
        fields, **{name: getattr(fields, name) or value for name, value in budgets.items()}
    )
    triple = TRIPLES.get(fields.triple)
    if triple and triple.target != fields.target:
        triple = None  # what it says is of its own target
    arms = _arms(analysis, fields)
    names = dict.fromkeys(name for arm in arms.values() for name in arm)  # each once, in order
    roles = {_role(name) for name in names} | {"target"}
    sets = [getattr(fields, role) for role in ("base", "source", "target") if role in roles]
    facts = {name: inspect_data(name) or _ABSENT for name in sets if _is_dataset(name)}
    most = max(one["channels"] for one in facts.values())
    known = {"channels": (triple and triple.channels) or most}
    if not _is_dataset(fields.base):
        known |= inspect_weights(fields.base) or {}
    _fill(raw, {"model": {name: known[name] for name in ARCHITECTURE_FIELDS if name in known}})
    # Where some images are grey and some are not, all become what the base takes.
    _fill(raw, {"input": {"channels": known["channels"]}})
    if triple and triple.image_size and fields.scale == "small":
        _fill(raw, {"image_size": triple.image_size})
    _fill(raw, scale.fields)
    _fill(raw, {"name": f"{fields.triple}_{analysis}" if triple else analysis})
    _fill(raw, _of_target(fields, triple, facts[fields.target]))
    _fill(raw, {"evaluations": _evaluations(analysis, scale, triple, facts[fields.target])})
    if fields.scale == "small":
        smallest = min(one["images"] for one in facts.values())
        _fill(raw, {"batch_size": fitting_batch(smallest)})
    raw["stages"] = {
        name: _stage(name, fields, scale, raw, facts.get(getattr(fields, _role(name)), _ABSENT))
        for name in names
    }
    raw["arms"] = arms
    raw["target"] = fields.target
    if raw.get("shared_stages") is None:
        shared = [name for name in names if _role(name) != "target"]
        if not scale.one_base:  # a checkpoint is one model, however many seeds the target has
            shared = [name for name in shared if name == "base" and not _is_dataset(fields.base)]
        raw["shared_stages"] = tuple(shared)
    return ()


def _checked(fields: StudyFields, analysis: str, inspect_weights: Inspect) -> StudyFields:
    """The fields with the triple's in place of what is left out."""
    mistakes = []
    if analysis not in ANALYSES:
        mistakes.append(
            Mistake("analysis", analysis, "one of the analyses", nearest(analysis, ANALYSES))
        )
    if fields.scale not in SCALES:
        fix = "Set --config.scale=small or paper."
        mistakes.append(Mistake("scale", fields.scale, f"one of {tuple(SCALES)}", fix))
    triple, given = fields.triple, {"base": fields.base, "target": fields.target}
    if analysis == "sequential":
        given["source"] = fields.source
    # A source of another field than one's own target would be worse than none.
    if not triple and not any(given.values()):
        triple = next(iter(TRIPLES))
    if triple and triple not in TRIPLES:
        mistakes.append(Mistake("triple", triple, "a known triple", nearest(triple, TRIPLES)))
    elif triple:
        given = {role: name or getattr(TRIPLES[triple], role) for role, name in given.items()}
    for role, name in given.items():
        fix = f"Set --config.{role}=folder:PATH."
        if not name and triple in ("", *TRIPLES):
            expected = f"a dataset: {analysis} needs {', '.join(given)}, and some are given"
            mistakes.append(Mistake(role, name, expected, fix))
        elif name and role != "base" and not _is_dataset(name):
            fix = f"For a folder of images: --config.{role}=folder:{name}."
            mistakes.append(Mistake(role, name, f"a dataset, {_KINDS}", fix))
    base = given["base"]
    if base and not _is_dataset(base):
        fix = f"For a folder of images: --config.base=folder:{base}."
        if analysis == "base_quality":
            expected = "a dataset, since base_quality trains its bases for shorter and longer"
            mistakes.append(Mistake("base", base, expected, fix))
        try:
            inspect_weights(base)
        except UserError as error:
            if os.path.isfile(base):  # it is meant as a checkpoint
                mistakes += [dataclasses.replace(one, field="base") for one in error.mistakes]
            else:
                mistakes.append(Mistake("base", base, f"a checkpoint, or a dataset, {_KINDS}", fix))
    if analysis == "base_quality" and len(fields.base_steps) == 1:
        expected = "two budgets or more to compare"
        fix = f"Set --config.base_steps={fields.base_steps[0] // 10 or 1},{fields.base_steps[0]}."
        mistakes.append(Mistake("base_steps", fields.base_steps, expected, fix))
    if mistakes:
        raise UserError.of(mistakes)
    return dataclasses.replace(fields, triple=triple, **dict[str, Any](given))


def _is_dataset(name: str) -> bool:
    """Whether a name is a dataset's; else it is a checkpoint's path."""
    return name.partition(":")[0] in SCHEMES


def _arms(analysis: str, fields: StudyFields) -> Arms:
    """The arms of an analysis.

    `@` in the name of an arm or a stage starts its variant: a policy of augmentation, a share of
    the images, or the steps of the base.
    """
    random: Arms = {"random": ()}
    base: Arms = {"B": ("base", "target_statistics")}
    target: Arms = {"T": ("scratch",), "B+T": ("base", "target")}
    bn: Arms = {"HPT-BN": ("base", "target_bn")}
    if analysis == "separability":
        return {**random, "B-direct": ("base",), **base, **target, **bn}
    if analysis == "semi_supervised":
        return {**random, **base, **target, **bn}
    if analysis == "sequential":
        return {
            **random,
            **base,
            "S": ("source_scratch", "target_statistics"),
            "T": ("scratch",),
            "B+S": ("base", "source", "target_statistics"),
            "B+T": ("base", "target"),
            "S+T": ("source_scratch", "target"),
            "B+S+T": ("base", "source", "target"),
        }
    if analysis == "augmentation_robustness":
        varied, variants = target, tuple(ROBUSTNESS)
    elif analysis == "data_robustness":
        varied, variants = {**target, **bn}, tuple(f"{percent}%" for percent in PERCENTS)
    else:
        arms: Arms = {"T": ("scratch",)}
        for steps in fields.base_steps:
            stage = "base" if steps == fields.base_steps[-1] else f"base@{steps}"
            arms[f"B@base_{steps}"] = (stage, "target_statistics")
            arms[f"B+T@base_{steps}"] = (stage, "target")
        return arms
    return {
        **base,
        **{
            f"{arm}@{variant}": (*stages[:-1], _variant(stages[-1], variant))
            for arm, stages in varied.items()
            for variant in variants
        },
    }


def _variant(stage: str, variant: str) -> str:
    """A stage's name with its variant; the plain stage where that changes nothing."""
    return stage if variant in (ROBUSTNESS[0], f"{PERCENTS[-1]}%") else f"{stage}@{variant}"


def _role(name: str) -> str:
    """Which of the three datasets a stage is trained on."""
    kind = name.partition("@")[0]
    return "base" if kind == "base" else "source" if kind.startswith("source") else "target"


def _stage(
    name: str,
    fields: StudyFields,
    scale: Scale,
    raw: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The recipe of a stage by its name, which ends in its variant."""
    kind, _, variant = name.partition("@")
    if kind == "base" and not _is_dataset(fields.base):
        return {"init": fields.base, "trainable": "nothing"}
    dataset = getattr(fields, _role(name))
    if kind == "target_statistics":
        return {"dataset": dataset, "trainable": "statistics"}
    steps: Any = {
        "base": fields.base_steps[-1],
        "source": fields.source_steps,
        "source_scratch": fields.source_scratch_steps,
        "scratch": fields.scratch_steps,
        "target": fields.steps,
        "target_bn": fields.bn_steps,
    }[kind]
    stage: dict[str, Any] = {"dataset": dataset, "steps": steps}
    if kind == "target_bn":
        stage["trainable"] = "batch_norm"
    images = facts["images"]
    if variant.endswith("%"):
        stage["subset"] = float(variant.removesuffix("%")) / 100
        images = max(1, round(stage["subset"] * images))
    elif variant.isdecimal():
        stage["steps"] = int(variant)
    elif variant:
        stage["augment"] = {"policy": variant}
    if (raw.get("optimizer") or {}).get("learning_rate") is None:
        continued = kind in ("target", "target_bn")
        stage["optimizer"] = {"learning_rate": scale.rates[continued]}
    if (raw.get("moco") or {}).get("queue_size") is None:
        queue = scale.largest_queue
        if fields.scale == "small":
            queue = max(raw["batch_size"], min(queue, fitting_queue(images, raw["batch_size"])))
        stage["moco"] = {"queue_size": queue}
    return stage


def _of_target(
    fields: StudyFields, triple: Triple | None, facts: Mapping[str, Any]
) -> dict[str, str]:
    """Metric and domain: the paper's of its own datasets, the triple's, else by the labels."""
    for one in DATASETS.values():
        if one.dataset == fields.target:
            return {"metric": one.metric, "domain": one.domain}
    by_labels = "macro_auroc" if facts["multi_label"] else "top1"
    return {"metric": (triple and triple.metric) or by_labels}


def _evaluations(
    analysis: str, scale: Scale, triple: Triple | None, facts: Mapping[str, Any]
) -> tuple[str, ...]:
    labels = max(scale.labels, facts["classes"])  # at least one of each
    if analysis == "semi_supervised":
        return (f"finetune_{labels}", f"linear_{labels}")
    probes = (triple and triple.probes) or scale.probes
    if analysis == "sequential" and scale.tunes_sequential:
        return (*probes, f"finetune_{labels}")
    return probes


def _fill(raw: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Sets what is unset, section by section."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            raw[name] = raw.get(name) or {}
            _fill(raw[name], value)
        elif raw.get(name) is None:
            raw[name] = value
