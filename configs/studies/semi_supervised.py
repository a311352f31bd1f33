"""Semi-supervised: fine-tuning on few labels (the paper's second analysis).

    python -m hpt_jax.main --config configs/studies/semi_supervised.py \
        --workdir runs/studies \
        --config.base=folder:PHOTOS --config.target=folder:MINE

Needs: a base and a labelled target (folders or sets of TFDS; the base may be a checkpoint).
Without any of them it takes those of configs/aerial.py, below `--config.data_dir`.
`--config.scale=paper` is for accelerators.

Arms: random, B, T, B+T and HPT-BN. Evaluations: finetune_100 and linear_100 (1000 at the paper's
scale), each the mean over three subsets of labels.

Expected there, three seeds, finetune_100 and linear_100: random 47.2 +- 1.6 and 36.4 +- 0.9, B
51.3 +- 0.8 and 44.9, T 51.9 +- 1.4 and 48.6 +- 3.5, B+T 50.7 +- 0.5 and 47.3 +- 0.4, HPT-BN 51.9
+- 0.3 and 46.4 +- 0.2 (docs/studies.md). Wall time 1.8 minutes with one seed on 2 cores of an
Intel Xeon, no GPU, after separability in the same workdir.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.analysis = "semi_supervised"
    return config
