"""Robustness to little data: parts of the target's images (the paper's fifth analysis).

    python -m hpt_jax.main --config configs/studies/data_robustness.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base and a target (folders or sets of TFDS; the base may be a checkpoint). Without any of
them it takes those of the triple `aerial`, below `--config.data_dir`. `--config.scale=paper` is for
accelerators.

Arms: B (batch norm re-estimated on all images), and T, B+T and HPT-BN with 1, 10, 25 and 100 % of
the target's images to pretrain on. Probes are trained on all labels.

Expected of the triple `aerial`, three seeds, linear probe, from 1 to 100 %: T 55.0 +- 3.0 to 53.6
+- 1.4, B+T 56.4 +- 1.0 to 55.4 +- 1.5 (docs/reproduction.md). Wall time 12.0 minutes on 2 cores of
an Intel Xeon, other work beside it, no GPU, after separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "data_robustness"
    return config
