"""Config -> stages, arms and their identities. Pure: touches no device and no data.

A stage's id is `<name>-<hash>`: the hash covers everything that changes its result and nothing
else, so that arms share the stages they have in common and a finished stage is never done twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hpt_jax import config as config_lib
from hpt_jax.errors import Mistake, UserError, nearest

# Raised by hand when the same config would train to other numbers than before.
RECIPE_VERSION = 3
# The same for evaluations.
EVALUATION_VERSION = 3
UNKNOWN = "????????"  # in ids of stages whose data or weights are not there


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage to run: a resolved config, a seed and a parent.

    Attributes:
      name: as in the config.
      id: `<name>-<hash>`, the name of its folder.
      config: with `steps` a single number.
      seed: of weights, order and augmentation.
      parent: the stage before it in the arm, or None.
      fingerprint: of its dataset ('' where it reads none).
      start: what it starts from: the parent's id, 'random', or the weights' fingerprint.
    """

    name: str
    id: str
    config: config_lib.Stage
    seed: int
    parent: Stage | None
    fingerprint: str
    start: str

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.config.budgets[0] if self.trains else 0

    @property
    def trains(self) -> bool:
        """Whether gradients flow."""
        return self.config.trainable in ("all", "batch_norm")

    @property
    def trunk(self) -> str:
        """Hash of what stages share that differ in when they end alone; '' where none can.

        Under the schedule 'anytime' they are the same up to the `branch_step` of the shorter one.
        """
        if not self.trains or self.config.optimizer.schedule != "anytime":
            return ""
        trunk = identity(self.config, self.seed, self.start, self.fingerprint, ends=False)
        return "" if trunk == UNKNOWN else trunk

    @property
    def branch_step(self) -> int:
        """The step after which the rate falls, where its schedule is 'anytime'."""
        return branch_step(self.config.optimizer, self.steps)

    @property
    def chain(self) -> tuple[Stage, ...]:
        """The stages from the first to this one."""
        return (*(self.parent.chain if self.parent else ()), self)


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm at one seed and one budget: the stage at its end is evaluated.

    Attributes:
      arm: as in the config.
      seed: the pretraining seed of its last stage.
      stage: the arm's last stage.
      pretrain_steps: optimiser steps on the target dataset.
    """

    arm: str
    seed: int
    stage: Stage
    pretrain_steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a config asks for.

    Attributes:
      config: resolved.
      stages: each once, parents first.
      runs: in the order of arms, seeds and budgets.
      target_fingerprint: of the target dataset.
      config_id: hash of the resolved config, less what names places and machines.
    """

    config: config_lib.Config
    stages: tuple[Stage, ...]
    runs: tuple[Run, ...]
    target_fingerprint: str
    config_id: str


Fingerprint = Callable[[str], str | None]


def make_plan(
    config: config_lib.Config, data_fingerprint: Fingerprint, weights_fingerprint: Fingerprint
) -> Plan:
    """Lays out stages and runs.

    Args:
      config: resolved.
      data_fingerprint: dataset name -> fingerprint, None where the data is absent.
      weights_fingerprint: path -> fingerprint, None where there is no such file.
    """
    fingerprints = {
        name: data_fingerprint(name) or UNKNOWN
        for name in {stage.dataset for stage in config.stages.values()} | {config.target}
        if name
    }
    fingerprints[""] = ""
    weights = {
        stage.init: weights_fingerprint(stage.init) or UNKNOWN
        for stage in config.stages.values()
        if stage.init != "random"
    }

    def make(name: str, stage: config_lib.Stage, seed: int, parent: Stage | None) -> Stage:
        data = fingerprints[stage.dataset]
        start = parent.id if parent else weights.get(stage.init, stage.init)
        stage_id = f"{name}-{identity(stage, seed, start, data)}"
        return Stage(name, stage_id, stage, seed, parent, data, start)

    def chain(names: tuple[str, ...], seed: int, budget: int) -> Stage:
        if not names:
            return make("random", _random_stage(config), seed, None)
        *before, last = names
        steps = [config.stages[name].budgets[-1] for name in before] + [budget]
        parent = None
        for name, count in zip([*before, last], steps, strict=True):
            own = config.seeds[0] if name in config.shared_stages else seed
            one = dataclasses.replace(config.stages[name], steps=count)
            parent = make(name, one, own, parent)
        assert parent is not None
        return parent

    runs: list[Run] = []
    for arm, names in config.arms.items():
        for seed in config.seeds:
            # Shorter ones first: under the schedule 'anytime' the longer go on from them.
            for budget in sorted(config.stages[names[-1]].budgets) if names else (0,):
                stage = chain(names, seed, budget)
                on_target = _steps_on(config.target, fingerprints[config.target], stage)
                # A chain of shared stages is one model, however many seeds there are.
                run = Run(arm, stage.seed, stage, on_target)
                if run not in runs:
                    runs.append(run)
    if config.target:
        _check_distinct(runs)
    target_fingerprint = fingerprints[config.target]
    return Plan(config, _each_once(runs), tuple(runs), target_fingerprint, _config_id(config))


def branch_step(optimizer: config_lib.Optimizer, steps: int) -> int:
    """The step (from 0) at which the decay of a schedule 'anytime' of `steps` steps begins."""
    # .2 of 50 is 10, whatever floats say. At its last step a stage does what no longer one does.
    decaying = max(math.ceil(optimizer.decay * steps - 1e-9), 1)
    return max(steps - decaying, min(optimizer.warmup_steps, steps - 1))


def _each_once(runs: list[Run]) -> tuple[Stage, ...]:
    """All stages, parents first; arms share those they have in common."""
    # By the stage itself where the id is unknown: absent data makes no two stages one.
    stages = {
        stage if stage.id.endswith(UNKNOWN) else stage.id: stage
        for run in runs
        for stage in run.stage.chain
    }
    return tuple(stages.values())


def _steps_on(target: str, fingerprint: str, stage: Stage) -> int:
    """Steps that a stage's chain takes on a dataset."""

    def same(one: Stage) -> bool:
        if fingerprint == UNKNOWN:
            return one.config.dataset == target
        return one.fingerprint == fingerprint  # a folder can be named in many ways

    return sum(one.steps for one in stage.chain if same(one))


def _check_distinct(runs: list[Run]) -> None:
    """Refuses budgets that results could not tell apart, by their steps on the target."""
    seen: set[tuple[str, int, int]] = set()
    for run in runs:
        key = (run.arm, run.seed, run.pretrain_steps)
        if key in seen:
            raise UserError(
                f"arms.{run.arm}",
                tuple(stage.name for stage in run.stage.chain),
                "budgets that differ in steps on the target",
                f"Give each budget its own stage, and an arm such as '{run.arm}@"
                f"{run.stage.name}_{run.stage.steps}'.",
            )
        seen.add(key)


def _random_stage(config: config_lib.Config) -> config_lib.Stage:
    """The implicit stage of an empty arm: random weights, the target's pixel statistics."""
    return dataclasses.replace(
        config.shared, dataset=config.target, trainable="nothing", init="random", steps=0
    )


def identity(stage: config_lib.Stage, seed: int, start: str, data: str, ends: bool = True) -> str:
    """Eight hex digits over all that changes a stage's result.

    Args:
      stage: resolved, with one number of steps.
      seed: of the run.
      start: the parent's id, 'random', or the fingerprint of the weights file.
      data: the dataset's fingerprint.
      ends: whether the end of a schedule 'anytime' counts, too.
    """
    if UNKNOWN in (data, start) or start.endswith(UNKNOWN):
        return UNKNOWN
    fields = dataclasses.asdict(stage)
    del fields["init"], fields["dataset"]  # their content counts, not their path
    fields["input"] = _seen(stage.input)
    if stage.trainable != "statistics":
        del fields["input"]["center_crop"]  # the others train on random crops
    if stage.trainable in ("nothing", "statistics"):
        for name in ("steps", "method", "moco", "optimizer", "augment"):
            del fields[name]
    if not stage.init_missing:
        del fields["init_missing"]
    if stage.trainable == "nothing":
        del fields["batch_size"], fields["model"]["bn_groups"]
    elif not ends:
        del fields["optimizer"]["decay"], fields["steps"]
    fields |= {"seed": seed, "start": start, "data": data, "recipe": RECIPE_VERSION}
    return content_hash(fields)


def _seen(options: config_lib.Input) -> dict[str, Any]:
    """The input's fields that change what a model sees; where pixels are held does not."""
    fields = dataclasses.asdict(options)
    for name in ("max_unreadable", "pipeline", "memory_gib"):
        del fields[name]
    return fields


def evaluation_files(stage: Stage, asked: Plan) -> dict[str, str]:
    """Evaluation -> its file below the stage's folder, named by all that changes its result."""
    files = {}
    for name in asked.config.evaluations if asked.config.target else ():
        settings = {
            "target": asked.target_fingerprint,
            "image_size": stage.config.image_size,
            "input": _seen(stage.config.input),
            "metric": asked.config.metric,
            "version": EVALUATION_VERSION,
        }
        if name == "linear_sgd":
            settings["probe"] = dataclasses.asdict(asked.config.linear_sgd)
        if name.startswith("finetune"):
            settings["finetune"] = dataclasses.asdict(asked.config.finetune)
        if config_lib.labels_of(name):
            settings["label_seeds"] = asked.config.label_seeds
        files[name] = f"evaluations/{name}-{content_hash(settings)}.json"
    return files


def neighbours_file(stage: Stage, asked: Plan) -> str:
    """The JSON of nearest neighbours below the stage's folder, named as evaluations' files are.

    They are images of the target, or of the stage's own dataset where there is none.
    """
    settings = {
        "target": asked.target_fingerprint or stage.fingerprint,
        "image_size": stage.config.image_size,
        "input": _seen(stage.config.input),
    }
    return f"neighbours-{content_hash(settings)}.json"


def before_file(stage: Stage, asked: Plan) -> str | None:
    """The same, by the backbone that the stage starts from, which no other stage may be."""
    if asked.config.target:  # of which arms without a step are evaluated
        return None
    return f"before-{neighbours_file(stage, asked)}"


def part(asked: Plan, ids: Sequence[str]) -> Plan:
    """The plan of some stages alone: with those that they start from, and the runs they end.

    Args:
      asked: the whole plan.
      ids: of stages.

    Raises:
      UserError: the plan has no such stage.
    """
    known = [stage.id for stage in asked.stages]
    wrong = [one for one in ids if one not in known]
    if wrong:
        mistakes = [Mistake("--only", one, "a stage's id", nearest(one, known)) for one in wrong]
        raise UserError.of(mistakes)
    chains = {one.id for stage in asked.stages if stage.id in ids for one in stage.chain}
    return dataclasses.replace(
        asked,
        stages=tuple(stage for stage in asked.stages if stage.id in chains),
        runs=tuple(run for run in asked.runs if run.stage.id in ids),
    )


def before(stage: Stage, asked: Plan) -> frozenset[str]:
    """The ids of what comes before a stage: its parent, and shorter stages of its trunk."""
    trunk = stage.trunk
    earlier = {
        one.id for one in asked.stages if trunk and one.trunk == trunk and one.steps < stage.steps
    }
    return frozenset(earlier | ({stage.parent.id} if stage.parent else set()))


def exported(asked: Plan) -> Stage | None:
    """The stage whose backbone is exported: of the arm's first seed, and its longest budget."""
    runs = [run for run in asked.runs if run.arm == asked.config.export]
    of_first_seed = [run for run in runs if run.seed == runs[0].seed]
    longest = max(of_first_seed, key=lambda run: run.pretrain_steps, default=None)
    return longest.stage if longest else None


def as_json(asked: Plan) -> dict[str, Any]:
    """The content of `plans/<name>.json`: the config, and where each result will be found."""
    config = dataclasses.asdict(asked.config)
    return {
        "choices": config.pop("choices"),
        "study": asked.config.name,
        "analysis": asked.config.analysis,
        "config_id": asked.config_id,
        "config": config,
        "dataset": asked.config.target,
        "metric": asked.config.metric,
        "runs": [
            {
                "arm": run.arm,
                "seed": run.seed,
                "stage_id": run.stage.id,
                "chain": [stage.id for stage in run.stage.chain],
                "pretrain_steps": run.pretrain_steps,
                "evaluations": evaluation_files(run.stage, asked),
                "neighbours": neighbours_file(run.stage, asked),
                "before": before_file(run.stage, asked),
            }
            for run in asked.runs
        ],
    }


def content_hash(content: Any) -> str:
    """Eight hex digits of anything JSON can hold."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _config_id(config: config_lib.Config) -> str:
    fields = dataclasses.asdict(config)
    for name in ("data_dir", "dry_run", "parallel", "log_every_steps", "export", "analysis"):
        del fields[name]
    for name in ("save_every_steps", "save_every_minutes", "keep_checkpoints", "keep_every_steps"):
        del fields[name]
    del fields["choices"]
    return content_hash(fields)
