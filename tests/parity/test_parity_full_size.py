"""Ten steps of full-size networks equal the PyTorch oracle's, tensor by tensor."""

from __future__ import annotations

import ours
import pytest
import scenarios
from compare import TEN_STEPS, assert_close

pytest.importorskip("torch")
import theirs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]


@pytest.mark.parametrize("arch", scenarios.FULL_SIZE)
def test_ten_full_size_steps_equal_pytorchs_at_every_step(arch: str) -> None:
    scenario = scenarios.FULL_SIZE[arch]
    assert_close(ours.trace(scenario), theirs.trace(scenario), TEN_STEPS)
