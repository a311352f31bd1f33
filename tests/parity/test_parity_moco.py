"""Whole training steps equal the PyTorch oracle's, tensor by tensor and step by step."""

from __future__ import annotations

import functools
from collections.abc import Callable

import golden
import ours
import pytest
import scenarios
from compare import OUTPUTS, TEN_STEPS, Trace, assert_close
from scenarios import Scenario

pytest.importorskip("torch")
import theirs

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("optimized")]

SCENARIOS = {
    "moco": Scenario("resnet50", 16, "imagenet", 64),
    "hpt_bn": scenarios.GOLDEN["hpt_bn"],
    "statistics": scenarios.GOLDEN["statistics"],
}
our_trace: Callable[[Scenario], Trace] = functools.cache(ours.trace)
their_trace: Callable[[Scenario], Trace] = functools.cache(theirs.trace)


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_step_equals_pytorchs(name: str) -> None:
    found, expected = our_trace(SCENARIOS[name]), their_trace(SCENARIOS[name])
    assert_close(scenarios.of_step(found, 0), scenarios.of_step(expected, 0), OUTPUTS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ten_steps_equal_pytorchs_at_every_step(name: str) -> None:
    # Nothing is trained on the way of `statistics`, which could make errors grow.
    tolerance = OUTPUTS if name == "statistics" else TEN_STEPS
    assert_close(our_trace(SCENARIOS[name]), their_trace(SCENARIOS[name]), tolerance)


@pytest.mark.parametrize("name", scenarios.GOLDEN)
def test_kept_traces_are_what_the_oracle_computes(name: str) -> None:
    scenario = scenarios.GOLDEN[name]
    found = golden.kept(their_trace(scenario), scenario.steps)
    assert_close(found, golden.read(name), OUTPUTS)
