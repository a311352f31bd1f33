"""Separability: linear probe against pretraining steps on the target (the paper's first analysis).

    python -m hpt_jax.main --config configs/studies/separability.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base and a target (folders or sets of TFDS; the base may be a checkpoint). Without any of
them it takes those of the triple `aerial`, below `--config.data_dir`. `--config.scale=paper` is for
accelerators.

Arms: random, B-direct, B, T (`scratch_steps`), B+T (`steps`) and HPT-BN (`bn_steps`); every number
of steps is a run of its own, with a whole cosine.

Expected of the triple `aerial`, three seeds, linear probe: B 52.7 +- 1.2; B+T 53.9 +- 0.8, 55.5 +-
1.9 and 55.4 +- 1.5 after 10, 50 and 200 steps; T 50.8 +- 2.3, 53.6 +- 1.4, 58.9 +- 1.0 and 61.0 +-
0.7 after 50, 200, 600 and 1,600; random 47.4 +- 1.6 (docs/reproduction.md). Wall time 25.4 minutes
on 2 cores of an Intel Xeon, some other work beside it, no GPU.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "separability"
    return config
