"""Identities by content: what a stage's id depends on, and what it does not."""

import dataclasses
import json
import subprocess
import sys
import typing

import numpy as np
import pytest
from PIL import Image
from small_files import DONE, EVALUATION, LINEAGE

from hpt_jax import config as config_lib
from hpt_jax import estimate, lineage, plan, run
from hpt_jax.config import Config, Stage
from hpt_jax.errors import UserError
from hpt_jax.telemetry.display import Display

# Fields of a stage whose value is replaced by their content, or that change no result.
CONTENT = {"init", "dataset"}
NO_RESULT = {
    "input.max_unreadable",
    "input.center_crop",
    "input.pipeline",
    "input.memory_gib",
}
# How a stage is asked for, not what it is; `shared` becomes the stages' own fields.
PLANNED = {"stages", "arms", "seeds", "shared_stages", "shared"}


def make_plan(config, data=lambda name: f"data of {name}", weights=lambda path: f"hash of {path}"):
    return plan.make_plan(config, data, weights)


def one_stage(stage, **top):
    """A config of one arm with one stage."""
    return Config(stages={"t": stage}, arms={"T": ("t",)}, **top)


def id_of(stage, seed=0, **fingerprints):
    (found,) = make_plan(one_stage(stage, seeds=(seed,)), **fingerprints).stages
    return found.id


def another(value):
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple) and value:
        return (another(value[0]), *value[1:])
    return ("x",)


def variants(value, prefix=""):
    """(dotted name, a copy with this one leaf changed) of every leaf of a nested dataclass."""
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            for deep, changed in variants(inner, f"{name}."):
                yield deep, dataclasses.replace(value, **{field.name: changed})
        else:
            yield name, dataclasses.replace(value, **{field.name: another(inner)})


BASIC = Stage(dataset="folder:a", steps=10)
VARIANTS = dict(variants(BASIC))


def test_variants_cover_every_leaf():
    sections = [h for h in typing.get_type_hints(Stage).values() if dataclasses.is_dataclass(h)]
    leaves = sum(len(dataclasses.fields(s)) - 1 for s in sections) + len(dataclasses.fields(Stage))
    assert len(VARIANTS) == leaves
    assert all(changed != BASIC for changed in VARIANTS.values())


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - CONTENT - NO_RESULT))
def test_each_field_that_changes_the_result_changes_the_id(name):
    assert id_of(VARIANTS[name]) != id_of(BASIC)


@pytest.mark.parametrize("name", sorted(NO_RESULT))
def test_fields_that_change_no_result_do_not_change_the_id(name):
    assert id_of(VARIANTS[name]) == id_of(BASIC)


@pytest.mark.parametrize("name", ["dataset", "init"])
def test_content_counts_and_its_path_does_not(name):
    moved = dataclasses.replace(BASIC, **{name: "folder:elsewhere"})
    start = dataclasses.replace(BASIC, **{name: "folder:here"})

    def same(path):
        return "abc"

    assert id_of(moved, data=same, weights=same) == id_of(start, data=same, weights=same)
    assert id_of(start, data=same, weights=same) != id_of(start)


def test_weights_count_where_a_stage_comes_first():
    given = dataclasses.replace(BASIC, init="w")
    assert id_of(given) != id_of(BASIC)
    assert id_of(given, weights=lambda path: "1") != id_of(given, weights=lambda path: "2")


def test_the_seed_and_the_name_count():
    assert id_of(BASIC, seed=1) != id_of(BASIC, seed=0)
    (named,) = make_plan(Config(stages={"u": BASIC}, arms={"T": ("u",)})).stages
    assert named.id.startswith("u-")


@pytest.mark.parametrize("version", ["RECIPE_VERSION"])
def test_the_recipe_version_counts(monkeypatch, version):
    before = id_of(BASIC)
    monkeypatch.setattr(plan, version, getattr(plan, version) + 1)
    assert id_of(BASIC) != before


TOP = [field.name for field in dataclasses.fields(Config) if field.name not in PLANNED]


@pytest.mark.parametrize("name", TOP)
def test_no_top_level_field_changes_a_stage(name):
    config = one_stage(BASIC, target="folder:a")
    old = getattr(config, name)
    if dataclasses.is_dataclass(old):
        new = next(changed for _, changed in variants(old))
    else:
        new = another(old)
    changed = dataclasses.replace(config, **{name: new})
    assert [s.id for s in make_plan(changed).stages] == [s.id for s in make_plan(config).stages]


@pytest.mark.parametrize(
    "name",
    [
        "data_dir",
        "dry_run",
        "parallel",
        "log_every_steps",
        "save_every_steps",
        "keep_checkpoints",
        "keep_every_steps",
        "export",
    ],
)
def test_the_config_id_forgets_places_and_machines(name):
    config = one_stage(BASIC)
    old = getattr(config, name)
    new = next(variants(old))[1] if dataclasses.is_dataclass(old) else another(old)
    changed = dataclasses.replace(config, **{name: new})
    assert make_plan(changed).config_id == make_plan(config).config_id
    assert make_plan(one_stage(VARIANTS["moco.momentum"])).config_id != make_plan(config).config_id


@pytest.mark.parametrize("trainable", ["statistics", "nothing"])
def test_stages_without_gradients_do_not_depend_on_training(trainable):
    still = dataclasses.replace(BASIC, trainable=trainable)
    for name, changed in variants(still):
        if name.split(".")[0] in ("steps", "moco", "optimizer", "augment"):
            assert id_of(changed) == id_of(still), name
        elif name.split(".")[0] == "model" and name != "model.bn_groups":
            assert id_of(changed) != id_of(still), name


# Arms, seeds and budgets


def study(**changes):
    stages = {
        "base": Stage(dataset="folder:b", steps=(5, 30)),
        "target": Stage(dataset="folder:t", steps=(10, 20)),
        "bn": Stage(dataset="folder:t", steps=10, trainable="batch_norm"),
    }
    arms = {"random": (), "T": ("target",), "B+T": ("base", "target"), "BN": ("base", "bn")}
    return Config(**{"stages": stages, "arms": arms, "target": "folder:t", **changes})


def test_arms_that_share_a_prefix_share_its_stages():
    asked = make_plan(study())
    named = [stage.name for stage in asked.stages]
    assert named.count("base") == 1
    assert named.count("target") == 4  # 2 budgets from scratch and 2 after the base
    assert len({stage.id for stage in asked.stages}) == len(asked.stages)


def test_parents_come_first():
    asked = make_plan(study(seeds=(0, 1)))
    seen = set()
    for stage in asked.stages:
        assert stage.parent is None or stage.parent.id in seen
        seen.add(stage.id)


def test_a_stage_takes_each_budget_where_it_is_last_and_elsewhere_its_last_one():
    asked = make_plan(study())
    budgets = [(one.arm, [s.steps for s in one.stage.chain]) for one in asked.runs]
    assert budgets == [
        ("random", [0]),
        ("T", [10]),
        ("T", [20]),
        ("B+T", [30, 10]),
        ("B+T", [30, 20]),
        ("BN", [30, 10]),
    ]


def test_pretrain_steps_count_the_target_dataset_alone():
    assert [one.pretrain_steps for one in make_plan(study()).runs] == [0, 10, 20, 10, 20, 10]


def test_runs_come_by_arm_then_seed_then_budget():
    runs = make_plan(study(seeds=(7, 3), arms={"T": ("target",), "B": ("base",)}, target="")).runs
    assert [(one.arm, one.seed, one.stage.steps) for one in runs] == [
        ("T", 7, 10),
        ("T", 7, 20),
        ("T", 3, 10),
        ("T", 3, 20),
        ("B", 7, 5),
        ("B", 7, 30),
        ("B", 3, 5),
        ("B", 3, 30),
    ]


def test_a_shared_stage_is_trained_with_the_first_seed_alone():
    asked = make_plan(study(seeds=(4, 5), shared_stages=("base",)))
    assert [s.seed for s in asked.stages if s.name == "base"] == [4]
    after = [s for s in asked.stages if s.parent]
    assert {s.seed for s in after} == {4, 5}
    assert len({s.parent.id for s in after}) == 1


def test_an_arm_of_shared_stages_is_one_run():
    arms = {"B": ("base",)}
    asked = make_plan(study(seeds=(4, 5), shared_stages=("base",), arms=arms, target=""))
    assert [(one.seed, one.stage.steps) for one in asked.runs] == [(4, 5), (4, 30)]


def test_a_variant_is_another_arm_with_its_own_stages():
    config = study()
    crop = dataclasses.replace(config.stages["target"], image_size=32)
    stages = {**config.stages, "target_32": crop}
    arms = {"B+T": ("base", "target"), "B+T@32px": ("base", "target_32")}
    asked = make_plan(dataclasses.replace(config, stages=stages, arms=arms))
    assert [one.arm for one in asked.runs] == ["B+T"] * 2 + ["B+T@32px"] * 2
    assert [s.name for s in asked.stages].count("base") == 1
    assert len(asked.stages) == 5


def test_an_empty_arm_is_random_weights_with_the_targets_statistics():
    shared = Stage(image_size=40, model=config_lib.Model(width=8))
    asked = make_plan(study(seeds=(0, 1), arms={"random": ()}, shared=shared))
    first, second = asked.stages
    assert first.id != second.id
    assert (first.name, first.config.trainable, first.config.dataset) == (
        "random",
        "nothing",
        "folder:t",
    )
    assert (first.config.image_size, first.config.model.width) == (40, 8)
    other = make_plan(study(arms={"random": ()}, shared=shared), data=lambda name: "other")
    assert other.stages[0].id != first.id


def test_a_change_of_a_parent_changes_its_descendants_alone():
    config = study()
    changed = {**config.stages, "base": dataclasses.replace(config.stages["base"], image_size=32)}
    old, new = make_plan(config), make_plan(dataclasses.replace(config, stages=changed))
    for one, two in zip(old.runs, new.runs, strict=True):
        descends = one.arm in ("B+T", "BN")
        assert (one.stage.id == two.stage.id) is not descends


# Absent data


def test_ids_of_absent_data_and_of_all_that_follows_are_unknown():
    asked = make_plan(study(), data=lambda name: None if name == "folder:b" else "there")
    unknown = {s.name for s in asked.stages if s.id.endswith("-????????")}
    assert unknown == {"base", "target", "bn"}
    known = [s for s in asked.stages if s.name == "target" and s.parent is None]
    assert known
    assert not any("?" in s.id for s in known)


def test_ids_of_absent_weights_are_unknown():
    given = dataclasses.replace(BASIC, init="w", trainable="nothing", dataset="")
    assert id_of(given, weights=lambda path: None) == "t-????????"


def test_stages_of_absent_data_are_each_listed():
    present, absent = make_plan(study(seeds=(0, 1))), make_plan(study(seeds=(0, 1)), lambda n: None)
    assert len(absent.stages) == len(present.stages)


# Evaluations


def test_an_evaluations_file_depends_on_the_target_and_how_it_is_read():
    def files(config, **fingerprints):
        asked = make_plan(config, **fingerprints)
        return plan.evaluation_files(asked.stages[0], asked)

    config = one_stage(BASIC, target="folder:t")
    first = files(config)
    assert sorted(first) == ["knn", "linear"]
    assert len(set(first.values())) == 2
    assert all(path.startswith("evaluations/") for path in first.values())
    assert files(config, data=lambda name: "other") != first
    for name in ("image_size", "input.center_crop", "input.channels", "input.store_px"):
        assert files(one_stage(VARIANTS[name], target="folder:t")) != first, name
    for name in ("batch_size", "moco.momentum", "steps"):
        assert files(one_stage(VARIANTS[name], target="folder:t")) == first, name
    assert files(one_stage(BASIC)) == {}


def test_the_plan_on_file_tells_where_each_result_is():
    asked = make_plan(study(seeds=(0, 1), name="s"))
    content = plan.as_json(asked)
    assert (content["study"], content["dataset"]) == ("s", "folder:t")
    for told, one in zip(content["runs"], asked.runs, strict=True):
        assert told["stage_id"] == told["chain"][-1] == one.stage.id
        assert told["evaluations"] == plan.evaluation_files(one.stage, asked)
        assert told["neighbours"] == plan.neighbours_file(one.stage, asked)


def test_neighbours_go_by_what_they_are_found_with():
    def file(stage, **study_fields):
        asked = make_plan(one_stage(stage, target="folder:t", **study_fields))
        return plan.neighbours_file(asked.runs[0].stage, asked)

    first = file(BASIC)
    for name in ("image_size", "input.center_crop", "input.channels", "input.store_px"):
        assert file(VARIANTS[name]) != first, name
    assert file(VARIANTS["steps"]) == first
    assert file(BASIC, metric="macro_auroc") == first


# Kinship: the same stage on other content


def kin_of(stage, data="1", seed=0):
    (found,) = make_plan(one_stage(stage, seeds=(seed,)), data=lambda name: data).stages
    return lineage.kin(found)


def test_stages_that_differ_in_their_data_alone_are_kin():
    assert kin_of(BASIC, data="1") == kin_of(BASIC, data="2")
    for name in ("steps", "dataset", "moco.momentum"):
        assert kin_of(VARIANTS[name]) != kin_of(BASIC), name
    assert kin_of(BASIC, seed=1) != kin_of(BASIC)


def test_the_lineage_in_words_names_each_stage_of_the_chain():
    one = next(one for one in make_plan(study()).runs if one.arm == "BN")
    assert lineage.words(one.stage) == "base (folder:b, 30 steps) -> bn (folder:t, 10 steps)"
    given = dataclasses.replace(BASIC, init="w", trainable="nothing", dataset="")
    (stage,) = make_plan(one_stage(given)).stages
    assert lineage.words(stage) == "t (nothing, from w)"


# The dry run

DRY = """
from hpt_jax.config import default_config

def get_config():
    config = default_config()
    config.dry_run = True
    config.image_size, config.batch_size = 32, 8
    config.model.arch, config.model.width, config.moco.queue_size = "resnet10", 8, 8
    config.target = "folder:absent/target"
    config.stages.public = dict(init="absent.safetensors", trainable="nothing")
    config.stages.target = dict(dataset="folder:absent/target", steps=10)
    config.arms.T = ("target",)
    config.arms["B+T"] = ("public", "target")
    return config
"""


def test_a_dry_run_needs_no_data_imports_no_tensorflow_and_makes_nothing(tmp_path):
    (tmp_path / "dry.py").write_text(DRY)
    program = (
        "import sys; from hpt_jax.main import main; "
        "code = main(['--config', 'dry.py', '--workdir', 'w']); "
        "loaded = {'tensorflow', 'clu', 'matplotlib.pyplot'} & set(sys.modules); "
        "print('code', code, 'loaded', sorted(loaded))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "code 0 loaded []", done.stdout + done.stderr
    assert "(not found: absent/target)" in done.stdout
    assert "(not found: absent.safetensors)" in done.stdout
    assert "target-????????" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["dry.py"]


class Lines(Display):
    def __init__(self):
        super().__init__()
        self.lines = []

    def outcome(self, text):
        self.lines.append(text)


def test_a_dry_run_tells_what_is_done(tmp_path):
    for index in range(12):
        folder = tmp_path / "data" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(folder / f"{index}.png")
    config = config_lib.default_config()
    config.dry_run, config.data_dir, config.target = True, str(tmp_path), "folder:data"
    config.image_size, config.batch_size, config.moco.queue_size = 32, 8, 8
    config.model.arch, config.model.width = "resnet10", 8
    config.stages.t = {"dataset": "folder:data", "steps": 10}
    config.arms.T = ("t",)
    (stage,) = run.make_plan(config).stages

    def told():
        display = Lines()
        assert run.run(config, tmp_path / "w", display=display) == []
        return "\n".join(display.lines)

    text = told()
    assert stage.id in text
    assert "to do" in text
    assert "not found" not in text
    assert "0 of 2 done" in text
    folder = tmp_path / "w" / "stages" / stage.id
    (folder / "evaluations").mkdir(parents=True)
    (folder / "lineage.json").write_text(json.dumps(LINEAGE))
    assert "begun" in told()
    (folder / "done.json").write_text(json.dumps(DONE))
    files = plan.evaluation_files(stage, run.make_plan(config))
    (folder / files["knn"]).write_text(json.dumps(EVALUATION))
    text = told()
    assert f"{stage.id:28} done" in text
    assert "1 of 2 done" in text
    assert "at the rate of the stages done here" in text
    # Training: 4 forward passes of each of 8 x 10 examples in a minute; this probe: 1 of 32 x 30.
    config.evaluations = ("knn", "linear_sgd")
    config.linear_sgd.update(batch_size=32, steps=30, eval_every=10)
    assert "0.0 min of training and 3.0 min of linear_sgd" in told()
    # Fine-tuning: 3 forward passes of 16 x (4 + 2 epochs of 3) examples, 2 rates, 3 subsets.
    config.evaluations = ("knn", "finetune_40")
    config.finetune.update(batch_size=16, bn_groups=1, steps=(4,), epochs=(2,))
    assert "0.0 min of training and 9.0 min of finetune_40" in told()


@pytest.mark.parametrize("text", ["True", "true", "TRUE", "False", "false", None])
def test_a_dry_run_fetches_nothing_however_it_is_spelt(tmp_path, monkeypatch, text):
    config = config_lib.default_config()
    config.data_dir = str(tmp_path)
    config.stages.t = {"dataset": "tfds:cifar10", "steps": 10}
    config.arms.T = ("t",)
    config.dry_run = text is None
    asked = []
    monkeypatch.setattr(run.datasets, "prepare", lambda name, *_: asked.append(name))
    planned = run.make_plan(config, [] if text is None else [("dry_run", text)], Display())
    assert bool(asked) != planned.config.dry_run


# What results could not tell apart


def test_budgets_that_differ_in_nothing_on_the_target_are_refused():
    stage = Stage(dataset="folder:base", steps=(50, 200))
    with pytest.raises(UserError, match=r"arms\.T.*T@t_200"):
        make_plan(one_stage(stage, target="folder:target"))


def test_steps_on_the_target_count_however_its_folder_is_named():
    stage = Stage(dataset="folder:./target", steps=(50, 200))
    planned = make_plan(one_stage(stage, target="folder:target"), lambda name: "the same images")
    assert [one.pretrain_steps for one in planned.runs] == [50, 200]
    absent = make_plan(
        one_stage(dataclasses.replace(stage, dataset="folder:target"), target="folder:target"),
        lambda name: None,
    )
    assert [one.pretrain_steps for one in absent.runs] == [50, 200]


def test_statistics_stages_ignore_steps():
    stage = Stage(dataset="folder:target", steps=(50, 200), trainable="statistics")
    planned = make_plan(one_stage(stage, target="folder:target"))
    assert [one.pretrain_steps for one in planned.runs] == [0]


def test_other_weights_at_the_same_path_are_another_stage_and_no_kin():
    stage = Stage(dataset="folder:a", steps=10, init="w.safetensors")
    old, new = (
        make_plan(one_stage(stage), weights=lambda path, h=h: h).stages[0] for h in ("old", "new")
    )
    assert old.id != new.id
    assert lineage.kin(old) != lineage.kin(new)


def test_the_forecast_for_gpus_is_what_mocos_authors_took(tmp_path):
    # 200 epochs of ImageNet took them 53 hours on 8 V100 GPUs.
    asked = make_plan(one_stage(Stage(dataset="folder:imagenet", steps=1_000_900)))
    assert "on 8 V100 GPUs at best 2.2 days" in estimate.time_left(asked, tmp_path)
    short = make_plan(one_stage(Stage(dataset="folder:mine", steps=5)))
    assert "GPU" not in estimate.time_left(short, tmp_path)
