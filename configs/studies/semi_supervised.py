"""Semi-supervised: fine-tuning on few labels (the paper's second analysis).

    python -m hpt_jax.main --config configs/studies/semi_supervised.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base and a labelled target (folders or sets of TFDS; the base may be a checkpoint).
Without any of them it takes those of the triple `aerial`, below `--config.data_dir`.
`--config.scale=paper` is for accelerators.

Arms: random, B, T, B+T and HPT-BN. Evaluations: finetune_100 and linear_100 (1000 at the paper's
scale), each the mean over three subsets of labels.

Expected of the triple `aerial`, three seeds, finetune_100 and linear_100: random 43.1 +- 1.1 and
36.4 +- 0.9, B 49.5 +- 1.1 and 44.7 +- 1.9, T 49.3 +- 2.1 and 48.3 +- 2.9, B+T 50.3 +- 0.4 and 48.4
+- 1.4, HPT-BN 49.3 +- 1.0 and 46.2 +- 2.0 (docs/reproduction.md). Wall time 6.3 minutes on 2 cores
of an Intel Xeon, no GPU, after separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "semi_supervised"
    return config
