"""xView: chips of satellite images, any number of 36 kinds of object in each, in the paper's
manner.

    python -m hpt_jax.main --config configs/hpt/xview.py \
        --workdir runs/xview --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); a folder DIR/xview with the chips below it and a `labels.csv`: columns
`image`, `split` and one for each kind of object, 1 where a chip shows one. Cut the images that have
public labels into chips (the authors' detection takes 512 px) and split by image, so that no chip
of a test image is trained on.
Domain: aerial. Classes: 36. Metric: macro AUROC.
Splits: the authors' chips and lists are not published; without the column `split`, val and test are
cut from all chips.
Pixels: mean (0.2267, 0.1873, 0.1521), std (0.1687, 0.1357, 0.1249), from the authors' detection
config; that of their pretraining has RESISC45's by mistake; every run measures its own.

Expected: not run here. Which 36 of the 60 kinds is not known, and any columns do.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "xview"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "folder:xview"
    config.domain = "aerial"
    config.metric = "macro_auroc"
    config.scale = "paper"
    return config
