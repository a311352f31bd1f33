"""Two programs in turns in one process, so that both meet the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def alternating(
    one: Callable[[], object], other: Callable[[], object], pairs: int
) -> tuple[float, float]:
    """Seconds of both, warm: those of the pair whose ratio is the median of an odd number."""
    one(), other()
    found = []
    for _ in range(pairs):
        seconds = []
        for act in (one, other):
            began = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - began)
        found.append((seconds[0], seconds[1]))
    return sorted(found, key=lambda pair: pair[0] / pair[1])[pairs // 2]
