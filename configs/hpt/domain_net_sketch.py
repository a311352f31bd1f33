"""DomainNet sketch: sketches of 345 kinds of things, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/domain_net_sketch.py \
        --workdir runs/domain_net_sketch --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); TFDS downloads `tfds:domainnet/sketch`, the cleaned version, by itself.
Domain: illustrations. Classes: 345. Metric: top-1.
Splits: 48,212 official train images, a tenth of which becomes val, and 20,916 test images.
Pixels: mean (0.8327, 0.827, 0.8179), std (0.2727, 0.2753, 0.281), as the authors publish them;
every run measures its own.

Expected: not run here. By the linear probe the authors' best run has 5,000 steps after the base,
and 400,000 from scratch. With clipart as a source: configs/studies/sequential.py with
--config.scale=paper and --config.triple=clipart_sketch.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "domain_net_sketch"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "tfds:domainnet/sketch"
    config.domain = "illustrations"
    config.metric = "top1"
    config.scale = "paper"
    return config
