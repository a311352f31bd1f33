"""RESISC45: 31,500 aerial images of 45 kinds of scene, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/resisc.py \
        --workdir runs/resisc --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); `tfds:resisc45`: the rar from the address that TFDS names, extracted to
DIR/downloads/manual/NWPU-RESISC45/.
Domain: aerial. Classes: 45. Metric: top-1.
Splits: train 18,900, val 6,300, test 6,300: VTAB's 60, 20 and 20 % of the one split that there is.
Pixels: mean (0.368, 0.381, 0.3436), std (0.2035, 0.1854, 0.1849), as the authors publish them;
every run measures its own.

Expected: not run here. By the linear probe the authors' best run has 5,000 steps after the base,
and 100,000 from scratch; a plotting script of theirs holds 92.5 % for HPT-BN.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "resisc"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:resisc45?train=train[:60%]&val=train[60%:80%]&test=train[80%:]"
    config.domain = "aerial"
    config.metric = "top1"
    config.scale = "paper"
    return config
