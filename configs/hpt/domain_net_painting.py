"""DomainNet painting: paintings of 345 kinds of things, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/domain_net_painting.py \
        --workdir runs/domain_net_painting --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); TFDS downloads `tfds:domainnet/painting`, the cleaned version, by itself.
Domain: illustrations. Classes: 345. Metric: top-1.
Splits: 50,416 official train images, a tenth of which becomes val, and 21,850 test images.
Pixels: mean (0.5743, 0.5466, 0.5083), std (0.3088, 0.3007, 0.3168), as the authors publish them;
every run measures its own.

Expected: not run here. By the linear probe the authors' best run has 5,000 steps after the base,
and 400,000 from scratch.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "domain_net_painting"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:domainnet/painting"
    config.domain = "illustrations"
    config.metric = "top1"
    config.scale = "paper"
    return config
