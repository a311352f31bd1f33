"""The paper's probe and fine-tuning on the same inputs: ours, and in PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import ours
import scenarios
import theirs
import torch
from compare import Trace
from torch.nn import functional as F

from hpt_jax.config import Finetune, LinearSGD
from hpt_jax.evaluate import finetune, linear_sgd
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import make_devices

CLASSES = 5
# Of the probes trained side by side: rate and decay.
GRID = ((30.0, 0.0), (30.0, 1e-4), (0.3, 0.01))
PROBE_STEPS, FEATURES = 60, 2048
RATE, FINETUNE_STEPS = 0.01, 6


def our_probes(multi_label: bool, dtype: str = "float64") -> Trace:
    """Weights, bias and every loss of each probe, across both drops of the rate."""
    features, labels = features_and_labels(multi_label)
    with jax.enable_x64(dtype == "float64"):
        weights = jnp.asarray([_head(FEATURES).T] * len(GRID), dtype)
        probes = {"weights": weights, "bias": jnp.zeros((len(GRID), CLASSES), dtype)}
        state = (probes, jax.tree.map(jnp.zeros_like, probes))
        losses = []
        base, decays = np.array(GRID, dtype).T
        for step in range(PROBE_STEPS):
            rate = base * np.asarray(linear_sgd.drop(LinearSGD(), step, PROBE_STEPS), dtype)
            given = features[step].astype(dtype), labels[step]
            state, loss = linear_sgd._update(state, *given, rate, decays)
            losses.append(loss)
        weights = state[0]["weights"].swapaxes(1, 2)
        found = {**state[0], "weights": weights, "losses": np.array(losses).T}
    return {
        f"{number}/{name}": np.asarray(value[number])
        for number in range(len(GRID))
        for name, value in found.items()
    }


def torchs_probes(multi_label: bool, dtype: torch.dtype = torch.float64) -> Trace:
    """The same as `our_probes`."""
    batches, start = features_and_labels(multi_label), _head(FEATURES)
    return {
        f"{number}/{name}": value
        for number, one in enumerate(GRID)
        for name, value in torchs_probe(batches, start, *one, dtype).items()
    }


def torchs_probe(
    batches: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    rate: float,
    decay: float,
    dtype: torch.dtype = torch.float64,
) -> Trace:
    """One probe, from `weights` f64[d, classes] and a bias of 0: 'weights', 'bias', 'losses'."""
    linear = _linear(weights).to(dtype)
    optimizer = torch.optim.SGD(linear.parameters(), rate, momentum=0.9, weight_decay=decay)
    # The default's shares of the steps.
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, (20, 40))
    losses = []
    for x, y in zip(*map(torch.from_numpy, batches), strict=True):
        loss = _loss(linear(x.to(dtype)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach().numpy())
    found, bias = (one.detach().numpy() for one in (linear.weight, linear.bias))
    return {"weights": found.T, "bias": bias, "losses": np.array(losses)}


def our_finetuning(
    multi_label: bool, decay: float, count: int = 1, dtype: str = "float64"
) -> Trace:
    """Loss, parameters and running statistics after each step, across both drops, by 'step/name'.

    Args:
      multi_label: whether an image may have several labels.
      decay: of the weights.
      count: of devices.
      dtype: of all arithmetic.
    """
    settings, devices, made = Finetune(), make_devices(count), {}
    with jax.enable_x64(dtype == "float64"):
        layout = devices.group_layout(settings.bn_groups)
        model = ResNet("resnet18", 8, dtype=jnp.dtype(dtype), layout=layout)
        backbone = ours.load(model, scenarios.tensors(model, seed=1))
        weights = jnp.asarray(_head(model.features), dtype)
        head = {"weights": weights, "bias": jnp.zeros(CLASSES, dtype)}
        classifier = finetune.Classifier(backbone, head)
        state = devices.replicate((classifier, finetune._no_momentum(classifier)))
        step = finetune._compiled(model, decay, settings.head_multiplier, devices)
        for index, (images, flip, labels) in enumerate(_images(multi_label)):
            batch = devices.shard({"image": images, "flip": flip, "label": labels})
            rate = np.asarray(RATE * linear_sgd.drop(settings, index, FINETUNE_STEPS), dtype)
            state, loss = step(state, batch, rate)
            named = ours.named_backbone(state[0].backbone)
            found = {"loss": loss, **{f"0.{name}": value for name, value in named.items()}}
            found |= {"1.weight": state[0].head["weights"].T, "1.bias": state[0].head["bias"]}
            made |= {f"{index}/{name}": np.asarray(value) for name, value in found.items()}
    return made


def torchs_finetuning(multi_label: bool, decay: float, dtype: torch.dtype = torch.float64) -> Trace:
    """The same as `our_finetuning`."""
    backbone = theirs.load("resnet18", 8, "imagenet", seed=1)
    linear = _linear(_head(backbone.features))
    groups = oracle.Ranks(torch.nn.Sequential(backbone, linear).to(dtype), 4)
    optimizer = torch.optim.SGD(
        [{"params": backbone.parameters()}, {"params": linear.parameters(), "lr": 100 * RATE}],
        RATE,
        momentum=0.9,
        weight_decay=decay,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, (2, 4))
    mean, std = (
        one.astype(np.float32).astype(np.float64)
        for one in (scenarios.PIXEL_MEAN, scenarios.PIXEL_STD)
    )
    made = {}
    for index, (images, flip, labels) in enumerate(_images(multi_label)):
        pairs = zip(images, flip, strict=True)
        mirrored = np.stack([image[:, ::-1] if yes else image for image, yes in pairs])
        views = torch.from_numpy((mirrored / 255 - mean) / std).permute(0, 3, 1, 2)
        loss = _loss(groups(views.to(dtype)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        found = {"loss": loss.detach().numpy(), **groups.tensors()}
        made |= {f"{index}/{name}": value for name, value in found.items()}
    return made


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels.long())


def _labels(rng: np.random.Generator, *shape: int, multi_label: bool) -> np.ndarray:
    if multi_label:
        return rng.integers(2, size=(*shape, CLASSES), dtype=np.uint8)
    return rng.integers(CLASSES, size=shape, dtype=np.int32)


def features_and_labels(multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of every step: f64[steps, n, d], and i32[steps, n] or u8[steps, n, classes]."""
    rng = np.random.default_rng(1)
    features = np.maximum(rng.normal(size=(PROBE_STEPS, 32, FEATURES)), 0)
    return features, _labels(rng, PROBE_STEPS, 32, multi_label=multi_label)


def _images(multi_label: bool) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each step: images u8[n, s, s, 3], whether to mirror them, labels."""
    rng = np.random.default_rng(2)
    return [
        (
            rng.integers(256, size=(16, 64, 64, 3), dtype=np.uint8),
            rng.random(16) < 0.5,
            _labels(rng, 16, multi_label=multi_label),
        )
        for _ in range(FINETUNE_STEPS)
    ]


def _head(features: int) -> np.ndarray:
    return 0.01 * np.random.default_rng(3).normal(size=(features, CLASSES))


def _linear(weights: np.ndarray) -> torch.nn.Linear:
    linear = torch.nn.Linear(*weights.shape).double()
    theirs.fill(linear, {"weight": weights.T.copy(), "bias": np.zeros(CLASSES)})
    return linear
