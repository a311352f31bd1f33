"""A study's stages and arms follow from its analysis, its three datasets and its scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpt_jax import config as config_lib
from hpt_jax import plan, run, studies
from hpt_jax import resolve as resolve_lib
from hpt_jax.config import ANALYSES, labels_of
from hpt_jax.errors import UserError
from hpt_jax.paper import TRIPLES
from hpt_jax.telemetry.display import Display

CONFIGS = Path(__file__).parents[1] / "configs" / "studies"
FACTS = {
    "folder:base": {"images": 20_000, "channels": 3, "classes": 200, "multi_label": False},
    "folder:source": {"images": 8_000, "channels": 3, "classes": 30, "multi_label": False},
    "folder:target": {"images": 1_400, "channels": 3, "classes": 7, "multi_label": False},
}
ROLES = ("base", "source", "source_scratch", "target", "scratch")
MINE = ("base=folder:base", "source=folder:source", "target=folder:target")


def resolve(analysis, *overrides, facts=FACTS, weights=None):
    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    pairs = [tuple(one.split("=", 1)) for one in overrides]
    return resolve_lib.resolve(config, pairs, facts.get, lambda path: weights)


def planned(analysis, *overrides, **more):
    resolved = resolve(analysis, *MINE, *overrides, **more)
    return plan.make_plan(resolved, lambda name: name, lambda path: path)


def mistakes(analysis, *overrides):
    with pytest.raises(UserError) as raised:
        resolve(analysis, *overrides)
    return [one.field for one in raised.value.mistakes]


def test_each_analysis_has_a_config_named_after_it():
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(ANALYSES)
    for analysis in ANALYSES:
        resolved = resolve(analysis, *MINE)
        assert (resolved.name, resolved.analysis) == (analysis, analysis)


@pytest.mark.parametrize("scale", list(studies.SCALES))
@pytest.mark.parametrize("triple", list(TRIPLES))
@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_triple_dry_runs_at_both_scales(analysis, triple, scale, tmp_path):
    lines = []

    class Lines(Display):
        outcome = staticmethod(lines.append)

    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    overrides = [("triple", triple), ("scale", scale), ("dry_run", "True"), ("data_dir", "nowhere")]
    assert run.run(config, tmp_path / "w", overrides, Lines()) == []
    assert not (tmp_path / "w").exists()
    text = "\n".join(lines)
    assert TRIPLES[triple].target in text.replace("nowhere/", "folder:")
    assert "time left" in text


@pytest.mark.parametrize("scale", list(studies.SCALES))
def test_studies_share_the_stages_that_they_have_in_common(scale):
    ids = {
        analysis: {stage.id for stage in planned(analysis, f"scale={scale}", "seeds=0").stages}
        for analysis in ANALYSES
    }
    shared = ids["semi_supervised"] & ids["data_robustness"] & ids["augmentation_robustness"]
    kinds = {one.rpartition("-")[0] for one in shared}
    assert {"base", "target_statistics", "target"} <= kinds
    alone, together = sum(map(len, ids.values())), len(set.union(*ids.values()))
    assert together < 0.75 * alone


def test_separability_spreads_budgets_and_marks_the_arms_of_the_paper():
    found = planned("separability", "seeds=0")
    steps = {}
    for one in found.runs:
        steps.setdefault(one.arm, []).append(one.pretrain_steps)
    assert steps == {
        "random": [0], "B-direct": [0], "B": [0], "T": [50, 200, 600, 1600],
        "B+T": [10, 50, 200], "HPT-BN": [200],
    }  # fmt: skip
    chain = planned("sequential", "seeds=0").runs[-1].stage.chain
    assert sum(stage.steps for stage in chain) == steps["T"][-1]  # given all that the chain takes
    paper = planned("separability", "seeds=0", "scale=paper")
    of_paper = {(one.arm, one.pretrain_steps) for one in paper.runs}
    assert {("B+T", 50), ("B+T", 50_000), ("T", 400_000), ("HPT-BN", 5_000)} <= of_paper


def test_sequential_has_every_way_through_the_hierarchy():
    found = planned("sequential", "seeds=0")
    chains = {one.arm: [stage.name for stage in one.stage.chain] for one in found.runs}
    assert chains == {
        "random": ["random"],
        "B": ["base", "target_statistics"],
        "S": ["source_scratch", "target_statistics"],
        "T": ["scratch"],
        "B+S": ["base", "source", "target_statistics"],
        "B+T": ["base", "target"],
        "S+T": ["source_scratch", "target"],
        "B+S+T": ["base", "source", "target"],
    }


def test_augmentation_changes_the_policy_of_the_target_stage_alone():
    found = planned("augmentation_robustness", "seeds=0")
    for one in found.runs:
        arm, _, policy = one.arm.partition("@")
        if policy:
            assert one.stage.config.augment == studies_policy(policy), one.arm
            others = [stage.config.augment for stage in one.stage.chain[:-1]]
            assert others == [studies_policy("moco_v2")] * (arm == "B+T")


def studies_policy(name):
    from hpt_jax.augment.policies import POLICIES

    return POLICIES[name]


def test_data_robustness_takes_shares_of_the_targets_images():
    found = planned("data_robustness", "seeds=0")
    shares = {one.arm: one.stage.config.subset for one in found.runs if "@" in one.arm}
    assert shares == {
        f"{arm}@{percent}%": percent / 100
        for arm in ("T", "B+T", "HPT-BN")
        for percent in (1, 10, 25, 100)
    }
    queues = {one.arm: one.stage.config.moco.queue_size for one in found.runs if "T@" in one.arm}
    assert queues["T@100%"] == 1024  # no more than the images
    assert queues["T@1%"] == 128  # but a batch


def test_one_budget_stands_for_the_arms_beside_it():
    found = planned("sequential", "seeds=0", "steps=70", "source_steps=40")
    steps = {stage.name: stage.steps for stage in found.stages if stage.name != "base"}
    assert {steps[name] for name in ("target", "scratch")} == {70}
    assert {steps[name] for name in ("source", "source_scratch")} == {40}
    separate = planned("separability", "seeds=0", "steps=5,70", "scratch_steps=9")
    assert {one.pretrain_steps for one in separate.runs if one.arm == "HPT-BN"} == {70}
    assert {one.pretrain_steps for one in separate.runs if one.arm == "T"} == {9}


def test_base_quality_trains_its_bases_for_shorter_and_longer():
    found = planned("base_quality", "seeds=0", "base_steps=20,50")
    bases = {one.arm: one.stage.chain[0].steps for one in found.runs if one.arm != "T"}
    assert bases == {"B@base_20": 20, "B+T@base_20": 20, "B@base_50": 50, "B+T@base_50": 50}


def test_a_base_may_be_a_checkpoint():
    weights = {"arch": "resnet18", "width": 8, "stem": "small", "stem_stride": 1, "channels": 3}
    grey = {"folder:target": {**FACTS["folder:target"], "channels": 1}}
    resolved = resolve(
        "separability", "base=w.safetensors", "target=folder:target", facts=grey, weights=weights
    )
    assert resolved.stages["base"].init == "w.safetensors"
    assert resolved.stages["base"].trainable == "nothing"
    target = resolved.stages["target"]
    assert (target.model.arch, target.model.width, target.input.channels) == ("resnet18", 8, 3)
    with pytest.raises(UserError, match=r"base.*a dataset"):
        resolve("base_quality", "base=w.safetensors", "target=folder:target")


def test_base_quality_needs_two_bases():
    assert mistakes("base_quality", *MINE, "base_steps=300") == ["base_steps"]


def test_a_folder_that_is_no_checkpoint_is_told_how_to_be_a_dataset(tmp_path):
    config = config_lib.load(str(CONFIGS / "separability.py"))
    overrides = [("base", str(tmp_path)), ("target", "folder:x"), ("dry_run", "True")]
    with pytest.raises(UserError, match=rf"base.*folder:{tmp_path}"):
        run.run(config, tmp_path / "w", overrides)


def test_a_hierarchy_of_ones_own_is_trained_anew_for_each_seed():
    found = planned("sequential")
    seeds = {name: {one.seed for one in found.stages if one.name == name} for name in ROLES}
    assert all(found == {0, 1, 2} for found in seeds.values()), seeds
    kept = planned("sequential", "shared_stages=base,source")
    assert len([stage for stage in kept.stages if stage.name in ("base", "source")]) == 2


@pytest.mark.parametrize("overrides", [("scale=paper", "seeds=0,1,2"), ("base=w.safetensors",)])
def test_a_public_base_is_one_model_for_all_seeds(overrides):
    weights = {"arch": "resnet18", "width": 8, "stem": "small", "stem_stride": 1, "channels": 3}
    found = planned("separability", *overrides, weights=weights)
    assert len([stage for stage in found.stages if stage.name == "base"]) == 1
    assert {one.seed for one in found.runs if one.arm == "B+T"} == {0, 1, 2}


def test_what_a_user_sets_is_kept():
    resolved = resolve(
        "separability", *MINE, "optimizer.learning_rate=0.5", "moco.queue_size=256",
        "model.width=8", "evaluations=knn", "metric=macro_auroc", "steps=7", "batch_size=32",
        "image_size=24", "seeds=4",
    )  # fmt: skip
    assert {stage.optimizer.learning_rate for stage in resolved.stages.values()} == {0.5}
    assert {stage.moco.queue_size for stage in resolved.stages.values()} == {256}
    target = resolved.stages["target"]
    assert (target.model.width, target.steps, target.batch_size) == (8, (7,), 32)
    assert (target.image_size, resolved.evaluations, resolved.seeds) == (24, ("knn",), (4,))
    assert resolved.metric == "macro_auroc"


def test_data_chooses_channels_batch_labels_and_metric():
    small = {
        "folder:base": {"images": 90, "channels": 3, "classes": 2, "multi_label": False},
        "folder:target": {"images": 400, "channels": 1, "classes": 150, "multi_label": True},
    }
    given = ("base=folder:base", "target=folder:target")
    resolved = resolve("semi_supervised", *given, facts=small)
    assert resolved.metric == "macro_auroc"
    assert {labels_of(one) for one in resolved.evaluations} == {150}  # one of each class
    stages = resolved.stages.values()
    assert {(one.batch_size, one.input.channels) for one in stages} == {(32, 3)}


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (("triple=arial",), ["triple"]),
        (("scale=large",), ["scale"]),
        (("analysis=separabilty", "scale=x"), ["analysis", "scale"]),
        (("target=folder:mine",), ["base"]),
        (("base=folder:mine",), ["target"]),
        (("source_steps=many",), ["source_steps"]),
        (("stepz=3",), ["config.stepz"]),
        (("stages.target.steps=3",), ["config.stages.target.steps"]),
        (("base=folder:b", "target=../drawings"), ["target"]),
    ],
)
def test_a_mistake_in_a_short_hand_field_is_one_message(overrides, fields):
    assert mistakes("separability", *overrides) == fields


def test_a_source_of_another_triple_is_never_put_beside_ones_own_target():
    assert mistakes("sequential", "base=folder:base", "target=folder:target") == ["source"]
    with_triple = resolve("sequential", "triple=aerial", "target=folder:target")
    assert with_triple.stages["source"].dataset == TRIPLES["aerial"].source


def test_a_triple_names_its_studies_and_says_how_its_images_are_judged():
    named = resolve("separability", "triple=chest")
    assert (named.name, named.metric) == ("chest_separability", "macro_auroc")
    assert named.evaluations == ("linear_50", "linear_200")
    assert {(one.input.channels, one.image_size) for one in named.stages.values()} == {(1, 24)}
    large = resolve("separability", "triple=chest", "scale=paper")
    assert {one.image_size for one in large.stages.values()} == {224}
    assert resolve("separability").name == "aerial_separability"
    mine = resolve("separability", "triple=chest", "target=folder:target")  # of another kind
    assert (mine.name, mine.metric) == ("separability", "top1")
    assert {(one.input.channels, one.image_size) for one in mine.stages.values()} == {(3, 32)}
    assert resolve("separability", "triple=chest", "evaluations=knn").evaluations == ("knn",)


def test_a_checkpoint_decides_the_channels_of_a_triple():
    weights = {"arch": "resnet18", "width": 8, "stem": "small", "stem_stride": 1, "channels": 3}
    resolved = resolve("separability", "triple=chest", "base=w.safetensors", weights=weights)
    assert {one.input.channels for one in resolved.stages.values()} == {3}
