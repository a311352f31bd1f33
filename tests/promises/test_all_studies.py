"""Each study by one command, sharing what it has in common with those that ran before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpt_jax import config as config_lib
from hpt_jax import run
from hpt_jax.config import ANALYSES
from hpt_jax.errors import UserError
from hpt_jax.paper import TRIPLES
from hpt_jax.telemetry.display import Display

CONFIGS = Path(__file__).parents[2] / "configs" / "studies"
FOLDERS = {"base": "folder:base", "source": "folder:source", "target": "folder:target"}
TINY = {
    "base_steps": "2,3", "source_steps": "2", "source_scratch_steps": "2",
    "steps": "2", "scratch_steps": "2", "bn_steps": "2", "seeds": "0",
    "image_size": "16", "batch_size": "8", "model.width": "4", "moco.dim": "8",
    "moco.queue_size": "16", "finetune.steps": "2", "finetune.batch_size": "8",
    "finetune.eval_every": "1", "label_seeds": "0", "parallel.devices": "1",
}  # fmt: skip


class Lines(Display):
    """A display that keeps its lines."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def outcome(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


def run_study(analysis, images, workdir, overrides):
    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    config.data_dir = str(images)
    config.evaluations = {
        "semi_supervised": ("finetune_9", "linear_9"),
        "sequential": ("linear", "knn", "finetune_9"),
    }.get(analysis, ("linear", "knn"))
    display = Lines()
    return run.run(config, workdir, list(overrides.items()), display), display.lines


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_study_runs_on_the_aerial_triple_where_it_is_at_hand(analysis, tmp_path):
    folder = os.environ.get("HPT_JAX_DATA", "")
    names = [getattr(TRIPLES["aerial"], role) for role in ("base", "source", "target")]
    sets = [Path(folder) / name.partition(":")[2] for name in names]
    if not (folder and all(path.is_dir() for path in sets)):
        pytest.skip("HPT_JAX_DATA names no folder with the sets of configs/aerial.py")
    rows, _ = run_study(analysis, folder, tmp_path, TINY)
    assert {row.dataset for row in rows} == {TRIPLES["aerial"].target}


# Which train most.
LONG = tuple(one for one in ANALYSES if one != "sequential")


@pytest.mark.parametrize(
    "analysis",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in LONG)) for one in ANALYSES],
)
def test_a_study_is_one_command_and_nothing_is_done_twice(analysis, images, workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("stages/*/done.json")}
    rows, _ = run_study(analysis, images, workdir, FOLDERS | TINY)
    mine = [row for row in rows if row.study == analysis]
    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    config.data_dir = str(images)
    asked = run.make_plan(config, list((FOLDERS | TINY).items()))
    assert {row.arm for row in mine} == set(asked.config.arms)
    assert {(row.arm, row.pretrain_steps) for row in mine} == {
        (one.arm, one.pretrain_steps) for one in asked.runs
    }
    assert all(0 <= row.value <= 1 for row in mine)
    after = {path: path.stat().st_mtime_ns for path in workdir.glob("stages/*/done.json")}
    assert {path: after[path] for path in before} == before
    if before:
        assert any(stage.id == path.parent.name for stage in asked.stages for path in before)

    again, lines = run_study(analysis, images, workdir, FOLDERS | TINY)
    assert again == rows
    assert not [line for line in lines if "on test" in line or "seed" in line]


def test_a_study_that_asks_for_more_labels_than_there_are_says_so(images, tmp_path):
    for labels in (2, 5000):
        asked = FOLDERS | TINY | {"evaluations": f"finetune_{labels}"}
        with pytest.raises(UserError, match=rf"finetune_{labels}.*from 3 labels"):
            run_study("sequential", images, tmp_path / "w", asked)
    assert not (tmp_path / "w" / "stages").exists()
