"""Verdicts: each fault is told from its curve, and healthy curves raise no alarm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from hpt_jax import health

KNOWN = health.Facts(
    queue_size=1000,
    batch_size=100,
    temperature=0.2,
    masked=False,
    bn_groups=4,
    steps=1000,
    warmup_steps=0,
)
CHANCE = math.log(1001)
HEALTHY = dict(
    loss=CHANCE - 0.5,
    accuracy=0.05,
    embedding_std=0.6,
    queue_fill=1.0,
    own_keys=0.4,
    queue_gap=0.1,
    gradient_norm=1.0,
)
FEATURES = dict(rankme=50.0, uniformity=-1.0, alignment=0.5, retrieval=0.02)


def metrics(**last: float) -> list[dict[str, float]]:
    """Rows every 10 steps: the queue is full from the second on; the last row is as given."""
    rows = [{"step": 10.0 * place, **HEALTHY} for place in range(1, 21)]
    rows[0]["queue_fill"] = 0.45
    rows[-1] |= last
    return rows


def measures(looks: int = 1, **last: float) -> list[dict[str, float]]:
    """Four looks, of which the last ones are as given."""
    rows = [{"step": float(step), **FEATURES} for step in (0, 25, 150, 200)]
    return [*rows[:-looks], *(row | last for row in rows[-looks:])]


def level(**changed: Any) -> str:
    known = dataclasses.replace(KNOWN, **changed.pop("known", {}))
    given = {"metrics": metrics(), "measures": measures(), **changed}
    return health.judge(known, given["metrics"], given["measures"]).level


def test_a_healthy_run_is_told_in_one_line() -> None:
    found = health.judge(KNOWN, metrics(), measures(rankme=62, uniformity=-1.3))
    assert found.level == "healthy"
    assert found.step == 200
    assert found.findings == ()
    assert found.text == (
        "queue full, loss 6.41, below chance (6.91), features spreading (rank 62, 50 before): "
        "healthy"
    )


def test_while_the_queue_fills_the_loss_is_not_judged() -> None:
    rows = metrics()[:1]
    rows[0] |= {"loss": 20.0, "embedding_std": 0.01, "queue_gap": 9.0, "accuracy": 1.0}
    found = health.judge(KNOWN, rows, measures()[:1])
    assert found.level == "healthy"
    assert "queue 45 % full" in found.text
    assert "above chance" in found.text


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("embedding_std", 0.14, "alarm"),
        ("embedding_std", 0.16, "healthy"),
        ("queue_gap", 1.6, "alarm"),
        ("queue_gap", 1.4, "healthy"),
        ("loss", CHANCE + 0.6, "alarm"),
        ("loss", CHANCE + 0.4, "healthy"),
        ("accuracy", 0.98, "watch"),
        ("accuracy", 0.96, "healthy"),
        ("own_keys", 2.5, "watch"),
    ],
)
def test_each_curve_has_its_limit(column: str, value: float, expected: str) -> None:
    assert level(metrics=metrics(**{column: value})) == expected


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("uniformity", -0.01, "watch"),
        ("rankme", 19.0, "watch"),
        ("rankme", 21.0, "healthy"),
        ("rankme", 500.0, "healthy"),
        ("retrieval", -0.001, "watch"),
        ("retrieval", 0.001, "healthy"),
    ],
)
def test_each_measure_has_its_limit(column: str, value: float, expected: str) -> None:
    assert level(measures=measures(**{column: value})) == expected


@pytest.mark.parametrize(("column", "value"), [("uniformity", -0.01), ("rankme", 19.0)])
def test_features_that_stay_alike_are_an_alarm(column: str, value: float) -> None:
    lasting = measures(2, **{column: value})
    assert level(measures=lasting) == "alarm"
    assert level(measures=[*lasting, measures()[-1] | {"step": 210.0}]) == "healthy"
    # What was before there was anything to judge counts for nothing.
    early = metrics()[:11]
    for row in early[:-1]:
        row["queue_fill"] = 0.2
    assert (
        level(metrics=early, measures=[lasting[0], lasting[-1] | {"step": 25.0}, lasting[-1]])
        == "watch"
    )


def test_what_the_features_were_before_training_is_not_judged() -> None:
    before = [{"step": 0.0, **FEATURES, "uniformity": 0.0, "rankme": 1.0}]
    assert level(metrics=[], measures=before) == "healthy"


def test_a_queue_that_stays_empty_is_an_alarm() -> None:
    rows = [{"step": 10.0 * place, **HEALTHY, "queue_fill": 0.0} for place in range(1, 5)]
    assert level(metrics=rows) == "alarm"
    slow = {"queue_size": 4000}  # for which 40 steps of 100 are just enough
    assert level(metrics=rows, known=slow) == "healthy"


def test_loss_at_chance_is_an_alarm_after_a_while_alone() -> None:
    rows = metrics()
    for row in rows:
        row["loss"] = CHANCE - 0.01
    assert level(metrics=rows[:11]) == "healthy"
    assert level(metrics=rows) == "alarm"
    rows[-2]["loss"] = CHANCE - 0.1  # it was better just before
    assert level(metrics=rows) == "healthy"
    rows[-2]["loss"], rows[5]["loss"] = CHANCE, CHANCE - 0.1  # long ago
    assert level(metrics=rows) == "alarm"


def test_while_the_rate_warms_up_the_loss_is_not_judged() -> None:
    rows = metrics()
    for row in rows:
        row["loss"] = CHANCE
    assert level(metrics=rows, known={"warmup_steps": 150}) == "healthy"
    assert level(metrics=rows, known={"warmup_steps": 100}) == "alarm"


def test_a_short_stage_is_judged_sooner() -> None:
    rows = metrics()[:5]
    for row in rows:
        row["loss"] = CHANCE
    assert level(metrics=rows) == "healthy"
    assert level(metrics=rows, known={"steps": 100}) == "alarm"


def test_collapse_is_an_alarm_before_a_long_queue_is_full() -> None:
    rows = [row | {"queue_fill": 0.2} for row in metrics(embedding_std=0.01)]
    long = {"queue_size": 65536}
    assert level(metrics=rows[:9] + rows[-1:], known=long) == "alarm"
    rows = [row | {"queue_fill": 0.2} for row in metrics()]
    assert level(metrics=rows, measures=measures(2, rankme=1.0), known=long) == "alarm"


def test_a_queue_that_cannot_be_full_by_the_end_is_watched() -> None:
    rows = [row | {"queue_fill": 0.2} for row in metrics()]
    assert level(metrics=rows, known={"queue_size": 65536, "steps": 655}) == "watch"
    assert level(metrics=rows, known={"queue_size": 65536, "steps": 656}) == "healthy"


def test_masked_keys_make_guessing_easier() -> None:
    rows = metrics(own_keys=500.0, loss=math.log(501))
    assert level(metrics=rows, known={"masked": True}) == "healthy"
    found = health.judge(dataclasses.replace(KNOWN, masked=True), rows, measures())
    assert "at chance (6.22)" in found.text


def test_of_another_method_the_features_alone_are_judged() -> None:
    assert level(metrics=[], measures=measures(2, rankme=1.0)) == "alarm"
    assert level(metrics=[], known={"bn_groups": 1}) == "healthy"
    assert level(metrics=[], measures=measures(3, rankme=1.0)[:2]) == "healthy"


def test_without_the_row_before_training_nothing_is_compared() -> None:
    after = [row | {"step": row["step"] + 100.0} for row in measures(rankme=1.0)]
    assert level(measures=after) == "healthy"
    assert "before" not in health.judge(KNOWN, metrics(), after).text


def test_one_batch_norm_group_is_watched_and_masked_keys_are_no_trouble() -> None:
    assert level(known={"bn_groups": 1}) == "watch"
    assert level(known={"masked": True}, metrics=metrics(own_keys=9.0)) == "healthy"


@pytest.mark.parametrize(("retrieval", "expected"), [(0.98, "watch"), (0.96, "healthy")])
def test_views_that_are_found_before_training_are_watched(retrieval, expected) -> None:
    rows = [row | {"retrieval": retrieval} for row in measures()]
    assert level(measures=rows) == expected
    assert level(metrics=[], measures=rows[:1]) == expected


def test_the_worst_is_told_first_and_advice_on_all() -> None:
    known = dataclasses.replace(KNOWN, bn_groups=1)
    found = health.judge(known, metrics(embedding_std=0.1), measures())
    assert [one.level for one in found.findings] == ["alarm", "watch"]
    assert found.text.endswith(
        "alarm (the embeddings of all images are nearly alike (spread 0.10 of 1))"
    )
    past = health.history(known, metrics(embedding_std=0.1), measures())
    content = health.as_json(found, past)
    assert all(one.advice in content["recommendation"] for one in found.findings)
    assert [one["level"] for one in content["history"]] == [
        "healthy", "watch", "watch", "alarm"
    ]  # fmt: skip
    assert [one["step"] for one in content["history"]] == [0, 25, 150, 200]


def test_a_short_temperature_makes_a_gap_no_larger() -> None:
    cold = {"temperature": 0.05}
    assert level(metrics=metrics(queue_gap=5.0), known=cold) == "healthy"
    assert level(metrics=metrics(queue_gap=7.0), known=cold) == "alarm"
