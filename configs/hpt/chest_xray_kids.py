"""Chest X-rays of children, healthy or with pneumonia (Kermany et al., 2018), in the paper's
manner.

    python -m hpt_jax.main --config configs/hpt/chest_xray_kids.py \
        --workdir runs/chest_xray_kids --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); a folder DIR/chest_xray_kids, `<split>/<class>/<image>`, which is how the
set is published: train/ and test/ with NORMAL/ and PNEUMONIA/ in each. Some copies have a val/ of
16 images, too few to choose by: move them to train/.
Domain: medical. Classes: 2. Metric: top-1.
Splits: 5,232 train images, a tenth of which becomes val, and 624 test images; train and val share
patients.
Pixels: mean (0.4815, 0.4815, 0.4815), std (0.2377, 0.2377, 0.2377), as the authors publish them;
every run measures its own, of grey repeated into three channels.

Expected: not run here. By the linear probe the authors' best run has 50,000 steps after the base,
and 400,000 from scratch. Their 10 outputs are more than the set has classes. With CheXpert as a
source: configs/studies/sequential.py with --config.scale=paper and
--config.triple=chexpert_chest_xray_kids.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "chest_xray_kids"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "folder:chest_xray_kids"
    config.input.channels = 3  # grey, and the base is RGB
    config.domain = "medical"
    config.metric = "top1"
    config.scale = "paper"
    return config
