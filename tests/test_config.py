"""Resolving a config: overrides, inheritance by stages, and every mistake in one go."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest

from hpt_jax import config as config_lib
from hpt_jax import resolve as resolve_lib
from hpt_jax.augment.policies import POLICIES, Policy
from hpt_jax.errors import UserError

SECTIONS = ("model", "moco", "optimizer", "augment", "input", "parallel", "linear_sgd", "finetune")


def make_config():
    """A small valid study in the form of a config file's result."""
    config = config_lib.default_config()
    config.batch_size = 16
    config.moco.queue_size = 64
    config.target = "folder:t"
    config.stages.base = {"dataset": "folder:b", "steps": 10}
    config.stages.target = {"dataset": "folder:t", "steps": (5, 20)}
    config.arms.random = ()
    config.arms["B+T"] = ("base", "target")
    return config


def resolve(*overrides, config=None):
    """Resolves with `field=text` overrides."""
    pairs = [tuple(one.split("=", 1)) for one in overrides]
    return resolve_lib.resolve(make_config() if config is None else config, pairs)


def mistakes(*overrides, config=None):
    """{field: message} of what resolving raises."""
    with pytest.raises(UserError) as raised:
        resolve(*overrides, config=config)
    found = raised.value.mistakes
    fields = [one.field for one in found]
    assert len(fields) == len(set(fields)), fields  # each is said once
    for one in found:
        assert one.expected
        assert one.fix
        assert str(one) in str(raised.value).splitlines()
    return {one.field: str(one) for one in found}


# What a config means


def test_defaults_are_written_down_once():
    resolved = resolve()
    assert resolved.stages["base"].model == config_lib.Model()
    assert resolved.stages["base"].optimizer == config_lib.Optimizer()
    assert resolved.shared.image_size == config_lib.Stage().image_size
    assert resolved.parallel == config_lib.Parallel()


def test_a_stage_inherits_shared_fields_and_overrides_its_own():
    config = make_config()
    config.optimizer.learning_rate = 0.5
    config.stages.target.optimizer = {"momentum": 0.8}
    config.stages.target.batch_size = 32
    resolved = resolve(config=config)
    target, base = resolved.stages["target"], resolved.stages["base"]
    assert (target.optimizer.learning_rate, target.optimizer.momentum) == (0.5, 0.8)
    assert (base.optimizer.learning_rate, base.optimizer.momentum) == (0.5, 0.9)
    assert (target.batch_size, base.batch_size, resolved.shared.batch_size) == (32, 16, 16)


def test_stages_and_arms_keep_their_order():
    config = make_config()
    config.stages.a = {"dataset": "folder:a", "steps": 1}
    config.arms.A = ("a",)
    resolved = resolve(config=config)
    assert list(resolved.stages) == ["base", "target", "a"]
    assert list(resolved.arms) == ["random", "B+T", "A"]


def test_a_plain_dict_resolves_to_the_same_and_is_left_alone():
    plain = make_config().to_dict()
    before = copy.deepcopy(plain)
    overridden = resolve("optimizer.momentum=0.5", "stages.base.model.width=3", config=plain)
    assert overridden.stages["base"].model.width == 3
    assert plain == before
    assert resolve(config=plain) == resolve()


def test_lists_are_tuples():
    config = make_config()
    config.seeds = [3, 4]
    assert resolve(config=config).seeds == (3, 4)


# Overrides


@pytest.mark.parametrize(
    ("text", "read", "value"),
    [
        ("batch_size=32", lambda c: c.stages["base"].batch_size, 32),
        ("optimizer.learning_rate=1", lambda c: c.shared.optimizer.learning_rate, 1.0),
        ("optimizer.weight_decay=1e-3", lambda c: c.shared.optimizer.weight_decay, 0.001),
        ("dry_run=True", lambda c: c.dry_run, True),
        ("dry_run=false", lambda c: c.dry_run, False),
        ("name=7", lambda c: c.name, "7"),
        ("name=None", lambda c: c.name, "None"),
        ("data_dir=/a=b", lambda c: c.data_dir, "/a=b"),
        ("seeds=(4,5)", lambda c: c.seeds, (4, 5)),
        ("seeds=4,5", lambda c: c.seeds, (4, 5)),
        ("seeds=4", lambda c: c.seeds, (4,)),
        ("stages.base.steps=7", lambda c: c.stages["base"].steps, 7),
        ("stages.base.steps=50,200", lambda c: c.stages["base"].steps, (50, 200)),
        ("stages.base.steps=(50,200)", lambda c: c.stages["base"].steps, (50, 200)),
        ("stages.base.subset=0.5", lambda c: c.stages["base"].subset, 0.5),
        ("stages.base.subset=1", lambda c: c.stages["base"].subset, 1),
        ("stages.base.subset=1.0", lambda c: c.stages["base"].subset, 1.0),
        ("linear_sgd.learning_rates=3", lambda c: c.linear_sgd.learning_rates, (3.0,)),
        ("linear_sgd.learning_rates=30,0.5", lambda c: c.linear_sgd.learning_rates, (30.0, 0.5)),
        ("evaluations=knn", lambda c: c.evaluations, ("knn",)),
        ("evaluations=knn,linear", lambda c: c.evaluations, ("knn", "linear")),
        ("evaluations=('knn',)", lambda c: c.evaluations, ("knn",)),
        ("arms.B+T=base", lambda c: c.arms["B+T"], ("base",)),
        ("parallel.map=pmap", lambda c: c.parallel.map, "pmap"),
        ("augment.crop_scale=0.5,1", lambda c: c.shared.augment.crop_scale, (0.5, 1.0)),
        (
            "stages.target.optimizer.learning_rate=0.01",
            lambda c: c.stages["target"].optimizer.learning_rate,
            0.01,
        ),
    ],
)
def test_an_override_sets_its_field(text, read, value):
    found = read(resolve(text))
    assert found == value
    assert type(found) is type(value)


def test_a_stages_override_leaves_the_others_alone():
    resolved = resolve("stages.target.optimizer.learning_rate=0.01")
    assert resolved.stages["base"].optimizer == config_lib.Optimizer()
    assert resolved.stages["target"].optimizer.momentum == config_lib.Optimizer().momentum


def test_none_unsets_a_field():
    resolved = resolve("stages.target.batch_size=32", "stages.target.batch_size=None")
    assert resolved.stages["target"].batch_size == 16
    assert resolve("optimizer.momentum=None").shared.optimizer.momentum == 0.9


def test_the_last_override_of_a_field_wins():
    assert resolve("batch_size=32", "batch_size=64").shared.batch_size == 64


# Augmentation


def test_parts_override_the_policy_for_the_config_and_for_a_stage():
    config = make_config()
    config.augment.policy = "crop"
    config.augment.hue = 0.25
    config.stages.target.augment = {"flip_probability": 0.125}
    resolved = resolve(config=config)
    crop = dataclasses.replace(POLICIES["crop"], hue=0.25)
    assert resolved.shared.augment == resolved.stages["base"].augment == crop
    assert resolved.stages["target"].augment == dataclasses.replace(crop, flip_probability=0.125)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_each_policy_is_reached_by_its_name(name):
    resolved = resolve(f"stages.target.augment.policy={name}")
    assert resolved.stages["target"].augment == POLICIES[name]
    assert resolved.stages["base"].augment == POLICIES["moco_v2"]


def test_a_part_set_to_the_policys_own_value_is_set():
    resolved = resolve("augment.policy=crop", "augment.flip_probability=0.5")
    assert resolved.shared.augment.flip_probability == 0.5


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(Policy)])
def test_every_part_of_a_policy_is_checked(part):
    assert f"augment.{part}" in mistakes(f"augment.{part}=-1,-1", f"augment.{part}=-1")
    assert f"augment.{part}" in mistakes(f"augment.{part}=text")
    assert f"stages.base.augment.{part}" in mistakes(f"stages.base.augment.{part}=text")


# Mistakes: names


@pytest.mark.parametrize(
    ("override", "field", "suggestion"),
    [
        ("batchsize=3", "config.batchsize", "'batch_size'"),
        ("modle.arch=resnet18", "config.modle", "'model'"),
        ("stage.base.steps=3", "config.stage", "'stages'"),
        ("model.archh=resnet18", "config.model.archh", "'arch'"),
        ("augment.polcy=crop", "config.augment.polcy", "'policy'"),
        ("stages.targt.steps=3", "config.stages.targt", "'target'"),
        ("stages.target.stesp=3", "config.stages.target.stesp", "'steps'"),
        (
            "stages.target.moco.temprature=1",
            "config.stages.target.moco.temprature",
            "'temperature'",
        ),
        ("arms.B+=target", "config.arms.B+", "'B+T'"),
    ],
)
def test_an_override_of_an_unknown_field_names_the_nearest(override, field, suggestion):
    found = mistakes(override)
    assert list(found) == [field]
    assert suggestion in found[field]


@pytest.mark.parametrize("path", ["model", "stages", "stages.target", "stages.target.optimizer"])
def test_an_override_of_a_section_lists_its_fields(path):
    found = mistakes(f"{path}=3")
    assert list(found) == [f"config.{path}"]
    assert "Set one of" in found[f"config.{path}"]


def test_an_override_below_a_field_is_refused():
    found = mistakes("name.first=3")
    assert list(found) == ["config.name.first"]
    assert "--config.name=" in found["config.name.first"]


@pytest.mark.parametrize(
    ("write", "field", "suggestion"),
    [
        (lambda c: setattr(c, "batchsize", 3), "batchsize", "'batch_size'"),
        (lambda c: setattr(c, "modle", {"arch": "resnet18"}), "modle", "'model'"),
        (lambda c: setattr(c.model, "widht", 3), "model.widht", "'width'"),
        (lambda c: setattr(c.augment, "polcy", "crop"), "augment.polcy", "'policy'"),
        (lambda c: setattr(c.augment, "huge", 0.1), "augment.huge", "'hue'"),
        (lambda c: setattr(c.parallel, "device", 1), "parallel.device", "'devices'"),
        (lambda c: setattr(c.stages.base, "step", 3), "stages.base.step", "'steps'"),
        (
            lambda c: setattr(c.stages.base, "optimizer", {"momentun": 0.5}),
            "stages.base.optimizer.momentun",
            "'momentum'",
        ),
    ],
)
def test_a_misspelt_field_in_a_config_file_names_the_nearest(write, field, suggestion):
    config = make_config()
    write(config)
    found = mistakes(config=config)
    assert list(found) == [field]
    assert suggestion in found[field]


def test_a_shared_mistake_is_said_once_and_a_stages_own_with_its_name():
    found = mistakes("optimizer.momentum=2", "stages.target.optimizer.weight_decay=-1")
    assert list(found) == ["optimizer.momentum", "stages.target.optimizer.weight_decay"]
    config = make_config()
    config.model.widht = 3
    config.moco.dim = "a"
    assert list(mistakes(config=config)) == ["model.widht", "moco.dim"]


# Mistakes: types


@pytest.mark.parametrize("value", [3, "text", (1, 2), True])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_replaced_by_a_value_is_one_mistake(section, value):
    config = make_config()
    config[section] = value
    assert list(mistakes(config=config)) == [section]
    if section != "parallel":
        config = make_config()
        config.stages.base[section] = value
        assert list(mistakes(config=config)) == [f"stages.base.{section}"]


@pytest.mark.parametrize("section", SECTIONS)
def test_an_override_inside_a_section_replaced_by_a_value_is_no_crash(section):
    config = make_config()
    config[section] = 3
    first = next(iter(make_config()[section]))
    assert list(mistakes(f"{section}.{first}=1", config=config)) == [section]


@pytest.mark.parametrize("value", [3, "text", (1, 2)])
def test_stages_and_arms_must_be_sections(value):
    for name in ("stages", "arms", "stages.base"):
        config = make_config()
        *above, last = name.split(".")
        (config[above[0]] if above else config)[last] = value
        assert list(mistakes(config=config)) == [name]


def wrong_values(value):
    """Values of another type than `value`."""
    if isinstance(value, bool):
        return ["yes", 1, (True,)]
    if isinstance(value, int):
        return [True, "1.5", 1.5, (1,), "text"]
    if isinstance(value, float):
        return [True, "1.5", (1.0,), math.nan, math.inf]
    if isinstance(value, str):
        return [1, True, ("text",), 1.5]
    return [3.5, "text", {"a": 1}, ((1,),)]


LEAVES = [
    (section, name, value)
    for section in SECTIONS
    for name, value in {
        **(dataclasses.asdict(Policy()) if section == "augment" else {}),
        **{k: v for k, v in make_config()[section].items() if v is not None},
    }.items()
] + [
    ("", name, value)
    for name, value in make_config().items()
    if name not in (*SECTIONS, "stages", "arms", "template")
]


@pytest.mark.parametrize(("section", "name", "value"), LEAVES)
def test_every_field_refuses_values_of_another_type(section, name, value):
    field = f"{section}.{name}" if section else name
    for wrong in wrong_values(value):
        config = make_config().to_dict()  # a ConfigDict would make 1.0 of True by itself
        (config[section] if section else config)[name] = wrong
        found = mistakes(config=config)
        assert list(found) in ([field], [f"{section}.policy"]), (wrong, found)


@pytest.mark.parametrize("override", ["batch_size=1.5", "batch_size=True", "batch_size=8,8"])
def test_a_whole_number_is_asked_for(override):
    assert "a whole number" in mistakes(override)["batch_size"]


@pytest.mark.parametrize("text", ["fast", "nan", "inf", "1e999", ""])
def test_a_number_is_asked_for(text):
    assert "a number" in mistakes(f"optimizer.learning_rate={text}")["optimizer.learning_rate"]


# Mistakes: ranges and names of things


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("batch_size=-4", "batch_size"),
        ("batch_size=0", "batch_size"),
        ("image_size=0", "image_size"),
        ("model.bn_groups=3", "model.bn_groups"),
        ("model.bn_groups=16", "model.bn_groups"),
        ("model.bn_groups=0", "model.bn_groups"),
        ("model.arch=resnet19", "model.arch"),
        ("model.stem=smal", "model.stem"),
        ("model.stem_stride=3", "model.stem_stride"),
        ("model.width=0", "model.width"),
        ("model.dtype=float8", "model.dtype"),
        ("moco.queue_size=8", "moco.queue_size"),
        ("moco.queue_size=-8", "moco.queue_size"),
        ("moco.temperature=0", "moco.temperature"),
        ("moco.momentum=1.1", "moco.momentum"),
        ("moco.dim=1", "moco.dim"),
        ("moco.shuffle_block=4", "moco.shuffle_block"),
        ("moco.shuffle_block=-1", "moco.shuffle_block"),
        ("optimizer.schedule=cosin", "optimizer.schedule"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate"),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps"),
        ("augment.policy=crap", "augment.policy"),
        ("augment.hue=0.6", "augment.hue"),
        ("augment.crop_scale=0.9,0.1", "augment.crop_scale"),
        ("input.channels=-1", "input.channels"),
        ("input.center_crop=0", "input.center_crop"),
        ("input.max_unreadable=1", "input.max_unreadable"),
        ("input.val_fraction=0.5", "input.val_fraction"),
        ("parallel.map=vmap", "parallel.map"),
        ("parallel.devices=-1", "parallel.devices"),
        ("seeds=()", "seeds"),
        ("seeds=1,1", "seeds"),
        ("seeds=-1", "seeds"),
        ("seeds=4294967296", "seeds"),
        ("evaluations=knm", "evaluations"),
        ("metric=top5", "metric"),
        ("export=B-T", "export"),
        ("shared_stages=bse", "shared_stages"),
        ("shared_stages=target", "shared_stages"),
        ("name=a/b", "name"),
        ("name=.a", "name"),
        ("name=", "name"),
        ("target=", "target"),
        ("log_every_steps=0", "log_every_steps"),
        ("save_every_steps=-1", "save_every_steps"),
        ("save_every_minutes=0", "save_every_minutes"),
        ("keep_checkpoints=0", "keep_checkpoints"),
        ("keep_every_steps=-1", "keep_every_steps"),
        ("stages.base.trainable=batchnorm", "stages.base.trainable"),
        ("stages.base.splits=train,test", "stages.base.splits"),
        ("stages.base.splits=train,train", "stages.base.splits"),
        ("stages.base.splits=()", "stages.base.splits"),
        ("stages.base.steps=0", "stages.base.steps"),
        ("stages.base.steps=(5,5)", "stages.base.steps"),
        ("stages.base.steps=()", "stages.base.steps"),
        ("stages.base.dataset=", "stages.base.dataset"),
        ("stages.base.subset=0", "stages.base.subset"),
        ("stages.base.subset=1.5", "stages.base.subset"),
        ("stages.base.subset=-0.5", "stages.base.subset"),
        ("stages.base.batch_size=-1", "stages.base.batch_size"),
        ("arms.B+T=base,targt", "arms.B+T"),
        ("template=adpt", "template"),
        ("evaluations=linear_0", "evaluations"),
        ("evaluations=knn_50", "evaluations"),
        ("label_seeds=()", "label_seeds"),
        ("label_seeds=1,1", "label_seeds"),
        ("linear_sgd.weight_decays=(-1.0,)", "linear_sgd.weight_decays"),
        ("linear_sgd.seeds=()", "linear_sgd.seeds"),
        ("finetune.learning_rates=()", "finetune.learning_rates"),
        ("finetune.learning_rates=(0.1, 0)", "finetune.learning_rates"),
        ("finetune.steps=0", "finetune.steps"),
        ("finetune.epochs=(5, -1)", "finetune.epochs"),
        ("finetune.bn_groups=3", "finetune.bn_groups"),
        ("finetune.head_multiplier=0", "finetune.head_multiplier"),
        ("finetune.weight_decay=-1", "finetune.weight_decay"),
        ("finetune.eval_every=0", "finetune.eval_every"),
        ("finetune.drops=(0.6, 0.3)", "finetune.drops"),
    ],
)
def test_a_value_out_of_range_is_one_mistake(override, field):
    assert list(mistakes(override)) == [field]


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("model.arch=resnet19", "'resnet18'"),
        ("augment.policy=no_colour", "'no_color'"),
        ("evaluations=knm", "'knn'"),
        ("evaluations=finetune_all", "'finetune_full'"),
        ("analysis=separabilty", "'separability'"),
        ("stages.base.trainable=batchnorm", "'batch_norm'"),
        ("arms.B+T=base,targt", "'target'"),
        ("shared_stages=bse", "'base'"),
        ("export=B+", "'B+T'"),
        ("template=adpt", "'adapt'"),
    ],
)
def test_a_wrong_name_suggests_the_nearest(override, suggestion):
    assert suggestion in "".join(mistakes(override).values())


@pytest.mark.parametrize(
    "override",
    [
        "model.bn_groups=8",
        "model.bn_groups=1",
        "moco.queue_size=16",
        "moco.shuffle_block=8",
        "moco.shuffle_block=16",
        "optimizer.learning_rate=0",
        "moco.momentum=1",
        "augment.hue=0.5",
        "input.center_crop=1",
        "stages.base.subset=1",
        "seeds=4294967295",
        "shared_stages=base",
        "shared_stages=base,target",
        "evaluations=()",
        "evaluations=linear_1,finetune_1000,finetune_full",
        "finetune.drops=()",
    ],
)
def test_values_on_the_edge_are_accepted(override):
    assert list(resolve(override).stages) == ["base", "target"]


def test_finetuning_needs_a_schedule():
    config = make_config()
    config.finetune.update(steps=(), epochs=())
    assert list(mistakes(config=config)) == ["finetune.steps"]


def test_a_config_without_arms_says_so():
    config = make_config()
    config.arms = {}
    assert list(mistakes(config=config)) == ["arms"]
    empty = mistakes(config=config_lib.default_config())
    assert list(empty) == ["arms"]


def test_a_stage_that_reads_no_data_needs_neither_dataset_nor_steps():
    config = make_config()
    config.stages.public = {"init": "file.safetensors", "trainable": "nothing"}
    config.arms.P = ("public",)
    assert resolve(config=config).stages["public"].dataset == ""


def test_all_mistakes_are_reported_in_one_go():
    config = make_config()
    config.batch_sise = 3
    config.model.arch = 18
    config.optimizer.momentum = 2.0
    config.stages.target.splits = ("test",)
    config.stages.target.stesp = 3
    config.seeds = (1, 1)
    found = mistakes("moco.temprature=1", "stages.targt.steps=3", config=config)
    assert set(found) == {
        "config.moco.temprature",
        "config.stages.targt",
        "batch_sise",
        "model.arch",
        "optimizer.momentum",
        "stages.target.splits",
        "stages.target.stesp",
        "seeds",
    }


def test_a_mistake_hides_what_would_only_follow_from_it():
    # The misspelt batch size leaves 256 in its place, which the queue of 64 is too short for.
    config = make_config()
    del config.batch_size
    config.batchsize = 16
    assert list(mistakes(config=config)) == ["batchsize"]
    config = make_config()
    del config.stages.base["dataset"]
    config.stages.base.datset = "folder:b"
    assert list(mistakes(config=config)) == ["stages.base.datset"]


# The template for one's own images


def adapt(facts, weights=None, **fields):
    config = config_lib.load(str(Path(__file__).parents[1] / "configs" / "adapt.py"))
    for name, value in fields.items():
        config[name] = value
    return resolve_lib.resolve(config, (), lambda name: facts, lambda path: weights)


FACTS = {
    "images": 300, "labelled": True, "classes": 2, "multi_label": False, "short_side": 32,
    "channels": 3, "grey": False,
}  # fmt: skip


def test_the_template_asks_for_data():
    with pytest.raises(UserError) as raised:
        adapt(None)
    assert [one.field for one in raised.value.mistakes] == ["data"]


def test_the_template_chooses_what_fits_the_data():
    resolved = adapt(FACTS, data="folder:x")
    stage = resolved.stages["adapted"]
    assert (stage.image_size, stage.model.stem) == (32, "small")
    assert stage.batch_size <= 300
    assert stage.batch_size <= stage.moco.queue_size <= 300
    assert resolved.target == "folder:x"
    assert list(resolved.arms) == ["random", "T"]


def test_the_template_evaluates_nothing_without_labels():
    resolved = adapt({**FACTS, "labelled": False}, data="folder:x")
    assert (resolved.target, list(resolved.arms)) == ("", ["T"])


def test_the_template_takes_the_one_metric_of_several_labels_an_image():
    assert adapt(FACTS, data="folder:x").metric == "top1"
    assert adapt({**FACTS, "multi_label": True}, data="folder:x").metric == "macro_auroc"


def test_the_template_takes_the_model_from_the_weights():
    weights = {"arch": "resnet18", "width": 16, "stem": "small", "stem_stride": 1, "channels": 1}
    resolved = adapt(FACTS, weights, data="folder:x", init="w.safetensors", steps=7)
    stage = resolved.stages["adapted"]
    assert (stage.model.arch, stage.model.width, stage.model.stem_stride) == ("resnet18", 16, 1)
    assert (stage.input.channels, stage.steps) == (1, 7)
    assert resolved.arms == {
        "B-direct": ("base",),
        "B": ("base", "statistics"),
        "B+T": ("base", "adapted"),
    }
    assert resolved.export == "B+T"


def test_the_template_reports_mistakes_before_it_computes():
    with pytest.raises(UserError) as raised:
        adapt(FACTS, data=3, model=3, stepz=3)
    assert {one.field for one in raised.value.mistakes} == {"data", "model", "stepz"}


def test_the_template_keeps_what_the_user_set():
    stage = resolve_lib.resolve(
        config_lib.load(str(Path(__file__).parents[1] / "configs" / "adapt.py")),
        [("data", "folder:x"), ("model.stem", "imagenet"), ("model.arch", "resnet50")],
        lambda name: FACTS,
    ).stages["adapted"]
    assert (stage.model.arch, stage.model.stem, stage.model.width) == ("resnet50", "imagenet", 16)


def test_stages_may_not_cut_val_and_test_differently():
    with pytest.raises(UserError) as raised:
        resolve("stages.target.input.test_fraction=0.1")
    assert [one.field for one in raised.value.mistakes] == ["stages.target.input.test_fraction"]


def test_a_stage_that_is_its_weights_reads_no_dataset():
    with pytest.raises(UserError) as raised:
        resolve("stages.target.trainable=nothing")
    assert [one.field for one in raised.value.mistakes] == ["stages.target.dataset"]
