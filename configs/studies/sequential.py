"""Sequential: every way through base, source and target (the paper's third analysis).

    python -m hpt_jax.main --config configs/studies/sequential.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.source=folder:FIELD --config.target=folder:MINE

Needs: a base, a source and a target (folders or sets of TFDS; the base may be a checkpoint).
Without any of them it takes those of the triple `aerial`, below `--config.data_dir`.
`--config.scale=paper` is for accelerators.

Arms: random, B, S, T, B+S, B+T, S+T and B+S+T; those that end before the target have batch norm
re-estimated on it. Evaluations: linear and kNN, at the paper's scale finetune_1000 too.

Expected of the triple `aerial`, three seeds, linear probe: random 47.4 +- 1.6, B 52.7 +- 1.2, S
55.8 +- 3.5, T 53.6 +- 1.4, B+S 58.5 +- 1.1, B+T 55.4 +- 1.5, S+T 58.2 +- 3.1, B+S+T 59.3 +- 0.6
(docs/reproduction.md). Wall time 7.8 minutes on 2 cores of an Intel Xeon, no GPU, after
separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "sequential"
    return config
