"""Robustness to augmentation: each arm with fewer operations (the paper's fourth analysis).

    python -m hpt_jax.main --config configs/studies/augmentation_robustness.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base and a target (folders or sets of TFDS; the base may be a checkpoint). Without any of
them it takes those of the triple `aerial`, below `--config.data_dir`. `--config.scale=paper` is for
accelerators.

Arms: B, and T and B+T under moco_v2, no_grayscale, no_color, crop_blur and crop, on the target
alone.

Expected of the triple `aerial`, three seeds, linear probe, from moco_v2 to crop: T 53.6 +- 1.4 to
60.4 +- 1.2, B+T 55.4 +- 1.5 to 58.1 +- 1.7 (docs/reproduction.md). Wall time 13.1 minutes on 2
cores of an Intel Xeon, other work beside it, no GPU, after separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "augmentation_robustness"
    return config
