"""Full-size ResNets on the same weights and images: ours and torchvision's."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ours
import scenarios
import theirs
import torch
from compare import Trace
from flax import traverse_util
from torchvision import models

from hpt_jax.models.backbone import Backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights.names import torch_name

PASSES = 3  # in training mode, of images of their own


def images() -> np.ndarray:
    """Noise f64[passes, n, h, w, 3]; an even side tells torch's padding from XLA's SAME."""
    return np.random.default_rng(7).normal(size=(PASSES, 4, 64, 64, 3))


def weights_of_loss(features: int) -> np.ndarray:
    """Of the sum of features [n, features] that gradients are taken of."""
    return np.random.default_rng(8).normal(size=(4, features))


@functools.cache
def our_maps(arch: str, dtype: str = "float64") -> tuple[Trace, Trace, Trace]:
    """Features and every block's output in evaluation and in training; running statistics after."""
    with jax.enable_x64(dtype == "float64"):
        model, backbone = _ours(arch, dtype)

        @functools.partial(jax.jit, static_argnums=2)
        def forward(variables: Any, x: jax.Array, train: bool) -> Any:
            collections = ["batch_stats", "intermediates"]
            features, updates = model.apply(variables, x, train=train, mutable=collections)
            blocks = {name: value for name, (value,) in updates["intermediates"].items()}
            return {"features": features, **blocks}, updates["batch_stats"]

        batches, variables = images().astype(dtype), backbone.variables
        evaluation, _ = forward(variables, batches[0], False)
        training = []
        for batch in batches:
            maps, batch_stats = forward(variables, batch, True)
            training.append(maps)
            variables = {**variables, "batch_stats": batch_stats}
        return _as_torch(evaluation), _as_torch(training[0]), _named(batch_stats)


def our_gradients(arch: str, dtype: str = "float64") -> Trace:
    """Of a weighted sum of the features in training mode, for every parameter."""
    with jax.enable_x64(dtype == "float64"):
        model, backbone = _ours(arch, dtype)

        @jax.jit
        def gradients(params: Any, x: jax.Array) -> Any:
            def loss(params: Any) -> jax.Array:
                variables = {"params": params, "batch_stats": backbone.batch_stats}
                features, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
                return jnp.sum(features * weights_of_loss(model.features).astype(dtype))

            return jax.grad(loss)(params)

        return _named(gradients(backbone.params, images()[0].astype(dtype)))


def _ours(arch: str, dtype: str) -> tuple[ResNet, Backbone]:
    model = ResNet(arch, dtype=jnp.dtype(dtype))
    return model, ours.load(model, scenarios.tensors(model, seed=1))


@functools.cache
def torchs_maps(arch: str, dtype: torch.dtype = torch.float64) -> tuple[Trace, Trace, Trace]:
    """The same as `our_maps`."""
    module, batches = _torchs(arch, dtype)
    with torch.no_grad():
        evaluation = blocks(module.eval(), batches[0])
        training = blocks(module.train(), batches[0])
        for batch in batches[1:]:
            module(batch)
    statistics = {
        name: buffer.numpy() for name, buffer in module.named_buffers() if "running" in name
    }
    return evaluation, training, statistics


def torchs_gradients(arch: str, dtype: torch.dtype = torch.float64) -> Trace:
    """The same as `our_gradients`."""
    module, batches = _torchs(arch, dtype)
    features = module(batches[0])
    (features * torch.from_numpy(weights_of_loss(features.shape[1])).to(dtype)).sum().backward()
    return {name: param.grad.numpy() for name, param in module.named_parameters()}


def _torchs(arch: str, dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
    module = getattr(models, arch)()
    module.fc = torch.nn.Identity()
    module.double()
    theirs.fill(module, scenarios.tensors(ResNet(arch), seed=1))
    return module.to(dtype), torch.from_numpy(images()).to(dtype).permute(0, 1, 4, 2, 3)


def blocks(module: Any, x: torch.Tensor) -> Trace:
    """Features and every block's output of a ResNet in PyTorch."""
    found = {}
    hooks = [
        one.register_forward_hook(lambda _, __, out, name=name: found.update({name: out.numpy()}))
        for name, one in module.named_modules()
        if re.fullmatch(r"layer\d\.\d+", name)
    ]
    with torch.no_grad():
        found["features"] = module(x).numpy()
    for hook in hooks:
        hook.remove()
    return found


def _as_torch(maps: dict[str, jax.Array]) -> Trace:
    return {
        name.replace("_", "."): np.transpose(value, (0, 3, 1, 2)) if value.ndim == 4 else value
        for name, value in jax.device_get(maps).items()
    }


def _named(tree: Any) -> Trace:
    return {
        torch_name(*path): np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value
        for path, value in traverse_util.flatten_dict(jax.device_get(tree)).items()
    }
