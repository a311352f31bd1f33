"""Robustness to little data: parts of the target's images (the paper's fifth analysis).

    python -m hpt_jax.main --config configs/studies/data_robustness.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base and a target (folders or sets of TFDS; the base may be a checkpoint). Without any of
them it takes those of the triple `aerial`, below `--config.data_dir`. `--config.scale=paper` is for
accelerators.

Arms: B (batch norm re-estimated on all images), and T, B+T and HPT-BN with 1, 10, 25 and 100 % of
the target's images to pretrain on. Probes are trained on all labels.

Expected there, three seeds, linear probe, from 1 to 100 %: T 53.4 +- 2.6 to 54.7 +- 1.7, B+T 55.4
+- 1.3 to 54.1 +- 2.4 (docs/studies.md). Wall time 5.3 minutes with one seed on 2 cores of an Intel
Xeon, no GPU, after separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "data_robustness"
    return config
