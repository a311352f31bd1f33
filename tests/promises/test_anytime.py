"""The schedule 'anytime': one run yields what separate runs would."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import config_dict
from support import saved, steps_in, tiny_config

from hpt_jax import branch, estimate, plan, pretrain, run
from hpt_jax.workdir import StageFolder, stage_folder


def anytime(images: Path, *steps: int, **optimizer: Any) -> config_dict.ConfigDict:
    config = tiny_config(images)
    config.optimizer.update(schedule="anytime", decay=0.25, **optimizer)
    config.stages.target = dict(dataset="folder:target", steps=steps)
    config.arms.T = ("target",)
    return config


def folders(config: config_dict.ConfigDict, workdir: Path) -> list[StageFolder]:
    return [stage_folder(workdir, stage.id) for stage in run.make_plan(config).stages]


def assert_same(one: StageFolder, other: StageFolder) -> None:
    for part in ("backbone", "state", "totals"):
        expected, got = saved(one, part), saved(other, part)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    assert one.measures.read_bytes() == other.measures.read_bytes()


def steps_taken(folder: StageFolder) -> int:
    return int(json.loads(folder.done.read_text())["steps_timed"])


def test_stages_of_one_trunk_are_those_of_separate_runs(images: Path, tmp_path: Path) -> None:
    together = anytime(images, 12, 4, 8)  # in any order
    run.run(together, tmp_path / "together")
    branches = folders(together, tmp_path / "together")
    assert [steps_taken(one) for one in branches] == [4, 8 - 3, 12 - 6]
    for steps, one in zip((4, 8, 12), branches, strict=True):
        alone = anytime(images, steps)
        run.run(alone, tmp_path / f"alone{steps}")
        assert_same(*folders(alone, tmp_path / f"alone{steps}"), one)


def test_a_finished_run_is_lengthened_from_where_its_rate_began_to_fall(
    images: Path, tmp_path: Path
) -> None:
    run.run(anytime(images, 8), tmp_path)
    longer = anytime(images, 20)
    run.run(longer, tmp_path)
    (folder,) = folders(longer, tmp_path)
    assert steps_taken(folder) == 20 - 6
    assert (folder.path / "parameters.txt").is_file()


@pytest.mark.parametrize("optimizer", [{"decay": 0.0}, {"warmup_steps": 4}], ids=str)
def test_the_end_of_a_stage_whose_rate_never_fell_is_no_beginning(
    images: Path, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    """At its end it has rows of metrics that a longer one has not."""
    for steps in (4, 8):
        config = anytime(images, steps)
        config.optimizer.update(optimizer)
        config.log_every_steps = 3
        run.run(config, tmp_path / "both")
    run.run(config, tmp_path / "alone")
    (folder,) = folders(config, tmp_path / "both")
    assert steps_taken(folder) == 5
    assert_same(*folders(config, tmp_path / "alone"), folder)


def test_a_run_that_was_stopped_is_ended_early_by_a_short_decay(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: Any) -> bool:
        raise Stopped

    config = anytime(images, 100)
    config.save_every_steps = 9
    due = pretrain._due
    monkeypatch.setattr(pretrain, "_due", lambda saving, done, _: due(saving, done, 0))
    monkeypatch.setattr(pretrain, "is_due", lambda step, last: step == 10 and stop())
    with pytest.raises(Stopped):
        run.run(config, tmp_path)
    monkeypatch.undo()
    (begun,) = folders(config, tmp_path)
    assert steps_in(begun.checkpoints) == [9]

    shorter = anytime(images, 12)  # whose rate falls after 9
    run.run(shorter, tmp_path)
    (folder,) = folders(shorter, tmp_path)
    assert steps_taken(folder) == 3
    assert steps_in(begun.checkpoints) == [9]


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.2}, {"weight_decay": 0.1}, {"warmup_steps": 1}],
    ids=lambda change: next(iter(change)),
)
def test_other_training_is_another_trunk(images: Path, change: dict[str, float]) -> None:
    shorter, longer, other = anytime(images, 4), anytime(images, 8), anytime(images, 8)
    other.optimizer.update(change)
    trunks = [run.make_plan(config).stages[0].trunk for config in (shorter, longer, other)]
    assert trunks[0] == trunks[1] != trunks[2]


def test_a_damaged_branch_point_is_not_taken(images: Path, tmp_path: Path) -> None:
    run.run(anytime(images, 4), tmp_path)
    (first,) = folders(anytime(images, 4), tmp_path)
    assert steps_in(first.checkpoints) == [3, 4]
    damaged = next(path for path in (first.checkpoints / "3").rglob("d/*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    longer = anytime(images, 8)
    run.run(longer, tmp_path)
    (folder,) = folders(longer, tmp_path)
    assert steps_taken(folder) == 8
    run.run(anytime(images, 8), tmp_path / "alone")
    assert_same(*folders(longer, tmp_path / "alone"), folder)


@pytest.mark.parametrize("name", ["metrics.csv", "measures.csv"])
def test_what_has_damaged_rows_is_not_taken(images: Path, tmp_path: Path, name: str) -> None:
    run.run(anytime(images, 4), tmp_path)
    (first,) = folders(anytime(images, 4), tmp_path)
    with (first.path / name).open("a") as file:
        file.write("abc,1\n")
    longer = anytime(images, 8)
    run.run(longer, tmp_path)
    (folder,) = folders(longer, tmp_path)
    assert steps_taken(folder) == 8


def test_a_full_disk_while_branching_is_told(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run(anytime(images, 4), tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    (stage,) = run.make_plan(anytime(images, 8)).stages
    with pytest.raises(OSError, match="No space left"):
        branch.branch(stage, tmp_path, print)
    assert steps_in(stage_folder(tmp_path, stage.id).checkpoints) == []


def test_a_cosine_shares_nothing(images: Path, tmp_path: Path) -> None:
    config = anytime(images, 4, 8)
    config.optimizer.schedule = "cosine"
    run.run(config, tmp_path)
    assert [steps_taken(one) for one in folders(config, tmp_path)] == [4, 8]


def test_a_branch_without_rows_yet_is_no_fault(images: Path, tmp_path: Path) -> None:
    config = anytime(images, 4)
    config.log_every_steps = 50
    run.run(config, tmp_path)
    (first,) = folders(config, tmp_path)
    first.metrics.unlink()
    longer = anytime(images, 8)
    (stage,) = run.make_plan(longer).stages
    branch.branch(stage, tmp_path, print)
    assert steps_in(stage_folder(tmp_path, stage.id).checkpoints) == [3]


@pytest.mark.parametrize(
    ("decay", "warmup", "steps", "expected"),
    [(0.2, 0, 50, 40), (0.2, 0, 5000, 4000), (0.25, 0, 5, 3), (0, 0, 7, 6), (1, 3, 7, 3)],
)
def test_the_rate_begins_to_fall_at_the_last_share_of_the_steps(
    decay: float, warmup: int, steps: int, expected: int
) -> None:
    config = tiny_config(Path("none"))
    config.optimizer.update(schedule="anytime", decay=decay, warmup_steps=warmup)
    config.stages.target = dict(dataset="folder:target", steps=steps)
    config.arms.T = ("target",)
    (stage,) = run.make_plan(config).stages
    assert stage.branch_step == plan.branch_step(stage.config.optimizer, steps) == expected


def test_the_estimate_counts_shared_steps_once(images: Path, tmp_path: Path) -> None:
    config = anytime(images, 4, 8, 12)
    together = estimate.seconds_left(run.make_plan(config), tmp_path)[0]
    config.optimizer.schedule = "cosine"
    separate = estimate.seconds_left(run.make_plan(config), tmp_path)[0]
    assert together / separate == pytest.approx((4 + 8 - 3 + 12 - 6) / (4 + 8 + 12))


def test_the_estimate_leaves_out_what_is_there(images: Path, tmp_path: Path) -> None:
    run.run(anytime(images, 4), tmp_path)
    asked = run.make_plan(anytime(images, 8))
    seconds, _, rate, _ = estimate.seconds_left(asked, tmp_path)
    assert seconds * rate == pytest.approx(estimate.stage_flops(asked.stages[0]) * 5 / 8)


def test_stages_of_data_that_is_not_there_share_nothing(tmp_path: Path) -> None:
    config = anytime(tmp_path, 4, 8)
    assert [stage.trunk for stage in run.make_plan(config).stages] == ["", ""]
