"""The hierarchy on aerial images: everyday photographs -> aerial scenes -> a small aerial set.

    python -m hpt_jax.main --config configs/aerial.py --workdir runs/aerial --config.data_dir=DIR

DIR holds three folders: `tinyimagenet_64_20k` (20,000 of Tiny ImageNet's images, 200 classes),
`aid_64` (AID, 8,000 + 2,000 images, 30 classes) and `rsscn7_64` (RSSCN7, 1,400 + 1,400 images, 7
classes), each `<split>/<class>/<image>`, 64 px. docs/aerial.md says where they come from and how to
make them. Add `--config.dry_run=True` for the plan and its estimate.

Every arm at three seeds; base and source are one model each, as public checkpoints would be.

Expected: linear probe, test top-1, after 300 target steps T 54.4 +- 3.4, B+T 55.6 +- 0.5, B+S+T
58.5 +- 0.0; T given all 1,900 steps of the chain 61.3 +- 1.1; random features 47.4 +- 1.6. Another
processor's rounding moves arms by up to 2.4 points: docs/aerial.md, with all arms. Wall time 27.6
minutes on 2 cores of an Intel Xeon, 45 on 2 of an AMD EPYC with other work beside it; no GPU.
"""

from ml_collections import ConfigDict

from hpt_jax.config import default_config

BASE, SOURCE, TARGET = "folder:tinyimagenet_64_20k", "folder:aid_64", "folder:rsscn7_64"
BASE_STEPS, SOURCE_STEPS = 1000, 600
STEPS = (100, 300)  # on the target, the same for all arms; each its own full cosine


def get_config() -> ConfigDict:
    """The config."""
    config = default_config()
    config.name = "aerial"
    config.domain = "aerial"
    config.seeds = (0, 1, 2)
    config.image_size = 32
    config.batch_size = 128
    config.model.update(arch="resnet10", width=16, stem="small")
    config.moco.queue_size = 4096
    config.moco.momentum = 0.99  # the key encoder has hundreds of steps to follow, not thousands
    config.optimizer.learning_rate = 0.06
    # A queue beyond the target's 1,400 images would hold an image's own old keys as its negatives.
    on_target = dict(dataset=TARGET, moco=dict(queue_size=1280))
    # What has learned already takes smaller steps.
    continued = dict(**on_target, optimizer=dict(learning_rate=0.03))

    config.target = TARGET
    config.stages.base = dict(dataset=BASE, steps=BASE_STEPS)
    config.stages.source = dict(dataset=SOURCE, steps=SOURCE_STEPS)
    config.stages.target_statistics = dict(dataset=TARGET, trainable="statistics")
    config.stages.scratch = dict(**on_target, steps=STEPS)
    config.stages.scratch_long = dict(**on_target, steps=BASE_STEPS + SOURCE_STEPS + STEPS[-1])
    config.stages.target = dict(**continued, steps=STEPS)
    config.stages.target_bn = dict(**continued, steps=STEPS, trainable="batch_norm")
    config.arms.update({
        "random": (),
        "B": ("base", "target_statistics"),
        "B-direct": ("base",),
        "T": ("scratch",),
        "T@all_steps": ("scratch_long",),  # given what base, source and target take together
        "S": ("source",),
        "B+S": ("base", "source"),
        "B+T": ("base", "target"),
        "S+T": ("source", "target"),
        "B+S+T": ("base", "source", "target"),
        "HPT-BN": ("base", "target_bn"),
    })  # fmt: skip
    config.shared_stages = ("base", "source")
    config.save_every_minutes = 1.0
    return config
