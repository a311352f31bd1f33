"""Encoders: torchvision's tensors by name and shape, and a forward pass written out in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpt_jax.models import resnet
from hpt_jax.models.backbone import abstract_backbone, init_backbone, jit_once
from hpt_jax.models.heads import ProjectionHead
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights.names import flatten

PAPER = {
    "resnet10": (False, (1, 1, 1, 1)),
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
}


def torchvision_tensors(bottleneck, blocks):
    """Names and shapes (convolutions [out, in, h, w]) as torchvision lays its ResNets out."""
    tensors = {}

    def conv(name, out, inner, kernel):
        tensors[f"{name}.weight"] = (out, inner, kernel, kernel)

    def bn(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{leaf}"] = (channels,)

    conv("conv1", 64, 3, 7)
    bn("bn1", 64)
    inplanes = 64
    for layer, (planes, depth) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
        for block in range(depth):
            out = planes * 4 if bottleneck else planes
            shapes = [(planes, inplanes, 3), (planes, planes, 3)]
            if bottleneck:
                shapes = [(planes, inplanes, 1), (planes, planes, 3), (out, planes, 1)]
            for i, shape in enumerate(shapes, 1):
                conv(f"layer{layer}.{block}.conv{i}", *shape)
                bn(f"layer{layer}.{block}.bn{i}", shape[0])
            if block == 0 and (layer > 1 or bottleneck):
                conv(f"layer{layer}.{block}.downsample.0", out, inplanes, 1)
                bn(f"layer{layer}.{block}.downsample.1", out)
            inplanes = out
    return tensors


def in_torch_order(shape):
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else tuple(shape)


@pytest.mark.parametrize("arch", PAPER)
def test_tensors_have_torchvisions_names_and_shapes(arch):
    found = flatten(abstract_backbone(ResNet(arch), 3))
    shapes = {name: in_torch_order(value.shape) for name, value in found.items()}
    assert shapes == torchvision_tensors(*PAPER[arch])


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("resnet10", 4_905_792),
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
    ],
)
def test_parameters_are_as_many_as_published_without_the_classifier(arch, count):
    params = abstract_backbone(ResNet(arch), 3).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("channels", [1, 2, 3, 12])
def test_images_may_have_any_number_of_channels(channels):
    backbone = abstract_backbone(ResNet("resnet18", width=8), channels)
    assert backbone.params["conv1"]["kernel"].shape == (7, 7, channels, 8)
    assert backbone.pixel_mean.shape == backbone.pixel_std.shape == (channels,)


def outputs(model, image_size):
    """Shape and dtype of what every module returns, and of the features; computes nothing."""
    images = jnp.zeros((2, image_size, image_size, 3))

    def run():
        return model.init_with_output(
            jax.random.key(0), images, train=False, capture_intermediates=True, mutable=True
        )

    features, variables = jax.eval_shape(run)
    modules = variables["intermediates"]
    maps = {name: one["__call__"][0] for name, one in modules.items() if isinstance(one, dict)}
    return features, maps, variables


@pytest.mark.parametrize(
    ("arch", "stem", "stem_stride", "image_size", "sides"),
    [
        ("resnet50", "imagenet", 2, 224, [112, 56, 28, 14, 7]),
        ("resnet18", "imagenet", 1, 224, [112, 56, 28, 14, 7]),
        ("resnet18", "imagenet", 2, 65, [33, 17, 9, 5, 3]),
        ("resnet18", "small", 1, 32, [32, 32, 16, 8, 4]),
        ("resnet18", "small", 2, 64, [32, 32, 16, 8, 4]),
        ("resnet50", "small", 2, 63, [32, 32, 16, 8, 4]),
    ],
)
def test_stems_give_maps_of_the_expected_size(arch, stem, stem_stride, image_size, sides):
    model = ResNet(arch, width=8, stem=stem, stem_stride=stem_stride)
    features, maps, _ = outputs(model, image_size)
    last = "bn3" if arch == "resnet50" else "bn2"
    names = ["conv1", *(f"layer{i}_0_{last}" for i in (1, 2, 3, 4))]
    assert [maps[name].shape[1:3] for name in names] == [(side, side) for side in sides]
    assert features.shape == (2, model.features)
    assert model.features == 8 * 8 * (4 if arch == "resnet50" else 1)


def test_a_bottlenecks_stride_is_on_its_3x3():
    _, maps, _ = outputs(ResNet("resnet50", width=8), 224)
    sides = [maps[f"layer2_0_{conv}"].shape[1] for conv in ("conv1", "conv2", "conv3")]
    assert sides == [56, 28, 28]


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    features, maps, variables = outputs(ResNet("resnet18", width=8, dtype=jnp.bfloat16), 32)
    assert {one.dtype for one in maps.values()} == {jnp.dtype(jnp.bfloat16)}
    kept = [variables["params"], variables["batch_stats"], features]
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_every_value_keeps_the_dtype_asked_for(dtype):
    with jax.enable_x64(True):
        features, maps, variables = outputs(ResNet("resnet18", width=8, dtype=dtype), 32)
        everything = [features, maps, variables["params"], variables["batch_stats"]]
        assert {leaf.dtype for leaf in jax.tree.leaves(everything)} == {jnp.dtype(dtype)}


def test_heads_parameters_are_float32_under_bfloat16_and_float64_under_float64():
    def dtypes(dtype):
        head = ProjectionHead(4, dtype)
        out = jax.eval_shape(
            head.init_with_output, jax.random.key(0), jnp.zeros((2, 8), jnp.float32)
        )
        return out[0].dtype, {leaf.dtype for leaf in jax.tree.leaves(out[1])}

    assert dtypes(jnp.bfloat16) == (jnp.bfloat16, {jnp.dtype(jnp.float32)})
    with jax.enable_x64(True):
        assert dtypes(jnp.float64) == (jnp.float64, {jnp.dtype(jnp.float64)})


def pad(x, by, value):
    return np.pad(x, [(0, 0), (by, by), (by, by), (0, 0)], constant_values=value)


def windows(x, size, stride):
    """[batch, h, w, channels, size, size]: each place a window stops at."""
    all_of_them = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return all_of_them[:, ::stride, ::stride]


class NumpyResNet:
    """Torchvision's forward pass, on this package's parameters."""

    def __init__(self, variables, train):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.train, self.updated = train, {}

    def conv(self, x, name, stride=1):
        kernel = self.params[name]["kernel"]
        padded = pad(x, (kernel.shape[0] - 1) // 2, 0)
        patches = windows(padded, kernel.shape[0], stride)
        return np.einsum("bhwcij,ijco->bhwo", patches, kernel)

    def bn(self, x, name):
        mean, var = self.stats[name]["mean"], self.stats[name]["var"]
        if self.train:
            flat = x.reshape(-1, x.shape[-1])
            self.updated[name] = {
                "mean": 0.9 * mean + 0.1 * flat.mean(0),
                "var": 0.9 * var + 0.1 * flat.var(0, ddof=1),
            }
            mean, var = flat.mean(0), flat.var(0)
        own = self.params[name]
        return (x - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["bias"]

    def block(self, x, name, stride, bottleneck):
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        y = x
        for i, s in enumerate(strides, 1):
            y = self.bn(self.conv(y, f"{name}_conv{i}", s), f"{name}_bn{i}")
            y = y if i == len(strides) else np.maximum(y, 0)
        if f"{name}_downsample_conv" in self.params:
            x = self.conv(x, f"{name}_downsample_conv", stride)
            x = self.bn(x, f"{name}_downsample_bn")
        return np.maximum(x + y, 0)

    def forward(self, x, stem, stem_stride, bottleneck, blocks):
        stride = 2 if stem == "imagenet" else stem_stride
        x = np.maximum(self.bn(self.conv(x, "conv1", stride), "bn1"), 0)
        if stem == "imagenet":
            x = windows(pad(x, 1, -np.inf), 3, 2).max((-1, -2))
        for layer, depth in enumerate(blocks, 1):
            for block in range(depth):
                stride = 2 if layer > 1 and block == 0 else 1
                x = self.block(x, f"layer{layer}_{block}", stride, bottleneck)
        return x.mean((1, 2))


def random_variables(model, channels, seed):
    """Unlike fresh ones, with scales, biases and running statistics that all differ."""
    abstract = abstract_backbone(model, channels)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        positive = path[-1].key in ("var", "scale")
        values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape)
        return values / np.sqrt(np.prod(leaf.shape[:-1]))

    return jax.tree_util.tree_map_with_path(draw, abstract.variables)


# An even side tells symmetric padding from XLA's SAME at stride 2; an odd one does not.
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("stem", "stem_stride", "bottleneck", "blocks", "side"),
    [("imagenet", 2, True, (1, 2), 24), ("small", 2, False, (2, 1), 12)],
)
def test_forward_pass_equals_numpys(
    monkeypatch, stem, stem_stride, bottleneck, blocks, side, train
):
    monkeypatch.setitem(resnet.ARCHITECTURES, "numpy", (bottleneck, blocks))
    images = np.random.default_rng(0).normal(size=(3, side, side + 8, 2))
    with jax.enable_x64(True):
        model = ResNet("numpy", 4, stem, stem_stride, jnp.float64)
        variables = random_variables(model, 2, seed=1)
        run = jit_once(lambda v, x: model.apply(v, x, train, mutable=["batch_stats"]))
        features, updates = run(variables, images)
    reference = NumpyResNet(variables, train)
    expected = reference.forward(images, stem, stem_stride, bottleneck, blocks)
    np.testing.assert_allclose(features, expected, rtol=1e-10, atol=1e-12)
    kept = reference.updated if train else variables["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        jax.device_get(updates["batch_stats"]),
        kept,
    )


def test_head_is_a_two_layer_perceptron():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 6)).astype(np.float32)
    params = {
        "fc1": {"kernel": rng.normal(size=(6, 6)), "bias": rng.normal(size=6)},
        "fc2": {"kernel": rng.normal(size=(6, 3)), "bias": rng.normal(size=3)},
    }
    hidden = np.maximum(x @ params["fc1"]["kernel"] + params["fc1"]["bias"], 0)
    expected = hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    assert (hidden == 0).any()
    found = ProjectionHead(3).apply({"params": params}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_fresh_backbones_are_kaiming_normal_over_the_fan_in_and_follow_their_key(monkeypatch):
    monkeypatch.setitem(resnet.ARCHITECTURES, "two_stages", (False, (1, 1)))
    pixel_mean, pixel_std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    model = ResNet("two_stages", width=32)
    backbone = init_backbone(model, jax.random.key(0), pixel_mean, pixel_std)
    for module in ("conv1", "layer1_0_conv2", "layer2_0_conv1", "layer2_0_conv2"):
        kernel = np.asarray(backbone.params[module]["kernel"])
        scaled = kernel / np.sqrt(2 / np.prod(kernel.shape[:3]))
        # Four standard errors; a truncated normal of this variance would not reach 2.3.
        np.testing.assert_allclose(scaled.std(), 1, atol=4 / np.sqrt(2 * scaled.size))
        assert np.abs(scaled).max() > 2.6
    for (module, leaf), value in {
        ("bn1", "scale"): 1,
        ("layer2_0_bn2", "scale"): 1,
        ("layer2_0_bn2", "bias"): 0,
    }.items():
        np.testing.assert_array_equal(backbone.params[module][leaf], value)
    np.testing.assert_array_equal(backbone.batch_stats["bn1"]["mean"], 0)
    np.testing.assert_array_equal(backbone.batch_stats["bn1"]["var"], 1)
    np.testing.assert_array_equal(backbone.pixel_mean, pixel_mean.astype(np.float32))
    np.testing.assert_array_equal(backbone.pixel_std, pixel_std.astype(np.float32))

    def stem_of(seed):
        fresh = init_backbone(model, jax.random.key(seed), pixel_mean, pixel_std)
        return np.asarray(fresh.params["conv1"]["kernel"])

    np.testing.assert_array_equal(stem_of(0), backbone.params["conv1"]["kernel"])
    assert (stem_of(1) != stem_of(0)).all()


def test_a_fresh_head_is_kaiming_normal_with_biases_of_zero():
    params = ProjectionHead(128).init(jax.random.key(0), jnp.zeros((1, 512)))["params"]
    for layer, out in (("fc1", 512), ("fc2", 128)):
        kernel = np.asarray(params[layer]["kernel"])
        assert kernel.shape == (512, out)
        # Four standard errors; a truncated normal of this variance would not reach 2.3.
        scaled = kernel / np.sqrt(2 / 512)
        np.testing.assert_allclose(scaled.std(), 1, atol=4 / np.sqrt(2 * scaled.size))
        assert np.abs(scaled).max() > 2.6
        np.testing.assert_array_equal(params[layer]["bias"], 0)
