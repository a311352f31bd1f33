"""Verdicts on the paper's claims agree with SciPy's paired test, and never say more than it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hpt_jax.config import ANALYSES
from hpt_jax.report.claims import ALL_STEPS, Claim, Results, judge, reached
from tests.test_report_tables import row


def rows_of(arms, split="test", evaluation="linear"):
    """Rows of {(arm, steps): values by seed}."""
    return [
        row(arm, steps, seed, value, evaluation, split)
        for (arm, steps), values in arms.items()
        for seed, value in enumerate(values)
    ]


def verdict(one, other):
    rows = rows_of({("B+T", 50): one, ("T", 50): other})
    return Results(rows, "linear").verdict(Claim("", (("B+T", 50),), (("T", 50),)))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_is_that_of_a_paired_t_test(seeds):
    rng = np.random.default_rng(seeds)
    one, other = rng.random(seeds), rng.random(seeds)
    found = verdict(one, other)
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(one - other))
    assert found.interval == pytest.approx((low, high))


def test_a_verdict_is_the_sign_that_the_whole_interval_has():
    assert verdict([0.7, 0.71, 0.72], [0.5, 0.51, 0.53]).word == "holds"
    assert verdict([0.5, 0.51, 0.53], [0.7, 0.71, 0.72]).word == "does not hold"
    assert verdict([0.7, 0.5, 0.6], [0.5, 0.51, 0.53]).word == "undecided"


def test_one_seed_decides_nothing():
    found = verdict([0.9], [0.1])
    assert (found.interval, found.word) == (None, "undecided")


def test_a_constant_shift_is_certain_however_much_seeds_differ():
    other = np.array([0.1, 0.5, 0.8])
    assert verdict(other + 0.01, other).word == "holds"  # pairs: seeds cancel


def test_one_public_base_stands_beside_every_seed():
    rows = rows_of({("B+T", 50): [0.5, 0.6, 0.7], ("B", 0): [0.4]})
    found = Results(rows, "linear").verdict(Claim("", (("B+T", 50),), (("B", 0),)))
    assert found.differences == pytest.approx((0.1, 0.2, 0.3))


def test_only_seeds_that_all_arms_have_are_compared():
    rows = rows_of({("B+T", 50): [0.5, 0.6, 0.7], ("T", 50): [0.4, 0.4]})
    found = Results(rows, "linear").verdict(Claim("", (("B+T", 50),), (("T", 50),)))
    assert found.differences == pytest.approx((0.1, 0.2))


def test_a_loss_is_compared_with_a_loss():
    full, weak = {"B+T": 0.70, "T": 0.60}, {"B+T": 0.65, "T": 0.45}
    arms = {(f"{arm}@moco_v2", 9): [value] * 2 for arm, value in full.items()}
    arms |= {(f"{arm}@crop", 9): [value] * 2 for arm, value in weak.items()}
    found = judge("augmentation_robustness", rows_of(arms), "linear")[-1]
    assert found.compared == "(B+T@crop - B+T@moco_v2) - (T@crop - T@moco_v2)"
    assert found.mean == pytest.approx(-0.05 + 0.15)


STUDIES = {
    "separability": [("B", 0), ("T", 50), ("T", 900), ("B+T", 50), ("HPT-BN", 50)],
    "semi_supervised": [("B", 0), ("T", 50), ("B+T", 50)],
    "sequential": [
        ("B", 0), ("T", 50), ("B+S", 0), ("B+T", 50), ("S+T", 50), ("B+S+T", 50), (ALL_STEPS, 900),
    ],
    "augmentation_robustness": [
        (f"{arm}@{policy}", 50)
        for arm in ("T", "B+T")
        for policy in ("moco_v2", "no_grayscale", "no_color", "crop_blur", "crop")
    ],
    "data_robustness": [
        (f"{arm}@{share}%", 50) for arm in ("T", "B+T", "HPT-BN") for share in (100, 25, 10, 1)
    ],
    "base_quality": [
        *((f"B@base_{steps}", 0) for steps in (1000, 100)),
        *((f"B+T@base_{steps}", 50) for steps in (1000, 100)),
    ],
}  # fmt: skip
CLAIMS = {
    "separability": 5, "semi_supervised": 2, "sequential": 6, "augmentation_robustness": 6,
    "data_robustness": 6, "base_quality": 3,
}  # fmt: skip


@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_claim_of_an_analysis_is_judged_once(analysis):
    places = STUDIES[analysis]
    values = {place: [0.1 * i, 0.2 * i] for i, place in enumerate(places)}
    found = judge(analysis, rows_of(values), "linear")
    assert len(found) == len({one.compared for one in found}) == CLAIMS[analysis]
    for one in found:
        assert one.claim
        assert one.interval is not None


@pytest.mark.parametrize("analysis", ANALYSES)
def test_claims_wait_for_their_arms(analysis):
    assert judge(analysis, [], "linear") == []
    few = rows_of({STUDIES[analysis][0]: [0.1, 0.2]})
    assert judge(analysis, few, "linear") == []
    assert judge(analysis, few, "knn") == []


def test_data_shares_and_bases_are_compared_from_the_smallest():
    places = {place: [0.1, 0.2] for place in STUDIES["data_robustness"]}
    found = judge("data_robustness", rows_of(places), "linear")
    assert found[0].compared == "B+T@1% - T@1%"
    assert found[-1].compared == "HPT-BN@1% - B+T@1%"
    places = {place: [0.1, 0.2] for place in STUDIES["base_quality"]}
    found = judge("base_quality", rows_of(places), "linear")
    assert found[0].compared == "B+T@base_100 - B@base_100"


def test_steps_to_reach_the_best_of_scratch_are_counted_on_both_arms():
    test = {
        ("T", 50): [0.5, 0.52], ("T", 200): [0.6, 0.62], ("T", 900): [0.8, 0.7],
        ("B+T", 10): [0.5, 0.5], ("B+T", 50): [0.61, 0.63], ("B", 0): [0.55, 0.55],
    }  # fmt: skip
    # Validation has T at its best after 200 steps, test after 900, which must not be looked at.
    val = {place: [0.9 if place == ("T", 200) else 0.1] * 2 for place in test}
    found = reached(rows_of(test) + rows_of(val, "val"), "linear")
    steps = {(one.goal, one.arm): one.steps for one in found}
    assert steps == {
        (("T", 200), "T"): 200, (("T", 200), "B+T"): 50,
        (("B", 0), "T"): 200, (("B", 0), "B+T"): 50,
    }  # fmt: skip
    assert found[1].verdict.differences == pytest.approx((0.01, 0.01))


def test_what_is_never_reached_is_told_from_the_longest():
    arms = {("T", 50): [0.6, 0.7], ("B+T", 10): [0.1, 0.1], ("B+T", 20): [0.5, 0.5]}
    found = reached(rows_of(arms) + rows_of(arms, "val"), "linear")[-1]
    assert (found.steps, found.longest) == (None, 20)
    assert found.verdict.differences == pytest.approx((-0.1, -0.2))
