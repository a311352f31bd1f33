"""VIPER: frames of a driving simulation, any number of 23 classes in each, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/viper.py \
        --workdir runs/viper --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); a folder DIR/viper with the frames below it and a `labels.csv`: columns
`image`, `split` and one for each class, 1 where a frame's annotation has anything of it; frames of
the official train set are train, those of the official validation set, whose annotations are
public, are test.
Domain: driving. Classes: 23. Metric: macro AUROC.
Splits: the authors' lists are not published; a tenth of train becomes val.
Pixels: mean (0.3485, 0.3422, 0.3395), std (0.2449, 0.2408, 0.239), as the authors publish them;
every run measures its own.

Expected: not run here. The authors' script names 6 classes of weather and their evaluation 23
outputs; which 23 is not known, and any columns do.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "viper"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "folder:viper"
    config.domain = "driving"
    config.metric = "macro_auroc"
    config.scale = "paper"
    return config
