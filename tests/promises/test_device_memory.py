"""Memory of a chip does not grow with the number of chips: nothing but keys is gathered.

Compiled for TPUs that are not here, and not run.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support import tiny_config

from hpt_jax import run
from hpt_jax.forecast import measure, program
from hpt_jax.forecast.run import chosen_stage

PER_CHIP, DIM = 8, 128  # keys as long as the lanes of a TPU, which pads shorter ones


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu")
def test_device_memory_is_the_same_on_4_and_256_chips_but_for_the_keys(tmp_path: Path) -> None:
    asked = tiny_config(tmp_path)
    # Unlike the promises' own network, one that a process knows which this one starts.
    asked.model.update(arch="resnet10", width=16)
    asked.update(image_size=64)
    asked.moco.update(queue_size=256 * PER_CHIP, dim=DIM)
    asked.stages.base = {"dataset": "folder:nowhere", "steps": 10}
    asked.arms = {"B": ("base",)}
    stage = chosen_stage(run.make_plan(asked).stages, None).config

    answers = {}
    for topology in ("v5e:2x2", "v5e:16x16"):
        chips = measure.chips_of(topology)
        question = measure.Question(program.at_batch(stage, PER_CHIP, chips), topology)
        answers[chips] = measure.ask(question, minutes=20)
        assert "problem" not in answers[chips]
    few, many = answers[4], answers[256]

    def keys(chips: int) -> int:
        """Bytes of all keys, with the slot and the image of each, as a chip may hold them."""
        return chips * PER_CHIP * (DIM + 2) * 4

    # Twice over, since unshuffling copies them; and 2 % for what a compiler does otherwise.
    grown = many["memory_bytes"] - few["memory_bytes"]
    assert grown <= 2 * keys(256) + 0.02 * few["memory_bytes"]
    assert many["gathered_bytes"] <= 2 * keys(256)
    assert many["reduced_bytes"] <= few["reduced_bytes"] + 2 * keys(256)
    # A view of the whole batch, were it gathered, would be far more than is allowed here.
    assert 5 * (2 * keys(256) + 0.02 * few["memory_bytes"]) < 256 * PER_CHIP * 64 * 64 * 3
