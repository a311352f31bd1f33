"""draft"""

from hpt_jax.config import default_config


def get_config():
    config = default_config()
    config.name = "quickstart"
    config.seeds = (0, 1, 2)
    config.image_size = 28
    config.batch_size = 64
    config.model.arch = "resnet10"
    config.model.width = 8
    config.model.stem = "small"
    config.model.stem_stride = 1
    config.moco.queue_size = 1024
    config.moco.momentum = 0.99
    config.optimizer.learning_rate = 0.06
    config.augment.crop_scale = (0.4, 1.0)
    config.augment.flip_probability = 0.0
    config.input.center_crop = 1.0
    config.target = "package:digits"
    config.stages.base = dict(dataset="package:mnist", steps=100)
    config.stages.target_statistics = dict(dataset="package:digits", trainable="statistics")
    config.stages.target_scratch = dict(dataset="package:digits", steps=(20, 50))
    config.stages.target = dict(
        dataset="package:digits", steps=(20, 50), optimizer=dict(learning_rate=0.03)
    )
    config.stages.target_bn = dict(
        dataset="package:digits", steps=(20, 50), trainable="batch_norm"
    )
    config.arms.random = ()
    config.arms.B = ("base", "target_statistics")
    config.arms.T = ("target_scratch",)
    config.arms["B+T"] = ("base", "target")
    config.arms["HPT-BN"] = ("base", "target_bn")
    config.shared_stages = ("base",)
    config.save_every_minutes = 10 / 60
    config.log_every_steps = 10
    return config
