"""Checkpoints of google-research/simclr, written by TensorFlow, and their network in TensorFlow."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hpt_jax.errors import UserError
from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights import check, load, proof
from hpt_jax.weights.names import flatten


class Network:
    """SimCLR's ResNet-50 as its resnet.py lays it out, with numbered random variables.

    Strided convolutions are padded by (kernel - 1) // 2 and valid, the max-pool is SAME; a block's
    projection is made before its three convolutions.
    """

    def __init__(self, width: int, cifar: bool = False, layers: tuple[int, ...] = (3, 4, 6, 3)):
        self.width, self.cifar, self.layers = width, cifar, layers
        self.random = np.random.default_rng(0)
        self.variables: dict[str, np.ndarray] = {}
        self.count = 0

    def conv(self, x, filters, kernel, stride, relu=True):
        import tensorflow as tf

        number = f"_{self.count}" if self.count else ""
        self.count += 1
        scale = np.sqrt(2 / (kernel * kernel * x.shape[-1]))
        weight = self.add(f"conv2d{number}/kernel", scale, (kernel, kernel, x.shape[-1], filters))
        if stride > 1:
            before = (kernel - 1) // 2
            after = kernel - 1 - before
            x = tf.pad(x, [[0, 0], [before, after], [before, after], [0, 0]])
        x = tf.nn.conv2d(x, weight, stride, "SAME" if stride == 1 else "VALID")
        norm = {
            name: self.add(f"batch_normalization{number}/{name}", 0.1, (filters,), offset)
            for name, offset in (
                ("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1)
            )
        }  # fmt: skip
        x = tf.nn.batch_normalization(
            x, norm["moving_mean"], norm["moving_variance"], norm["beta"], norm["gamma"], 1e-5
        )
        return tf.nn.relu(x) if relu else x

    def add(self, name, scale, shape, offset=0):
        value = (offset + scale * self.random.normal(size=shape)).astype(np.float32)
        if name.endswith("moving_variance"):
            value = np.abs(value)
        self.variables[f"base_model/{name}"] = value
        return value

    def __call__(self, images):
        import tensorflow as tf

        if self.cifar:
            x = self.conv(images, self.width, 3, 1)
        else:
            x = self.conv(images, self.width, 7, 2)
            x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        for layer, blocks in enumerate(self.layers):
            filters = self.width * 2**layer
            for block in range(blocks):
                stride = 2 if layer and not block else 1
                shortcut = x
                if not block:
                    shortcut = self.conv(x, 4 * filters, 1, stride, relu=False)
                y = self.conv(x, filters, 1, 1)
                y = self.conv(y, filters, 3, stride)
                x = tf.nn.relu(self.conv(y, 4 * filters, 1, 1, relu=False) + shortcut)
        return x.numpy().mean((1, 2))

    def save(self, prefix):
        """As an Estimator saves it: with the optimiser's slots, a head and the global step."""
        import tensorflow.compat.v1 as tf

        others = {f"{name}/Momentum": np.zeros(1, np.float32) for name in self.variables}
        others["head_contrastive/nl_0/dense/kernel"] = np.zeros((4, 4), np.float32)
        others["global_step"] = np.int64(7)
        with tf.Graph().as_default(), tf.Session() as session:
            for name, value in (self.variables | others).items():
                tf.get_variable(name, initializer=value)
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, str(prefix), global_step=225206)


@pytest.mark.parametrize(
    ("width", "cifar", "side"),
    [
        (8, True, 32),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [(8, False, 64), (16, False, 96)]
        ),
    ],
)
def test_simclrs_checkpoint_computes_what_its_network_computes(tmp_path, width, cifar, side):
    network = Network(width, cifar)
    images = np.random.default_rng(1).uniform(size=(2, side, side, 3)).astype(np.float32)
    theirs = network(images)
    network.save(tmp_path / "model.ckpt")
    weights = load.load(str(tmp_path))
    stem = {"stem": "small", "stem_stride": 1} if cifar else {"stem": "simclr", "stem_stride": 2}
    assert weights.facts == {"arch": "resnet50", "width": width, "channels": 3, **stem}
    assert weights.dialect == "SimCLR, TensorFlow"
    assert set(weights.pixel_mean) == {0}
    assert set(weights.pixel_std) == {1}
    assert not any("conv2d" in name and "Momentum" not in name for name in weights.unused)
    model = ResNet("resnet50", width, **stem)
    like = abstract_backbone(model, 3)
    check.tensors(flatten(like), weights.tensors, (), "init", "x", lambda *_: "")
    pixels = (weights.pixel_mean, weights.pixel_std)
    backbone = load.make_backbone(model, jax.random.key(1), weights, *pixels)
    ours = proof.features(model, backbone, images)
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())
    if not cifar:  # the padding of the max-pool alone is the difference
        torchs = proof.features(model.clone(stem="imagenet"), backbone, images)
        assert np.abs(torchs - theirs).max() > 1e-2 * np.abs(theirs).max()


def test_a_checkpoint_is_found_by_any_of_its_names(tmp_path):
    network = Network(4)
    network(np.zeros((1, 32, 32, 3), np.float32))
    network.save(tmp_path / "model.ckpt")
    prefix = str(tmp_path / "model.ckpt-225206")
    names = [str(tmp_path), prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001"]
    assert len({load.fingerprint(name) for name in names}) == 1
    assert {load.inspect(name)["arch"] for name in names} == {"resnet50"}
    assert load.fingerprint(f"{prefix}0") is None


def test_another_tensorflow_network_is_refused_with_the_reason(tmp_path):
    network = Network(4, layers=(3, 4, 5, 3))
    network(np.zeros((1, 32, 32, 3), np.float32))
    network.save(tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="its 50 convolutions are not those of such a network"):
        load.load(str(tmp_path))


def test_a_damaged_tensorflow_checkpoint_is_refused(tmp_path):
    network = Network(4)
    network(np.zeros((1, 32, 32, 3), np.float32))
    network.save(tmp_path / "model.ckpt")
    data = tmp_path / "model.ckpt-225206.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"Copy its .index and .data files again"):
        load.load(str(tmp_path))
    (tmp_path / "model.ckpt-225206.index").write_bytes(b"")
    with pytest.raises(UserError, match=r"Copy its .index and .data files again"):
        load.load(str(tmp_path))
