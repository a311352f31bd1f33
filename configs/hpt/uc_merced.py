"""UC Merced: 2,100 aerial images of 21 kinds of land use, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/uc_merced.py \
        --workdir runs/uc_merced --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); TFDS downloads `tfds:uc_merced` by itself.
Domain: aerial. Classes: 21. Metric: top-1.
Splits: train 1,260, val 420, test 420: 60, 20 and 20 % of the one split that there is.
Pixels: mean (0.4842, 0.4901, 0.4505), std (0.218, 0.2021, 0.1958), as the authors publish them;
every run measures its own.

Expected: not run here. By the linear probe the authors' best run has 500 steps after the base, and
400,000 from scratch. With RESISC45 as a source: configs/studies/sequential.py with
--config.scale=paper and --config.triple=resisc_uc_merced.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "uc_merced"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:uc_merced?train=train[:60%]&val=train[60%:80%]&test=train[80%:]"
    config.domain = "aerial"
    config.metric = "top1"
    config.scale = "paper"
    return config
