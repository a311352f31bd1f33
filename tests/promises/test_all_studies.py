"""Each study by one command, sharing what it has in common with those that ran before."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpt_jax import config as config_lib
from hpt_jax import run
from hpt_jax.config import ANALYSES

CONFIGS = Path(__file__).parents[2] / "configs" / "studies"
TINY = {
    "base": "folder:base", "source": "folder:source", "target": "folder:target",
    "base_steps": "2,3", "source_steps": "2", "source_scratch_steps": "2",
    "steps": "2", "scratch_steps": "2", "bn_steps": "2", "seeds": "0",
    "image_size": "16", "batch_size": "8", "model.width": "4", "moco.dim": "8",
    "moco.queue_size": "16", "finetune.steps": "2", "finetune.batch_size": "8",
    "finetune.eval_every": "1", "label_seeds": "0", "parallel.devices": "1",
}  # fmt: skip


class Lines:
    """A display that keeps its lines."""

    def __init__(self):
        from hpt_jax.telemetry.display import Display

        self.lines = []
        self.console = Display().console
        self.progress = Display().progress

    def line(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


def run_study(analysis, images, workdir, *overrides):
    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    config.data_dir = str(images)
    config.evaluations = {
        "semi_supervised": ("finetune_9", "linear_9"),
        "sequential": ("linear", "knn", "finetune_9"),
    }.get(analysis, ("linear", "knn"))
    display = Lines()
    return run.run(config, workdir, [*TINY.items(), *overrides], display), display.lines


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_study_is_one_command_and_nothing_is_done_twice(analysis, images, workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("stages/*/done.json")}
    rows, _ = run_study(analysis, images, workdir)
    mine = [row for row in rows if row.study == analysis]
    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    config.data_dir = str(images)
    asked = run.make_plan(config, list(TINY.items()))
    assert {row.arm for row in mine} == set(asked.config.arms)
    assert {(row.arm, row.pretrain_steps) for row in mine} == {
        (one.arm, one.pretrain_steps) for one in asked.runs
    }
    assert all(0 <= row.value <= 1 for row in mine)
    after = {path: path.stat().st_mtime_ns for path in workdir.glob("stages/*/done.json")}
    assert {path: after[path] for path in before} == before
    if before:
        assert any(stage.id == path.parent.name for stage in asked.stages for path in before)

    again, lines = run_study(analysis, images, workdir)
    assert again == rows
    assert not [line for line in lines if "on test" in line or "seed" in line]


def test_a_study_that_asks_for_more_labels_than_there_are_says_so(images, tmp_path):
    from hpt_jax.errors import UserError

    for labels in (2, 5000):
        with pytest.raises(UserError, match=rf"finetune_{labels}.*from 3 labels"):
            run_study("sequential", images, tmp_path / "w", ("evaluations", f"finetune_{labels}"))
    assert not (tmp_path / "w" / "stages").exists()
