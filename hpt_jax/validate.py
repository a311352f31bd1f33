"""What a config's values must be, and what fields demand of each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from hpt_jax.augment.policies import Policy
from hpt_jax.config import (
    ANALYSES,
    EVALUATIONS,
    METHODS,
    METRICS,
    TRAINABLE,
    Config,
    Finetune,
    Input,
    LinearSGD,
    MoCo,
    Model,
    Stage,
    labels_of,
)
from hpt_jax.errors import Mistake, nearest
from hpt_jax.models.resnet import ARCHITECTURES, STEMS
from hpt_jax.shapes import NAME

# Beyond these, counters of 32 bits and shapes overflow; whether there is memory for what they allow
# is seen once the devices are known.
_MOST_STEPS = _MOST_KEYS = 2**31 - 1
_MOST_EXAMPLES = 2**20
_MOST_PIXELS = 2**14
_MOST_CHANNELS = 2**13


def suggest(name: object, known: Iterable[str]) -> str:
    known = list(known)
    return nearest(str(name), known) if known else "There are none in this config."


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


def once(shared: list[Mistake], own: list[Mistake], at: str) -> list[Mistake]:
    """A stage's own mistakes: those it did not inherit from the shared fields."""
    seen = {(m.field, repr(m.value)) for m in shared}
    return [m for m in own if (m.field.removeprefix(at), repr(m.value)) not in seen]


def check(config: Config, alone: bool) -> list[Mistake]:
    """Ranges, names and, unless `alone`, what fields demand of each other."""
    mistakes = _check_top(config, alone)
    shared = _check_shared(config.shared, "", alone)
    mistakes += shared
    for name, stage in config.stages.items():
        at = f"stages.{name}."
        own = _check_shared(stage, at, alone)
        mistakes += once(shared, own, at) + _check_stage(stage, at, alone)
        # With other fractions an arm would be tested on images that a stage of it was trained on.
        for field in ("val_fraction", "test_fraction"):
            value = getattr(stage.input, field)
            if not alone and value != getattr(config.shared.input, field):
                fix = f"Set --config.input.{field} for all stages."
                expected = "the same cut of val and test everywhere"
                mistakes.append(Mistake(f"{at}input.{field}", value, expected, fix))
    return mistakes


def _check_top(config: Config, alone: bool) -> list[Mistake]:
    checks = _Checks("", alone)
    need = checks.need
    rule = "letters, digits and any of _ . @ + - %, not starting with a dot, at most 100 bytes"
    for field, names in (("name", [config.name]), ("stages", config.stages), ("arms", config.arms)):
        for name in names:
            # They become names of files, to which more is added.
            good = NAME.fullmatch(name) is not None and len(name.encode()) <= 100
            need(good, field, name, rule, "Choose another name.")
    _check_seeds(config.seeds, "seeds", need)
    _check_arms(config, checks.need_together)
    for name in config.evaluations:
        good = labels_of(name) is not None or (name in EVALUATIONS and "<" not in name)
        need(good, "evaluations", name, "a known evaluation", nearest(name, EVALUATIONS))
    _check_seeds(config.label_seeds, "label_seeds", need)
    need(config.metric in METRICS, "metric", config.metric, f"one of {METRICS}")
    _check_probe(config.linear_sgd, "linear_sgd", need)
    _check_linear_sgd(config.linear_sgd, need)
    _check_probe(config.finetune, "finetune", need)
    _check_finetune(config.finetune, checks)
    arm = config.export
    known = suggest(arm, config.arms)
    checks.need_together(not arm or arm in config.arms, "export", arm, "the name of an arm", known)
    analysis, known = config.analysis, nearest(config.analysis, ANALYSES)
    need(analysis in ("", *ANALYSES), "analysis", analysis, "one of the analyses", known)
    need(config.log_every_steps >= 1, "log_every_steps", config.log_every_steps, "at least 1")
    need(config.save_every_steps >= 0, "save_every_steps", config.save_every_steps, "at least 0")
    need(config.keep_checkpoints >= 1, "keep_checkpoints", config.keep_checkpoints, "at least 1")
    need(config.keep_every_steps >= 0, "keep_every_steps", config.keep_every_steps, "at least 0")
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
            known = suggest(name, config.stages)
            need(name in config.stages, f"arms.{arm}", name, "a stage", known)
    need(
        bool(config.target) or () not in config.arms.values(),
        "target",
        config.target,
        "a dataset, since an empty arm is random weights with the target's pixel statistics",
    )
    shared = config.shared_stages
    for name in shared:
        known = suggest(name, config.stages)
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
    known = nearest(stage.method, METHODS)
    need(stage.method in METHODS, "method", stage.method, f"one of {METHODS}", known)
    good = 2 <= batch <= _MOST_EXAMPLES
    need(good, "batch_size", batch, f"at least 2 and at most {_MOST_EXAMPLES}")
    good = 8 <= stage.image_size <= _MOST_PIXELS
    need(good, "image_size", stage.image_size, f"at least 8 pixels and at most {_MOST_PIXELS}")
    _check_model(stage.model, need)
    _check_moco(stage.moco, need)
    if 2 <= batch <= _MOST_EXAMPLES:
        _check_batch(stage, checks.need_together)
    opt = stage.optimizer
    need(opt.learning_rate >= 0, "optimizer.learning_rate", opt.learning_rate, "at least 0")
    need(opt.weight_decay >= 0, "optimizer.weight_decay", opt.weight_decay, "at least 0")
    need(0 <= opt.momentum < 1, "optimizer.momentum", opt.momentum, "a number in [0, 1)")
    schedules = ("cosine", "constant", "anytime")
    need(opt.schedule in schedules, "optimizer.schedule", opt.schedule, f"one of {schedules}")
    need(0 <= opt.decay <= 1, "optimizer.decay", opt.decay, "a share in [0, 1]")
    need(opt.warmup_steps >= 0, "optimizer.warmup_steps", opt.warmup_steps, "at least 0")
    _check_policy(stage.augment, need)
    _check_input(stage.input, need)
    return checks.mistakes


def _check_model(model: Model, need: Callable[..., None]) -> None:
    known = nearest(model.arch, ARCHITECTURES)
    need(model.arch in ARCHITECTURES, "model.arch", model.arch, "a known architecture", known)
    good = 1 <= model.width <= _MOST_CHANNELS
    need(good, "model.width", model.width, f"at least 1 and at most {_MOST_CHANNELS}")
    stems = tuple(STEMS)
    need(model.stem in stems, "model.stem", model.stem, f"one of {stems}")
    need(model.stem_stride in (1, 2), "model.stem_stride", model.stem_stride, "1 or 2")
    dtypes = ("float32", "bfloat16", "float64")
    need(model.dtype in dtypes, "model.dtype", model.dtype, f"one of {dtypes}")
    need(model.bn_groups >= 1, "model.bn_groups", model.bn_groups, "at least 1")


def _check_moco(moco: MoCo, need: Callable[..., None]) -> None:
    good = 1 <= moco.queue_size <= _MOST_KEYS
    need(good, "moco.queue_size", moco.queue_size, f"at least 1 and at most {_MOST_KEYS}")
    good = 2 <= moco.dim <= _MOST_CHANNELS
    need(good, "moco.dim", moco.dim, f"at least 2 and at most {_MOST_CHANNELS}")
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
    ways = ("auto", "resident", "host")
    known = nearest(values.pipeline, ways)
    need(values.pipeline in ways, "input.pipeline", values.pipeline, f"one of {ways}", known)
    need(values.memory_gib >= 0, "input.memory_gib", values.memory_gib, "at least 0 GiB")
    crop = values.center_crop
    need(0 < crop <= 1, "input.center_crop", crop, "a share in (0, 1]")
    for name in ("val_fraction", "test_fraction"):
        share = getattr(values, name)
        need(0 < share < 0.5, f"input.{name}", share, "a share between 0 and 0.5")
    share = values.max_unreadable
    need(0 <= share < 1, "input.max_unreadable", share, "a share in [0, 1)")


def _check_seeds(seeds: tuple[int, ...], name: str, need: Callable[..., None]) -> None:
    # jax.random.key keeps 32 bits of a seed: beyond them, seeds would silently be equal.
    good = bool(seeds) and min(seeds) >= 0 and max(seeds) < 2**32
    need(good, name, seeds, "at least one, each in [0, 2**32)")
    need(len(set(seeds)) == len(seeds), name, seeds, "distinct seeds")


def _check_probe(probe: LinearSGD | Finetune, at: str, need: Callable[..., None]) -> None:
    """Checks what the probes that train by SGD have in common."""
    batch, every = probe.batch_size, probe.eval_every
    good = 1 <= batch <= _MOST_EXAMPLES
    need(good, f"{at}.batch_size", batch, f"at least 1 and at most {_MOST_EXAMPLES}")
    need(every >= 1, f"{at}.eval_every", every, "at least 1")
    rates, drops = probe.learning_rates, probe.drops
    good = bool(rates) and min(rates) > 0
    need(good, f"{at}.learning_rates", rates, "at least one, each more than 0")
    good = all(0 < share < 1 for share in drops) and list(drops) == sorted(set(drops))
    need(good, f"{at}.drops", drops, "rising shares of the steps, each in (0, 1)")
    low, high = probe.crop_scale
    need(0 < low <= high <= 1, f"{at}.crop_scale", probe.crop_scale, "0 < low <= high <= 1")
    share = probe.flip_probability
    need(0 <= share <= 1, f"{at}.flip_probability", share, "a number in [0, 1]")


def _check_linear_sgd(probe: LinearSGD, need: Callable[..., None]) -> None:
    good = 1 <= probe.steps <= _MOST_STEPS
    need(good, "linear_sgd.steps", probe.steps, f"at least 1 and at most {_MOST_STEPS}")
    decays = probe.weight_decays
    good = bool(decays) and min(decays) >= 0
    need(good, "linear_sgd.weight_decays", decays, "at least one, each at least 0")
    _check_seeds(probe.seeds, "linear_sgd.seeds", need)


def _check_finetune(tuned: Finetune, checks: _Checks) -> None:
    need = checks.need
    for name in ("steps", "epochs"):
        values = getattr(tuned, name)
        good = all(1 <= value <= _MOST_STEPS for value in values)
        expected = f"each at least 1 and at most {_MOST_STEPS}"
        need(good, f"finetune.{name}", values, expected)
    expected = "at least one schedule in finetune.steps or finetune.epochs"
    checks.need_together(bool(tuned.steps or tuned.epochs), "finetune.steps", tuned.steps, expected)
    rate, decay = tuned.head_multiplier, tuned.weight_decay
    need(rate > 0, "finetune.head_multiplier", rate, "more than 0")
    need(decay >= 0, "finetune.weight_decay", decay, "at least 0")
    groups, batch = tuned.bn_groups, tuned.batch_size
    checks.need_together(
        groups >= 1 and batch % groups == 0 and batch >= 2 * groups,
        "finetune.bn_groups",
        groups,
        f"a number that cuts finetune.batch_size = {batch} into equal groups of at least 2",
    )


def _check_stage(stage: Stage, at: str, alone: bool) -> list[Mistake]:
    """Checks the fields that only a stage has."""
    checks = _Checks(at, alone)
    need, trainable = checks.need, stage.trainable
    close = nearest(trainable, TRAINABLE)
    need(trainable in TRAINABLE, "trainable", trainable, f"one of {TRAINABLE}", close)
    if trainable in ("all", "batch_norm"):
        budgets = stage.budgets
        given = need if stage.steps != 0 else checks.need_together
        good = bool(budgets) and min(budgets) >= 1 and max(budgets) <= _MOST_STEPS
        given(good, "steps", stage.steps, f"at least 1 step and at most {_MOST_STEPS}")
        need(len(set(budgets)) == len(budgets), "steps", stage.steps, "distinct numbers")
    if trainable == "nothing":
        fix = "Remove it: such a stage is its weights."
        checks.need_together(not stage.dataset, "dataset", stage.dataset, "no dataset", fix)
    else:
        example = "For example 'folder:PATH'."
        checks.need_together(bool(stage.dataset), "dataset", "", "a dataset", example)
    need("\0" not in stage.init, "init", stage.init, "'random' or a path")
    need(bool(stage.splits), "splits", stage.splits, "at least one split")
    need(len(set(stage.splits)) == len(stage.splits), "splits", stage.splits, "distinct splits")
    for split in stage.splits:
        allowed = "train or val: test images are never pretrained on"
        need(split in ("train", "val"), "splits", split, allowed)
    subset = stage.subset
    good = 0 < subset <= 1 if isinstance(subset, float) else subset >= 1
    need(good, "subset", subset, "a fraction in (0, 1] or a count of at least 1")
    return checks.mistakes
