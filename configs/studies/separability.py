"""Separability: linear probe against pretraining steps on the target (the paper's first analysis).

    python -m hpt_jax.main --config configs/studies/separability.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base and a target (folders or sets of TFDS; the base may be a checkpoint). Without any of
them it takes those of configs/aerial.py, below `--config.data_dir`. `--config.scale=paper` is for
accelerators.

Arms: random, B-direct, B, T (`scratch_steps`), B+T (`steps`) and HPT-BN (`bn_steps`); every number
of steps is a run of its own, with a whole cosine.

Expected there, three seeds, linear probe: B 53.4 +- 0.1; B+T 51.9 +- 2.0, 53.2 +- 0.3, 53.9 +- 0.3
and 54.1 +- 2.4 after 10, 30, 100 and 300 steps; T 51.2 +- 2.4, 54.7 +- 1.7 and 59.0 +- 1.8 after
100, 300 and 900; random 47.4 +- 1.6 (docs/studies.md). Wall time 30 minutes on 2 cores of an Intel
Xeon, other work beside it, no GPU.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "separability"
    return config
