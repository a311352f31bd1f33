"""Pascal VOC 2007: photographs, any number of 20 kinds of object in each, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/pascal.py \
        --workdir runs/pascal --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); TFDS downloads `tfds:voc/2007` by itself.
Domain: natural. Classes: 20. Metric: macro AUROC.
Splits: the official train 2,501, val 2,510, test 4,952; whether the authors took VOC 2007 alone is
not known.
Labels: objects that are marked as difficult count as absent, as in the authors' lists.
Pixels: mean (0.4511, 0.4292, 0.3967), std (0.2764, 0.2729, 0.2849), as the authors publish them;
every run measures its own.

Expected: not run here. Their best lengths of pretraining are not published for this set. With COCO
as a source: configs/studies/sequential.py with --config.scale=paper and
--config.triple=coco_pascal.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "pascal"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:voc/2007?label=labels_no_difficult"
    config.domain = "natural"
    config.metric = "macro_auroc"
    config.scale = "paper"
    return config
