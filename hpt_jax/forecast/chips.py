"""What chips can do at best, by their makers' pages; nothing of it is measured here.

Looked up in November 2026:

- v4: cloud.google.com/tpu/docs/v4 gives 275 TFLOP/s, 32 GiB, 1200 GB/s and, of a pod of 4096 chips,
  1.1 PB/s of all-reduce, which is 268 GB/s a chip.
- v5e: cloud.google.com/tpu/docs/v5e gives 197 TFLOP/s, 16 GB, 819 GB/s (800 GiB/s in one edition)
  and 1600 Gbit/s between chips; newer editions give 400 GB/s for both directions, the same.
- v5p: cloud.google.com/tpu/docs/v5p gives 459 TFLOP/s, 95 GB, 2765 GB/s and 4800 Gbit/s; newer
  editions 1200 GB/s for both directions, the same.
- v6e: cloud.google.com/tpu/docs/v6e gives 918 TFLOP/s and 32 GB; 1600 GB/s in one edition and 1640
  in another; 3200 or 3584 Gbit/s between chips. The lower of each is taken.

Of memory the pages say GB where the compiler's limit, where one is known, is GiB: GB is taken as
GiB for TPUs. The compiler's own limit lies somewhat below, so that "fits" by little is not sure.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      flops: bfloat16 FLOP/s at peak.
      memory: bytes of HBM.
      memory_rate: bytes/s to and from HBM.
      link_rate: bytes/s that it can send to its neighbours, over all of its links.
      dims: of a topology's name: 2 for v5e:4x4, 3 for v4:2x2x1.
      variant: of its configuration in libtpu, where it is not the default; JAX runs the two cores
        of a v4 chip as one device.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    dims: int
    variant: str = ""


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1200e9, 268e9, 3, "megacore"),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 2),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 32 * GIB, 1600e9, 400e9, 2),
}
