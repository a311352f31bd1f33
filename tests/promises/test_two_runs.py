"""Runs at once in one workdir: they share what they have in common, and wait for each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import LIMIT_SECONDS, differences, kill_group, results_of, start_child
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from hpt_jax.report.tables import read_results
from hpt_jax.telemetry.writers import read_metrics

CONFIG = """
from pathlib import Path

from support import tiny_config


def get_config():
    config = tiny_config(Path({images!r}))
    config.target = "folder:target"
    config.stages.base = dict(dataset="folder:base", steps=4)
    config.stages.target = dict(dataset="folder:target", steps=4)
    config.arms["B"] = ("base",)
    config.arms["B+T"] = ("base", "target")
    config.evaluations = ("knn",)
    return config
"""


def run_at_once(root: Path, workdir: Path, *commands: list[str]) -> list[str]:
    """Starts commands in one workdir and waits for all; returns what each of them said."""
    names = [f"{workdir.name}-{index}" for index in range(len(commands))]
    common = ["--config", str(root / "config.py"), "--workdir", str(workdir)]
    started = [
        start_child(root / f"{name}.record", [*common, *flags], root / f"{name}.log")
        for name, flags in zip(names, commands, strict=True)
    ]
    try:
        codes = [process.wait(timeout=LIMIT_SECONDS) for process in started]
    finally:
        for process in started:
            kill_group(process)
    told = [(root / f"{name}.log").read_text() for name in names]
    assert codes == [0] * len(commands), "\n".join(told)
    return told


@pytest.mark.slow
def test_runs_at_once_train_each_stage_once_and_equal_one_run(images: Path, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(CONFIG.format(images=str(images)))
    run_at_once(tmp_path, tmp_path / "alone", [])
    # Twice the same command, and a study that has the base in common with it.
    study = ["--config.name=other", "--config.stages.target.steps=2"]
    told = run_at_once(tmp_path, tmp_path / "shared", [], [], study)

    stages = sorted((tmp_path / "shared" / "stages").iterdir())
    assert [stage.name.partition("-")[0] for stage in stages] == ["base", "target", "target"]
    for stage in stages:
        begun = [line for text in told for line in text.splitlines() if stage.name in line]
        assert len([line for line in begun if ", seed 0" in line]) == 1, begun
        steps = [int(row["step"]) for row in read_metrics(stage / "metrics.csv")]
        assert steps in ([2, 4], [2])
        events = EventAccumulator(str(stage))
        events.Reload()
        assert [event.step for event in events.Tensors("loss")] == steps

    expected, got = results_of(tmp_path / "alone"), results_of(tmp_path / "shared")
    other = {name for name in got if name not in expected}
    assert len({name.split("/")[1].split()[0] for name in other}) == 1  # the study's own stage
    common = {name: got[name] for name in got if name not in other}
    assert differences(expected, common) == ["results.csv"]  # which is of both studies
    rows = read_results(tmp_path / "shared" / "results.csv")
    assert [row for row in rows if row.study == "tiny"] == read_results(
        tmp_path / "alone" / "results.csv"
    )
    assert {row.study for row in rows} == {"tiny", "other"}
