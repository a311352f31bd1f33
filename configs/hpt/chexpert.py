"""CheXpert: chest X-rays of adults, any number of five findings in each, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/chexpert.py \
        --workdir runs/chexpert --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); `tfds:chexpert`: CheXpert-v1.0-small/, which its site gives to those who
register, in DIR/downloads/manual/.
Domain: medical. Classes: 5. Metric: macro AUROC.
Splits: train 201,073 and val 22,341, 90 and 10 % of the official train set, so that they share
patients; test is the official validation set, 234 images of other patients, labelled by
radiologists. Every view is an image of its own. The authors' lists are not published.
Labels: Atelectasis, Cardiomegaly, Consolidation, Edema and Pleural Effusion, the five of CheXpert's
competition; positive is 1, negative, uncertain and unmentioned are 0 (U-Zeros), as in the paper,
which does not name its five.
Pixels: mean (0.5028, 0.5028, 0.5028), std (0.2919, 0.2919, 0.2919), as the authors publish them;
every run measures its own, of grey repeated into three channels.

Expected: not run here. By the linear probe the authors' best run has 5,000 steps after the base,
and 400,000 from scratch.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "chexpert"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:chexpert?train=train[:90%]&val=train[90%:]&test=validation"
    config.input.channels = 3  # grey, and the base is RGB
    config.domain = "medical"
    config.metric = "macro_auroc"
    config.scale = "paper"
    return config
