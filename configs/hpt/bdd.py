"""BDD100K: street scenes in six kinds of weather, in the paper's manner.

    python -m hpt_jax.main --config configs/hpt/bdd.py \
        --workdir runs/bdd --config.data_dir=DIR

Linear probe against steps on the target, ResNet-50 at 224 px, after a base trained on ImageNet;
`--config.base=CHECKPOINT` takes a trained one instead. `--config.scale=small` has a network and
budgets for two cores, `--config.dry_run=True` shows the plan.

Needs: `tfds:imagenet2012` (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in
DIR/downloads/manual/); a folder DIR/bdd, `<split>/<class>/<image>`: the images of BDD100K sorted by
the attribute `weather` of their labels (clear, foggy, overcast, partly cloudy, rainy, snowy; leave
out `undefined`), those of its train set below train/, those of its validation set, which has public
labels, below test/.
Domain: driving. Classes: 6. Metric: top-1.
Splits: the authors' lists are not published; a tenth of train becomes val.
Pixels: mean (0.2789, 0.2929, 0.2902), std (0.2474, 0.2653, 0.2761), as the authors publish them;
every run measures its own.

Expected: not run here. By the linear probe the authors' best run has 50,000 steps after the base,
and 400,000 from scratch.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config


def get_config() -> ConfigDict:
    """The config."""
    config = default_config("study")
    config.name = "bdd"
    config.analysis = "separability"
    config.base = "tfds:imagenet2012"
    config.target = "folder:bdd"
    config.domain = "driving"
    config.metric = "top1"
    config.scale = "paper"
    return config
