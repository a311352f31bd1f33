"""How far two traces are apart. A trace is a flat dict: name of a tensor -> its value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Trace = Mapping[str, np.ndarray]

# The largest relative L2 error of a tensor, both sides in float64.
OUTPUTS, GRADIENTS, TEN_STEPS = 1e-9, 1e-7, 1e-6


def errors(found: Trace, expected: Trace) -> dict[str, float]:
    """The relative L2 error of each tensor: |found - expected| / |expected|.

    Raises:
      AssertionError: the two do not hold the same names, shapes and dtypes.
    """
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    return {name: _error(name, found[name], expected[name]) for name in expected}


def assert_close(found: Trace, expected: Trace, tolerance: float) -> None:
    """Fails with the names of the tensors that are further apart than `tolerance`, worst first."""
    measured = errors(found, expected)
    # Not `>`, which a NaN passes.
    far = {name: error for name, error in measured.items() if not error <= tolerance}
    worst = sorted(far, key=lambda name: -far[name])
    listed = "\n".join(f"  {name}: {far[name]:.1e}" for name in worst[:10])
    assert not far, f"{len(far)} of {len(measured)} tensors differ by over {tolerance:g}:\n{listed}"


def _error(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
    distance = np.linalg.norm(np.subtract(found, expected, dtype=np.float64))
    # A tensor of zeros has no relative error; there the absolute one stands in.
    return float(distance / (np.linalg.norm(expected.astype(np.float64)) or 1.0))
