"""Sequential: every way through base, source and target (the paper's third analysis).

    python -m hpt_jax.main --config configs/studies/sequential.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.source=folder:FIELD --config.target=folder:MINE

Needs: a base, a source and a target (folders or sets of TFDS; the base may be a checkpoint).
Without any of them it takes those of configs/aerial.py, below `--config.data_dir`.
`--config.scale=paper` is for accelerators.

Arms: random, B, S, T, B+S, B+T, S+T and B+S+T. S and B+S are evaluated without training on the
target. Evaluations: linear, kNN and finetune_100, which takes half of the time.

Expected there, one seed, linear probe: random 47.4, B 53.4, S 56.0, T 54.2, B+S 57.7, B+T 55.4,
S+T 57.4, B+S+T 58.3 (docs/studies.md). Wall time 10.2 minutes with one seed on 2 cores of an Intel
Xeon, no GPU, after separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "sequential"
    return config
