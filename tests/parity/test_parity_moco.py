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

RESNET50 = Scenario("resnet50", 16, "imagenet", 64)
our_trace: Callable[[Scenario], Trace] = functools.cache(ours.trace)
their_trace: Callable[[Scenario], Trace] = functools.cache(theirs.trace)


def test_one_step_equals_pytorchs() -> None:
    found, expected = our_trace(RESNET50), their_trace(RESNET50)
    assert_close(scenarios.of_step(found, 0), scenarios.of_step(expected, 0), OUTPUTS)


def test_ten_steps_equal_pytorchs_at_every_step() -> None:
    assert_close(our_trace(RESNET50), their_trace(RESNET50), TEN_STEPS)


@pytest.mark.parametrize("name", scenarios.GOLDEN)
def test_kept_traces_are_what_the_oracle_computes(name: str) -> None:
    scenario = scenarios.GOLDEN[name]
    found = golden.kept(their_trace(scenario), scenario.steps)
    assert_close(found, golden.read(name), TEN_STEPS)
