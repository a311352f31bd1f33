"""Quality of the base: trained for shorter and longer, before and after the target.

    python -m hpt_jax.main --config configs/studies/base_quality.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base to train and a target (folders or sets of TFDS).
Without any of them it takes those of the triple `aerial`, below `--config.data_dir`.
`--config.scale=paper` is for accelerators.

Arms: T, and B and B+T after each of `base_steps`.

Expected of the triple `aerial`, three seeds, linear probe, from 100 to 1,000 base steps: B 50.0 +-
1.1 to 52.7 +- 1.2, B+T 56.6 +- 2.2 to 55.4 +- 1.5 (docs/reproduction.md). Wall time 5.8 minutes on
2 cores of an Intel Xeon, no GPU, after separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "base_quality"
    return config
