"""Full-size networks run long enough to be worth compiling well."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Compiles with all optimisations, which the tests are otherwise without."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)
