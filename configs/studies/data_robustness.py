"""Separability (the paper's first analysis): linear probe against pretraining steps on the target.

python -m hpt_jax.main --config configs/studies/data_robustness.py --workdir runs/aerial \
        --config.data_dir=DIR
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = config.analysis = "data_robustness"
    return config
