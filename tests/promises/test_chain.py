"""What passes from stage to stage, and what a second run of the same command does."""

from __future__ import annotations

import csv
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from support import folder_of, last_stage, saved, tiny_config

from hpt_jax import handover, parallel, plan, run, training
from hpt_jax.library import Library
from hpt_jax.telemetry.display import Display
from hpt_jax.weights import load
from hpt_jax.workdir import read_json, stage_folder


def config_of(images: Path) -> config_dict.ConfigDict:
    config = tiny_config(images)
    config.target = "folder:target"
    config.input.center_crop = 1.0
    for name in ("base", "source", "target"):
        config.stages[name] = dict(dataset=f"folder:{name}", steps=3)
    config.stages.target_bn = dict(dataset="folder:target", steps=3, trainable="batch_norm")
    config.stages.target_statistics = dict(dataset="folder:target", trainable="statistics")
    config.arms.update({
        "random": (),
        "B": ("base", "target_statistics"),
        "B-direct": ("base",),
        "S": ("source",),
        "B+S": ("base", "source"),
        "T": ("target",),
        "B+T": ("base", "target"),
        "S+T": ("source", "target"),
        "B+S+T": ("base", "source", "target"),
        "HPT-BN": ("base", "target_bn"),
    })  # fmt: skip
    return config


@pytest.fixture(scope="module")
def workdir(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chain")
    run.run(config_of(images), root)
    return root


def tensors(folder: Path, config: config_dict.ConfigDict, arm: str) -> dict[str, np.ndarray]:
    return saved(folder_of(config, folder, arm), "backbone")


def start_of(
    images: Path, workdir: Path, stage: plan.Stage
) -> tuple[training.Carry, dict[str, np.ndarray]]:
    """What a stage starts to train from, and the backbone that its parent ended with."""
    devices = parallel.make_devices(1)
    data = Library(str(images), devices, Display()).of_stage(stage)
    assert data is not None
    assert stage.parent is not None
    initial, _ = handover.initial_backbone(stage, workdir, data, devices)
    method = training.method_of(stage.config)
    model = training.make_model(stage.config.model, devices)
    settings = method.make_settings(stage.config, model, 3)
    carry = training.initial_carry(method, settings, jax.random.key(5), initial)
    return carry, saved(stage_folder(workdir, stage.parent.id), "backbone")


def test_chain_hands_over_the_backbone_bit_for_bit_and_nothing_else(
    images: Path, workdir: Path
) -> None:
    for stage in last_stage(config_of(images), "B+S+T").chain[1:]:
        carry, parent = start_of(images, workdir, stage)
        state, totals = carry.state, carry.totals
        given = {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                {"params": state.backbone.params, "batch_stats": state.backbone.batch_stats}
            )
        }
        assert len(given) == 30
        for name, value in given.items():
            np.testing.assert_array_equal(value, parent[name], err_msg=name)
        ended = saved(stage_folder(workdir, stage.parent.id), "state")
        assert not np.array_equal(state.queue, ended["['queue']"])
        assert not np.array_equal(state.head["fc1"]["kernel"], ended["['head']['fc1']['kernel']"])
        assert int(state.step) == int(state.queue_fill) == int(state.queue_pointer) == 0
        assert all(not np.any(leaf) for leaf in jax.tree.leaves((state.opt_state, totals)))
        for own, key in zip(
            jax.tree.leaves({"backbone": state.backbone.params, "head": state.head}),
            jax.tree.leaves(state.key_params),
            strict=True,
        ):
            np.testing.assert_array_equal(own, key)


def test_pixel_statistics_are_each_stages_own(images: Path, workdir: Path) -> None:
    config = config_of(images)
    by_stage = {arm: tensors(workdir, config, arm)["['pixel_mean']"] for arm in ("B-direct", "B+T")}
    assert not np.array_equal(by_stage["B-direct"], by_stage["B+T"])
    np.testing.assert_array_equal(
        by_stage["B+T"], tensors(workdir, config, "random")["['pixel_mean']"]
    )


def test_hpt_bn_leaves_every_convolution_bit_identical(images: Path, workdir: Path) -> None:
    config = config_of(images)
    base, adapted = (tensors(workdir, config, arm) for arm in ("B-direct", "HPT-BN"))
    kernels = [name for name in base if name.endswith("['kernel']")]
    scales = [name for name in base if name.endswith(("['scale']", "['bias']"))]
    assert len(kernels) == 6
    for name in kernels:
        np.testing.assert_array_equal(adapted[name], base[name], err_msg=name)
    for name in [*scales, *(n for n in base if "batch_stats" in n)]:
        assert not np.array_equal(adapted[name], base[name]), name
    state = saved(folder_of(config, workdir, "HPT-BN"), "state")
    keys = {n: v for n, v in state.items() if "key_params" in n and n.endswith("['kernel']")}
    for name in kernels:
        in_key = name.replace("['params']", "['key_params']['backbone']")
        np.testing.assert_array_equal(keys[in_key], base[name], err_msg=name)
    # Frozen weights carry no momentum either.
    assert not any("opt_state" in n and "conv" in n and "kernel" in n for n in state)


def test_statistics_changes_nothing_but_running_statistics(images: Path, workdir: Path) -> None:
    config = config_of(images)
    base, adapted = (tensors(workdir, config, arm) for arm in ("B-direct", "B"))
    for name, value in base.items():
        same = np.array_equal(adapted[name], value)
        changes = "batch_stats" in name or name in ("['pixel_mean']", "['pixel_std']")
        assert same == (not changes), name


def test_statistics_are_the_average_over_one_pass(images: Path, workdir: Path) -> None:
    stage = last_stage(config_of(images), "B")
    devices = parallel.make_devices(1)
    data = Library(str(images), devices, Display()).of_stage(stage)
    assert data is not None
    initial, _ = handover.initial_backbone(stage, workdir, data, devices)
    # The first layer's statistics by hand: its convolution over the evaluation views, here the
    # stored pixels themselves, in the order of the pass.
    assert data.feed.placed is not None
    views = (np.asarray(data.feed.placed) / 255 - data.pixel_mean) / data.pixel_std
    means = []
    batches = -(-len(data.rows) // 8)
    for step in range(batches):
        rows = data.rows[training.batch_indices(stage.seed, step, 8, len(data.rows))]
        x = views[rows].astype(np.float32)
        kernel = initial.params["conv1"]["kernel"]
        out = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        means.append(np.asarray(out).mean((0, 1, 2)))
    adapted = tensors(workdir, config_of(images), "B")
    np.testing.assert_allclose(
        adapted["['batch_stats']['bn1']['mean']"], np.mean(means, 0), atol=1e-5
    )


def test_arms_share_the_stages_they_have_in_common(images: Path, workdir: Path) -> None:
    folders = {path.name for path in (workdir / "stages").iterdir()}
    planned = {stage.id for stage in run.make_plan(config_of(images)).stages}
    assert folders == planned
    # base, source after base, source alone, four targets, target_bn, target_statistics, random
    assert len(folders) == 10


def test_lineage_tells_the_chain_in_words(images: Path, workdir: Path) -> None:
    lineage = read_json(folder_of(config_of(images), workdir, "B+S+T").lineage)
    assert lineage["words"] == (
        "base (folder:base, 3 steps) -> source (folder:source, 3 steps) -> "
        "target (folder:target, 3 steps)"
    )
    assert [parent["dataset"] for parent in lineage["parents"]] == ["folder:base", "folder:source"]
    cut = lineage["dataset"]["cut"]
    assert set(cut) == {"val", "test"}
    assert not set(cut["val"]) & set(cut["test"])


def test_results_have_one_row_for_each_arm_evaluation_and_split(
    images: Path, workdir: Path
) -> None:
    with (workdir / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    arms = config_of(images).arms
    keys = [(row["arm"], row["evaluation"], row["split"]) for row in rows]
    assert sorted(keys) == sorted(
        (arm, evaluation, split)
        for arm in arms
        for evaluation in ("linear", "knn")
        for split in ("val", "test")
    )
    steps = {row["arm"]: int(row["pretrain_steps"]) for row in rows}
    assert steps == {
        "random": 0, "B": 0, "B-direct": 0, "S": 0, "B+S": 0,
        "T": 3, "B+T": 3, "S+T": 3, "B+S+T": 3, "HPT-BN": 3,
    }  # fmt: skip
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert {(r["evaluation"], r["selected_by"]) for r in rows} == {("linear", "val"), ("knn", "")}


def test_same_command_twice_does_no_work_and_leaves_results_byte_equal(
    images: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (workdir / "stages").rglob("*") if p.is_file()}

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("worked again")

    before, results = files(), (workdir / "results.csv").read_bytes()
    monkeypatch.setattr(run.pretrain, "run_stage", refuse)
    monkeypatch.setattr(run.evaluations, "evaluate", refuse)
    run.run(config_of(images), workdir)
    assert (workdir / "results.csv").read_bytes() == results
    after = files()
    assert {p for p in after if p.name != "lock"} == {p for p in before if p.name != "lock"}
    assert all(after[p] == before[p] for p in before if p.name != "lock")


def test_a_run_leaves_pictures_and_a_page_that_is_made_again(images: Path, workdir: Path) -> None:
    asked = run.make_plan(config_of(images))
    for stage in asked.stages:
        folder = stage_folder(workdir, stage.id)
        assert folder.views.is_file() == stage.trains
    for one in asked.runs:
        path = stage_folder(workdir, one.stage.id).path / plan.neighbours_file(one.stage, asked)
        for query in read_json(path)["queries"]:
            assert len(query["neighbours"]) == 5
            assert set(query["classes"]) <= {"class0", "class1", "class2"}
        assert path.with_suffix(".png").is_file()
    page = workdir / "report" / "index.html"
    first = page.read_bytes()
    assert b"data:image/" in first
    page.unlink()
    run.run(config_of(images), workdir)
    assert page.read_bytes() == first


def test_a_deleted_evaluation_is_made_again_byte_equal(images: Path, workdir: Path) -> None:
    results = (workdir / "results.csv").read_bytes()
    folder = folder_of(config_of(images), workdir, "T")
    for path in (folder.path / "evaluations").glob("*.json"):
        path.unlink()
    run.run(config_of(images), workdir)
    assert (workdir / "results.csv").read_bytes() == results


def test_export_holds_the_last_backbone_bit_for_bit(images: Path, workdir: Path) -> None:
    config = config_of(images)
    config.export = "B+S+T"
    run.run(config, workdir)
    exported = load.load(str(workdir / "export" / "backbone.safetensors"))
    stage = load.load(str(folder_of(config, workdir, "B+S+T").path))
    assert exported.tensors.keys() == stage.tensors.keys()
    for name, value in stage.tensors.items():
        np.testing.assert_array_equal(exported.tensors[name], value, err_msg=name)
    np.testing.assert_array_equal(exported.pixel_mean, stage.pixel_mean)


def test_a_finished_stage_can_start_another_run(
    images: Path, workdir: Path, tmp_path: Path
) -> None:
    base = folder_of(config_of(images), workdir, "B-direct")
    config = tiny_config(images)
    config.stages.base = dict(init=str(base.path), trainable="nothing")
    config.arms.update({"B-direct": ("base",)})
    run.run(config, tmp_path)
    copied = tensors(tmp_path, config, "B-direct")
    for name, value in saved(base, "backbone").items():
        np.testing.assert_array_equal(copied[name], value, err_msg=name)


def test_nothing_in_results_depends_on_the_workdir(
    images: Path, workdir: Path, tmp_path: Path
) -> None:
    config = config_of(images)
    config.arms = {"B-direct": ("base",), "B": ("base", "target_statistics")}
    run.run(config, tmp_path / "elsewhere")
    rows = (tmp_path / "elsewhere" / "results.csv").read_text().splitlines()
    drop_config_id = {line.rpartition(",")[0] for line in rows[1:]}
    assert drop_config_id <= {
        line.rpartition(",")[0] for line in (workdir / "results.csv").read_text().splitlines()
    }
    assert str(tmp_path) not in "".join(rows)
