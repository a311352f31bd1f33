"""Traces of the PyTorch oracle, kept as files for test runs without PyTorch.

    python tests/parity/golden.py

makes them anew; needs the extra `torch`. Of hpt_jax they have the draws of the augmentation, which
are inputs, and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import scenarios
from compare import Trace

FOLDER = Path(__file__).parent / "golden"


def read(name: str) -> Trace:
    """A kept trace."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def kept(trace: Trace, steps: int) -> Trace:
    """What of a trace is kept: losses, logits and rates of all steps, tensors of the last alone.

    Convolutions of HPT-BN and of `statistics` never change and are left out.
    """
    last = scenarios.of_step(trace, steps - 1)
    frozen = {name for name in trace if _equals(trace[name], trace.get(_at_first(name)))}
    small = r"\d+/(loss|logits|learning_rate|pointer)"
    return {
        name: value
        for name, value in trace.items()
        if re.fullmatch(small, name) or (name in last and name not in frozen)
    }


def _at_first(name: str) -> str:
    return re.sub(r"^\d+/", "0/", name)


def _equals(one: np.ndarray, other: np.ndarray | None) -> bool:
    return other is not None and np.array_equal(one, other)


def main() -> None:
    """Writes the files."""
    import theirs

    FOLDER.mkdir(exist_ok=True)
    for name, scenario in scenarios.GOLDEN.items():
        np.savez_compressed(FOLDER / name, **kept(theirs.trace(scenario), scenario.steps))


if __name__ == "__main__":
    main()
