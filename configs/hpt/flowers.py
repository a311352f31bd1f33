"""Oxford Flowers: photographs of 102 kinds of flowers, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/flowers.py \
        --workdir runs/flowers --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); TFDS downloads `tfds:oxford_flowers102` by itself.
Domain: natural. Classes: 102. Metric: top-1.
Splits: the official train 1,020, val 1,020, test 6,149.
Pixels: mean (0.4355, 0.3777, 0.288), std (0.297, 0.2459, 0.2705), as the authors publish them;
every run measures its own.

Expected: not run here. Their best lengths of pretraining are not published for this set.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "flowers"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:oxford_flowers102"
    config.domain = "natural"
    config.metric = "top1"
    config.scale = "paper"
    return config
