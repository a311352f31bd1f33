"""Ten steps of full-size networks equal the PyTorch oracle's, tensor by tensor."""

from __future__ import annotations

import ours
import pytest
from compare import TEN_STEPS, assert_close
from scenarios import Scenario

pytest.importorskip("torch")
import theirs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_ten_full_size_steps_equal_pytorchs_at_every_step(arch: str) -> None:
    scenario = Scenario(arch, 64, "imagenet", 64)
    assert_close(ours.trace(scenario), theirs.trace(scenario), TEN_STEPS)
