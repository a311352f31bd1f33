"""Verdicts on the paper's claims agree with SciPy's paired test, and never say more than it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats
from test_report_tables import row

from hpt_jax.config import ANALYSES
from hpt_jax.report.claims import ALL_STEPS, Claim, Results, judge, reached


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
# What each analysis compares, in the paper's direction.
COMPARED = {
    "separability": [
        "B+T - T after 50", "B+T - T after 900", "B+T - B", "HPT-BN - B", "B+T - HPT-BN",
    ],
    "semi_supervised": ["B+T - T", "B+T - B"],
    "sequential": [
        "B+S+T - B+T", "B+S+T - S+T", "B+S+T - B+S", "B+S+T - T", "B+S+T - B",
        "B+S+T - T@all_steps",
    ],
    "augmentation_robustness": [
        "B+T@moco_v2 - T@moco_v2", "B+T@no_grayscale - T@no_grayscale",
        "B+T@no_color - T@no_color", "B+T@crop_blur - T@crop_blur", "B+T@crop - T@crop",
        "(B+T@crop - B+T@moco_v2) - (T@crop - T@moco_v2)",
    ],
    "data_robustness": [
        "B+T@1% - T@1%", "B+T@10% - T@10%", "B+T@25% - T@25%", "B+T@100% - T@100%",
        "(B+T@1% - B+T@100%) - (T@1% - T@100%)", "HPT-BN@1% - B+T@1%",
    ],
    "base_quality": [
        "B+T@base_100 - B@base_100", "B+T@base_1000 - B@base_1000",
        "(B+T@base_100 - B+T@base_1000) - (B@base_100 - B@base_1000)",
    ],
}  # fmt: skip


@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_claim_of_an_analysis_is_a_difference_of_the_arms_it_names(analysis):
    rng = np.random.default_rng(0)
    values = {place: list(rng.random(3)) for place in STUDIES[analysis]}
    found = judge(analysis, rows_of(values), "linear")
    assert [one.compared for one in found] == COMPARED[analysis]
    # The formulas are read back: an arm's name, with its steps where it has several.
    several = {arm for arm, _ in values if len([p for p in values if p[0] == arm]) > 1}
    named = {
        (f"{arm} after {steps}" if arm in several else arm): np.array(seeds)
        for (arm, steps), seeds in values.items()
    }
    for one in found:
        places = re.split(r" - ", one.compared.replace("(", "").replace(")", ""))
        signs = [1, -1] if len(places) == 2 else [1, -1, -1, 1]
        expected = sum(sign * named[place] for sign, place in zip(signs, places, strict=True))
        assert one.differences == pytest.approx(expected)
        assert one.claim


@pytest.mark.parametrize("analysis", ANALYSES)
def test_claims_wait_for_their_arms(analysis):
    assert judge(analysis, [], "linear") == []
    few = rows_of({STUDIES[analysis][0]: [0.1, 0.2]})
    assert judge(analysis, few, "linear") == []
    assert judge(analysis, few, "knn") == []


def test_variants_that_are_no_share_and_no_steps_are_passed_over():
    odd = {(arm, 50): [0.1, 0.2] for arm in ("B+T@half", "T@half", "B@long", "B+T@long")}
    assert judge("data_robustness", rows_of(odd), "linear") == []
    assert judge("base_quality", rows_of(odd), "linear") == []


def test_equal_budgets_are_one_claim():
    same = {("T", 70): [0.1, 0.2], ("B+T", 70): [0.3, 0.4]}
    assert [one.compared for one in judge("separability", rows_of(same), "linear")] == ["B+T - T"]


def test_steps_to_reach_the_best_of_scratch_are_counted_on_both_arms():
    test = {
        ("T", 50): [0.5, 0.52], ("T", 200): [0.6, 0.62], ("T", 900): [0.8, 0.7],
        ("B+T", 10): [0.5, 0.5], ("B+T", 50): [0.61, 0.63], ("B", 0): [0.55, 0.55],
    }  # fmt: skip
    # Validation has T at its best after 200 steps, test after 900, which must not be looked at.
    best = (("T", 200), ("B+T", 10))
    val = {place: [0.9 if place in best else 0.1] * 2 for place in test}
    found = reached(rows_of(test) + rows_of(val, "val"), "linear")
    steps = {(one.goal, one.arm): one.steps for one in found}
    assert steps == {
        (("T", 200), "T"): 200, (("T", 200), "B+T"): 50,
        (("B+T", 10), "T"): 50, (("B+T", 10), "B+T"): 10,
        (("B", 0), "T"): 200, (("B", 0), "B+T"): 50,
    }  # fmt: skip
    assert found[1].verdict.differences == pytest.approx((0.01, 0.01))
    by_seed = {(one.goal, one.arm): one.of_seeds for one in found}
    assert by_seed[("T", 200), "T"] == (200, 200)
    assert by_seed[("B", 0), "B+T"] == (50, 50)
    assert by_seed[("B+T", 10), "T"] == (50, 50)


def test_what_is_never_reached_is_told_from_the_longest():
    arms = {("T", 50): [0.6, 0.7], ("B+T", 10): [0.1, 0.1], ("B+T", 20): [0.5, 0.5]}
    _, found, *_ = reached(rows_of(arms) + rows_of(arms, "val"), "linear")
    assert (found.steps, found.of_seeds, found.longest) == (None, (None, None), 20)
    assert found.verdict.differences == pytest.approx((-0.1, -0.2))
