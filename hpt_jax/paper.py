"""What the paper compares on: its datasets, and its hierarchies of three."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class PaperDataset:
    """A dataset of the paper.

    Attributes:
      dataset: as a config names it.
      domain: aerial, driving, medical, natural or illustrations.
      metric: 'top1' or 'macro_auroc'.
    """

    dataset: str
    domain: str
    metric: str


DATASETS: dict[str, PaperDataset] = {}

# (base, source, target), as a config names them; the first is what studies take by default.
TRIPLES: dict[str, tuple[str, str, str]] = {
    "aerial": ("folder:tinyimagenet_64_20k", "folder:aid_64", "folder:rsscn7_64"),
}
