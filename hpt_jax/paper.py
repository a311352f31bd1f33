"""The sixteen datasets of the HPT paper, and chains of base, source and target, its own and small.

From the authors' published code (github.com/cjrd/self-supervised-pretraining at 84e27bd): the
number of outputs, metric and pixel statistics, which are its per-dataset settings. Its lists of
images are published for RESISC45 and UC Merced alone; of all others the splits here are those that
the sets are published with, so that results need not be comparable to the image.

Where its settings are another dataset's, or cannot be true:

- `xview` has RESISC45's statistics, and ImageNet's lists in its script; here stand those of its
  detection config, which are xView's own. Which 36 of the 60 kinds of object it keeps is not known.
- `chest_xray_kids` has 10 outputs for what is published as two classes.
- `viper` has the 6 classes of BDD's weather in its script, and 23 outputs, scored by AUROC, in its
  evaluation; which 23 is not known.
- `bdd` has the 6 kinds of weather that BDD100K names, `undefined` left out.
- `chexpert` has 5 outputs without names: here the 5 findings of CheXpert's own competition.
- `chexpert_chest_xray_kids` starts from RESISC45's weights in its config; here from CheXpert's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

# How far a measured mean may be from the authors' before a run says so; in [0, 1].
_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class PaperDataset:
    """One of the sixteen.

    Attributes:
      dataset: as a config names it; a folder is below `data_dir`, and `configs/hpt/` says how it
        is laid out.
      domain: aerial, driving, medical, natural or illustrations.
      classes: how many there are.
      metric: 'top1', or 'macro_auroc' where an image may have any number of labels.
      pixel_mean: of each channel in [0, 1], as the authors have it; for the record, since every
        stage measures its own.
      pixel_std: the same for the standard deviation, at the images' own size.
      grey: whether the images are grey, and have to be repeated into three channels.
      images: split -> how many; a split that is not named is cut from train; empty: not known.
    """

    dataset: str
    domain: str
    classes: int
    metric: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    grey: bool = False
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _grey(level: float) -> tuple[float, float, float]:
    return (level, level, level)


def _thirds(name: str) -> str:
    """VTAB's 60, 20 and 20 % of a set that is published as one split."""
    return f"tfds:{name}?train=train[:60%]&val=train[60%:80%]&test=train[80%:]"


def _domain_net(
    config: str,
    pixel_mean: tuple[float, float, float],
    pixel_std: tuple[float, float, float],
    train: int,
    test: int,
) -> PaperDataset:
    """One of DomainNet's six, in its cleaned version, with its official train and test."""
    domain = "natural" if config == "real" else "illustrations"
    return PaperDataset(
        f"tfds:domainnet/{config}", domain, 345, "top1", pixel_mean, pixel_std,
        images={"train": train, "test": test},
    )  # fmt: skip


IMAGENET = "tfds:imagenet2012"

DATASETS: dict[str, PaperDataset] = {
    "resisc": PaperDataset(
        _thirds("resisc45"), "aerial", 45, "top1", (0.368, 0.381, 0.3436), (0.2035, 0.1854, 0.1849),
        images={"train": 18_900, "val": 6_300, "test": 6_300},
    ),
    "uc_merced": PaperDataset(
        _thirds("uc_merced"), "aerial", 21, "top1",
        (0.4842, 0.4901, 0.4505), (0.218, 0.2021, 0.1958),
        images={"train": 1_260, "val": 420, "test": 420},
    ),
    "viper": PaperDataset(
        "folder:viper", "driving", 23, "macro_auroc",
        (0.3485, 0.3422, 0.3395), (0.2449, 0.2408, 0.239),
    ),
    "bdd": PaperDataset(
        "folder:bdd", "driving", 6, "top1", (0.2789, 0.2929, 0.2902), (0.2474, 0.2653, 0.2761),
    ),
    "domain_net_painting": _domain_net(
        "painting", (0.5743, 0.5466, 0.5083), (0.3088, 0.3007, 0.3168), 50_416, 21_850
    ),
    "domain_net_clipart": _domain_net(
        "clipart", (0.7362, 0.7167, 0.6834), (0.3642, 0.3654, 0.3887), 33_525, 14_604
    ),
    "domain_net_infograph": _domain_net(
        "infograph", (0.6888, 0.697, 0.6648), (0.3331, 0.3094, 0.3281), 36_023, 15_582
    ),
    "domain_net_sketch": _domain_net(
        "sketch", (0.8327, 0.827, 0.8179), (0.2727, 0.2753, 0.281), 48_212, 20_916
    ),
    "domain_net_quickdraw": _domain_net(
        "quickdraw", _grey(0.9525), _grey(0.2128), 120_750, 51_750
    ),
    "domain_net_real": _domain_net(
        "real", (0.6059, 0.589, 0.5558), (0.3344, 0.3279, 0.3493), 120_906, 52_041
    ),
    "flowers": PaperDataset(
        "tfds:oxford_flowers102", "natural", 102, "top1",
        (0.4355, 0.3777, 0.288), (0.297, 0.2459, 0.2705),
        images={"train": 1_020, "val": 1_020, "test": 6_149},
    ),
    "chest_xray_kids": PaperDataset(
        "folder:chest_xray_kids", "medical", 2, "top1", _grey(0.4815), _grey(0.2377), grey=True,
        images={"train": 5_232, "test": 624},
    ),
    # Its validation set, read by radiologists and of other patients than train, is the only one
    # with labels that are no guesses: it is the test set, and val a part of train.
    "chexpert": PaperDataset(
        "tfds:chexpert?train=train[:90%]&val=train[90%:]&test=validation", "medical", 5,
        "macro_auroc", _grey(0.5028), _grey(0.2919), grey=True,
        images={"train": 201_073, "val": 22_341, "test": 234},
    ),
    "xview": PaperDataset(
        "folder:xview", "aerial", 36, "macro_auroc",
        (0.2267, 0.1873, 0.1521), (0.1687, 0.1357, 0.1249),
    ),
    # Its test set has no labels: validation takes its place.
    "coco_2014": PaperDataset(
        "tfds:coco/2014", "natural", 80, "macro_auroc",
        (0.4702, 0.447, 0.4076), (0.2785, 0.274, 0.2889),
        images={"train": 82_783, "test": 40_504},
    ),
    # What is marked as difficult counts as absent, as in the authors' lists.
    "pascal": PaperDataset(
        "tfds:voc/2007?label=labels_no_difficult", "natural", 20, "macro_auroc",
        (0.4511, 0.4292, 0.3967), (0.2764, 0.2729, 0.2849),
        images={"train": 2_501, "val": 2_510, "test": 4_952},
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Triple:
    """A hierarchy: what studies take where their config names no sets.

    Attributes:
      base: as a config names it, as the two others.
      source: the same.
      target: the same.
      channels: of all images, where the base is no checkpoint, which decides; 0: those of the
        set that has most.
      image_size: at the small scale, in pixels; 0: the scale's.
      metric: 'top1' or 'macro_auroc'; '': by the target's labels.
      probes: evaluations in place of the scale's; empty: those.
    """

    base: str
    source: str
    target: str
    channels: int = 0
    image_size: int = 0
    metric: str = ""
    probes: tuple[str, ...] = ()


_TINY_IMAGENET = "folder:tinyimagenet_64_20k"

TRIPLES: dict[str, Triple] = {
    # Three that two cores can run, like three of the paper's below, and its exception: a target
    # that has nothing of the base, as its doodles have nothing of ImageNet.
    "aerial": Triple(_TINY_IMAGENET, "folder:aid_64", "folder:rsscn7_64"),
    "drawing": Triple(_TINY_IMAGENET, "folder:pacs_cartoon_64", "folder:pacs_sketch_64"),
    "chest": Triple(
        _TINY_IMAGENET, "folder:cxr_adult_64", "folder:pneumoniamnist_28", channels=1,
        image_size=24, metric="macro_auroc",
        probes=("linear_50", "linear_200"),  # with all labels every arm is near the ceiling
    ),
    "digits": Triple(
        _TINY_IMAGENET, "package:mnist", "package:digits", channels=1, image_size=24
    ),
    **{
        name: Triple(IMAGENET, DATASETS[source].dataset, DATASETS[target].dataset)
        for name, source, target in (
            ("resisc_uc_merced", "resisc", "uc_merced"),
            ("chexpert_chest_xray_kids", "chexpert", "chest_xray_kids"),
            ("clipart_sketch", "domain_net_clipart", "domain_net_sketch"),
            ("coco_pascal", "coco_2014", "pascal"),
        )
    },
}  # fmt: skip


def statistics_note(dataset: str, pixel_mean: np.ndarray) -> str | None:
    """One line where a set's mean is not the authors': other images, or read in another way.

    The standard deviation tells nothing: it falls as images are reduced.

    Args:
      dataset: as the config names it.
      pixel_mean: f32[C], as measured, in [0, 1].

    Returns:
      The line, or None where the set is none of the paper's, or agrees.
    """
    for name, known in DATASETS.items():
        if known.dataset != dataset or len(pixel_mean) != len(known.pixel_mean):
            continue
        if np.abs(pixel_mean - np.array(known.pixel_mean)).max() > _TOLERANCE:
            measured = ", ".join(f"{value:.4f}" for value in pixel_mean)
            authors = ", ".join(f"{value:.4f}" for value in known.pixel_mean)
            return (
                f"{dataset} has the pixel mean ({measured}), and the paper's {name} "
                f"({authors}): its images may be others"
            )
    return None
