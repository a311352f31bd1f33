"""COCO 2014: photographs, any number of 80 kinds of object in each, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/coco_2014.py \
        --workdir runs/coco_2014 --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); TFDS downloads `tfds:coco/2014` by itself.
Domain: natural. Classes: 80. Metric: macro AUROC.
Splits: 82,783 official train images, a tenth of which becomes val; test is the official validation
set, 40,504 images, since the test set has no labels.
Pixels: mean (0.4702, 0.447, 0.4076), std (0.2785, 0.274, 0.2889), as the authors publish them;
every run measures its own.

Expected: not run here. By the linear probe the authors' best run has 50,000 steps after the base,
and 400,000 from scratch. As a source of Pascal: configs/studies/sequential.py with
--config.scale=paper and --config.triple=coco_pascal.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "coco_2014"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:coco/2014"
    config.domain = "natural"
    config.metric = "macro_auroc"
    config.scale = "paper"
    return config
