"""When to stop is told by how much the last two doublings of the steps have brought."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny_config

from hpt_jax import plan, run, stopping

LOOKS = (0, 25, 35, 50, 71, 100, 141, 200, 283, 400, 566, 800)


def stage(schedule: str, steps: int) -> plan.Stage:
    config = tiny_config(Path("none"))
    config.batch_size = config.moco.queue_size = 100
    config.optimizer.update(schedule=schedule, decay=0.2)
    config.stages.target = dict(dataset="package:digits", steps=steps)
    config.arms.T = ("target",)
    (found,) = run.make_plan(config).stages
    return found


def rising(until: int, each: float) -> list[dict[str, float]]:
    """Rows in which every fourfold adds `each`."""
    looks = [step for step in LOOKS if step <= until]
    return [
        {"step": float(step), "retrieval": 0.1 + each * place / 4}
        for place, step in enumerate(looks)
    ]


@pytest.mark.parametrize("until", LOOKS[5:])
def test_the_gain_is_that_of_two_doublings(until: int) -> None:
    assert stopping.gain(rising(until, 0.03)) == pytest.approx(0.03)


def test_without_a_look_at_a_quarter_of_the_steps_there_is_no_gain() -> None:
    assert stopping.gain([]) is None
    assert stopping.gain(rising(71, 0.03)) is None


def test_a_run_that_has_levelled_off_can_end_with_a_decay_from_here() -> None:
    said = stopping.advice(stage("anytime", 2000), 1000, rising(400, 0.01))
    assert "rose by 1.0 points while the steps grew fourfold" in said
    assert "stop and set the steps to 500" in said
    assert stage("anytime", 500).branch_step == 400


def test_a_run_that_still_rises_is_left_alone_until_its_end() -> None:
    assert stopping.advice(stage("anytime", 2000), 1000, rising(400, 0.05)) == ""
    said = stopping.advice(stage("anytime", 800), 1000, rising(800, 0.05))
    assert said.endswith("more steps are likely to help, and go on from step 640.")
    said = stopping.advice(stage("cosine", 800), 1000, rising(800, 0.05))
    assert said.endswith("more steps are likely to help.")


@pytest.mark.parametrize("schedule", ["cosine", "anytime"])
def test_at_its_end_a_level_run_is_told_as_such(schedule: str) -> None:
    said = stopping.advice(stage(schedule, 800), 1000, rising(800, 0.01))
    assert said.endswith("it has levelled off, and more steps are unlikely to help much.")


def test_what_the_fall_of_the_rate_brings_is_not_counted() -> None:
    rows = rising(800, 0.01)
    rows[-1]["retrieval"] += 0.2  # at step 800; the rate falls from 640 on
    assert "it has levelled off" in stopping.advice(stage("anytime", 800), 1000, rows)
    assert "likely to help" in stopping.advice(stage("cosine", 800), 1000, rows)


def test_a_cosine_cannot_be_ended_early() -> None:
    assert stopping.advice(stage("cosine", 2000), 1000, rising(400, 0.01)) == ""


def test_where_the_rate_falls_all_along_there_is_no_early_end() -> None:
    config = tiny_config(Path("none"))
    config.batch_size = config.moco.queue_size = 100
    config.optimizer.update(schedule="anytime", decay=1.0, warmup_steps=500)
    config.stages.target = dict(dataset="package:digits", steps=2000)
    config.arms.T = ("target",)
    (stage,) = run.make_plan(config).stages
    assert stopping.advice(stage, 1000, rising(400, 0.01)) == ""


def test_in_the_first_passes_nothing_is_said() -> None:
    level = rising(800, 0.0)
    assert stopping.advice(stage("anytime", 800), 6000, level) == ""
    assert stopping.advice(stage("anytime", 800), 5000, level)
