"""Ten steps equal the PyTorch oracle's, from traces that were kept: needs no PyTorch."""

from __future__ import annotations

import golden
import ours
import pytest
import scenarios
from compare import TEN_STEPS, assert_close

# What `pytest -m torch` compares at every step.
LONG = ("hpt_bn",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in LONG)) for one in scenarios.GOLDEN],
)
def test_ten_steps_equal_the_kept_traces_of_pytorch(name: str) -> None:
    scenario = scenarios.GOLDEN[name]
    found = golden.kept(ours.trace(scenario), scenario.steps)
    assert_close(found, golden.read(name), TEN_STEPS)
