"""What chips can do at best, by their makers' pages; nothing of it is measured here.

Looked up in November 2026, where "x" stands for cloud.google.com/tpu/docs:

- v4: x/v4 gives 275 TFLOP/s, 32 GiB, 1200 GB/s and, of a pod of 4096 chips, 1.1 PB/s of all-reduce,
  which is 268 GB/s a chip.
- v5e: x/v5e gives 197 TFLOP/s, 16 GB, 819 GB/s (800 GiB/s in one edition) and 1600 Gbit/s between
  chips; newer editions give 400 GB/s for both directions, the same.
- v5p: x/v5p gives 459 TFLOP/s, 95 GB (95 GiB in newer editions), 2765 GB/s and 4800 Gbit/s; newer
  editions give 1200 GB/s for both directions, the same.
- v6e: x/v6e gives 918 TFLOP/s and 32 GB; 1600 GB/s in one edition, 1640 in another; 3200 or 3584
  Gbit/s between chips. The lower of each is taken.
- H100 SXM: NVIDIA's own pages were not at hand; a dealer's copy of the data sheet
  (archive-lib.hpctech.co.jp) gives 1979 TFLOP/s with sparsity, half of it without, 3350 GB/s, and
  NVLink of 900 GB/s, which is for both directions.
- A100 SXM of 80 GB: notes with a link to NVIDIA's data sheet (glennklockwood.com/garden) give 312
  TFLOP/s, 2039 GB/s, and NVLink of 300 GB/s each way.

What a compiler must know of a GPU beside it, and its memory in bytes, is as in OpenXLA's own
descriptions (github.com/openxla/xla, xla/backends/gpu/target_config/specs).

Where a page says GB of a TPU's memory, GiB are taken, as the chips have them. Some is kept by the
system, so that what fits by little may not.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA must know of an NVIDIA GPU to compile for it.

    Attributes:
      name: as the driver has it.
      capability: major number of its compute capability.
      cores: streaming multiprocessors.
      units: float32 units of each.
      shared: bytes of shared memory of each.
      shared_block: bytes of it that a block can have at most.
      cache: bytes of L2.
      clock: in GHz.
    """

    name: str
    capability: int
    cores: int
    units: int
    shared: int
    shared_block: int
    cache: int
    clock: float


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      flops: bfloat16 FLOP/s at peak.
      memory: bytes of HBM.
      memory_rate: bytes/s to and from HBM.
      link_rate: bytes/s that it can send to other chips, over all of its links.
      shape: an example of a topology; others have as many sides.
      variant: of its configuration in libtpu, where it is not the default; JAX runs the two cores
        of a v4 chip as one device.
      gpu: what it is, if it is no TPU.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    shape: str
    variant: str = ""
    gpu: Gpu | None = None

    @property
    def platform(self) -> str:
        """What JAX calls its kind, and also the extra that brings its compiler."""
        return "cuda" if self.gpu else "tpu"


_H100 = Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 50 * 2**20, 1.98)
_A100 = Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 40 * 2**20, 1.41)
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1200e9, 268e9, "2x2x1", "megacore"),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, "2x2"),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, "2x2x1"),
    "v6e": Chip(918e12, 32 * GIB, 1600e9, 400e9, "2x2"),
    "h100": Chip(989e12, 84942979072, 3350e9, 450e9, "8", gpu=_H100),
    "a100": Chip(312e12, 85100068864, 2039e9, 300e9, "8", gpu=_A100),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as 'v5e:2x2'."""
    return CHIPS[topology.partition(":")[0]]
