"""Optimiser, schedules, the paper's probe and fine-tuning equal torch.optim's, in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ours
import pytest
import scenarios
from compare import OUTPUTS, TEN_STEPS, Trace, assert_close

from hpt_jax import moco, pretrain
from hpt_jax.config import Finetune, LinearSGD, Optimizer, Stage
from hpt_jax.evaluate import finetune, linear_sgd
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import make_devices

torch = pytest.importorskip("torch")
import oracle  # noqa: E402
import theirs  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("optimized")]

CLASSES = 5


def rates(scheduler: Any, steps: int) -> np.ndarray:
    """What a schedule of torch gives each of so many steps."""
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return np.array(found)


def sgd(rate: float = 1.0) -> Any:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


@pytest.mark.parametrize("steps", [1, 50, 500, 5000])
def test_the_rate_of_every_step_is_torchs_cosine(steps: int) -> None:
    optimizer = Optimizer()
    found = [pretrain.learning_rate(optimizer, step, steps) for step in range(steps)]
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd(optimizer.learning_rate), steps)
    np.testing.assert_allclose(found, rates(cosine, steps), atol=1e-12 * optimizer.learning_rate)


# The milestones that the authors' configs name, in steps of the optimiser.
@pytest.mark.parametrize(
    ("settings", "steps", "milestones"),
    [
        (LinearSGD(), 5000, (1651, 3333)),
        (Finetune(), 2500, (833, 1667)),
        (Finetune(), 90 * 4, (30 * 4, 60 * 4)),  # 90 epochs of 1000 images at batch 256
        (Finetune(), 90 * 74, (30 * 74, 60 * 74)),  # of RESISC's 18,900
        (Finetune(), 90 * 324, (30 * 324, 60 * 324)),  # of COCO's 82,783
    ],
)
def test_rates_drop_where_torchs_do(
    settings: LinearSGD | Finetune, steps: int, milestones: tuple[int, ...]
) -> None:
    found = [linear_sgd.drop(settings, step, steps) for step in range(steps)]
    multi_step = torch.optim.lr_scheduler.MultiStepLR(sgd(), milestones)
    np.testing.assert_allclose(found, rates(multi_step, steps), rtol=1e-12)


@pytest.mark.parametrize("decay", [1e-4, 0.1])
def test_pretraining_steps_are_torchs_sgd(decay: float) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=7), rng.normal(size=(30, 7))
    stage = Stage(optimizer=Optimizer(weight_decay=decay))
    param = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.SGD([param], 0.03, momentum=0.9, weight_decay=decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, len(gradients))
    with jax.enable_x64(True):
        optimizer = moco.make_settings(stage, ResNet(), 3).optimizer
        found, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
        for step, gradient in enumerate(gradients):
            update, state = optimizer.update(jnp.asarray(gradient), state, found)
            rate = pretrain.learning_rate(stage.optimizer, step, len(gradients))
            found = found - rate * update
            param.grad = torch.from_numpy(gradient.copy())
            theirs.step()
            cosine.step()
            np.testing.assert_allclose(found, param.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_papers_probe_is_torchs_sgd(multi_label: bool) -> None:
    """Rate 30 and another, without decay and with it, side by side, across both drops."""
    steps, rng = 60, np.random.default_rng(1)
    features = np.maximum(rng.normal(size=(steps, 32, 48)), 0)
    shape = (steps, 32, CLASSES) if multi_label else (steps, 32)
    labels = rng.integers(2 if multi_label else CLASSES, size=shape)
    start = {"weights": 0.01 * rng.normal(size=(48, CLASSES)), "bias": np.zeros(CLASSES)}
    grid = [(30.0, 0.0), (30.0, 1e-4), (0.3, 0.01)]
    with jax.enable_x64(True):
        probes = jax.tree.map(lambda one: jnp.asarray([one] * len(grid)), start)
        state = (probes, jax.tree.map(jnp.zeros_like, probes))
        update, losses = linear_sgd._update(), []
        base, decays = np.array(grid).T
        for step in range(steps):
            rate = base * linear_sgd.drop(LinearSGD(), step, steps)
            state, loss = update(state, features[step], labels[step], rate, decays)
            losses.append(loss)
        found = {**state[0], "losses": np.array(losses).T}
    for number, (rate, decay) in enumerate(grid):
        expected = torchs_probe(features, labels, start, rate, decay)
        own = {name: np.asarray(value[number]) for name, value in found.items()}
        assert_close(own, expected, OUTPUTS)


def torchs_probe(
    features: np.ndarray, labels: np.ndarray, start: Trace, rate: float, decay: float
) -> Trace:
    linear = torch.nn.Linear(*start["weights"].shape).double()
    given = {"weight": start["weights"].T.copy(), "bias": start["bias"]}
    theirs.fill(linear, given)
    optimizer = torch.optim.SGD(linear.parameters(), rate, momentum=0.9, weight_decay=decay)
    # The default's shares of 60 steps.
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, (20, 40))
    losses = []
    for x, y in zip(*map(torch.from_numpy, (features, labels)), strict=True):
        if y.ndim == 2:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(linear(x), y.double())
        else:
            loss = torch.nn.functional.cross_entropy(linear(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    weights, bias = (one.detach().numpy() for one in (linear.weight, linear.bias))
    return {"weights": weights.T, "bias": bias, "losses": np.array(losses)}


FINETUNE = dataclasses.replace(Finetune(), weight_decay=1e-3)
FINETUNE_STEPS, RATE = 6, 0.01


@pytest.mark.parametrize("devices", [1, 2])
def test_finetuning_steps_are_torchs(devices: int) -> None:
    """Every parameter and running statistic after each of six steps, across both drops."""
    found, expected = our_finetuning(devices), torchs_finetuning()
    first = [{n: v for n, v in one.items() if n.startswith("0/")} for one in (found, expected)]
    assert_close(*first, OUTPUTS)
    assert_close(found, expected, TEN_STEPS)


def labelled_images() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each step: images u8[n, s, s, 3], whether to mirror them, their labels."""
    rng = np.random.default_rng(2)
    return [
        (
            rng.integers(256, size=(16, 64, 64, 3), dtype=np.uint8),
            rng.random(16) < 0.5,
            rng.integers(CLASSES, size=16, dtype=np.int32),
        )
        for _ in range(FINETUNE_STEPS)
    ]


def our_finetuning(count: int) -> Trace:
    devices, made = make_devices(count), {}
    with jax.enable_x64(True):
        layout = devices.group_layout(FINETUNE.bn_groups)
        model = ResNet("resnet18", 8, dtype=jnp.float64, layout=layout)
        backbone = ours.load(model, scenarios.tensors(model, seed=1))
        head = {"weights": jnp.asarray(head_of_start()), "bias": jnp.zeros(CLASSES)}
        classifier = finetune.Classifier(backbone, head)
        state = devices.replicate((classifier, finetune._no_momentum(classifier)))
        step = finetune._compiled(model, FINETUNE.weight_decay, FINETUNE.head_multiplier, devices)
        for index, (images, flip, labels) in enumerate(labelled_images()):
            batch = devices.shard({"image": images, "flip": flip, "label": labels})
            rate = np.float64(RATE * linear_sgd.drop(FINETUNE, index, FINETUNE_STEPS))
            state, loss = step(state, batch, rate)
            named = ours.named_backbone(state[0].backbone)
            found = {"loss": loss, **{f"0.{name}": value for name, value in named.items()}}
            found |= {"1.weight": state[0].head["weights"].T, "1.bias": state[0].head["bias"]}
            made |= {f"{index}/{name}": np.asarray(value) for name, value in found.items()}
    return made


def torchs_finetuning() -> Trace:
    backbone = theirs.load("resnet18", 8, "imagenet", seed=1)
    linear = torch.nn.Linear(backbone.features, CLASSES).double()
    theirs.fill(linear, {"weight": head_of_start().T.copy(), "bias": np.zeros(CLASSES)})
    groups = oracle.Ranks(torch.nn.Sequential(backbone, linear), FINETUNE.bn_groups)
    optimizer = torch.optim.SGD(
        [{"params": backbone.parameters()}, {"params": linear.parameters(), "lr": 100 * RATE}],
        RATE,
        momentum=0.9,
        weight_decay=FINETUNE.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, (2, 4))
    mean, std = (
        one.astype(np.float32).astype(np.float64)
        for one in (scenarios.PIXEL_MEAN, scenarios.PIXEL_STD)
    )
    made = {}
    for index, (images, flip, labels) in enumerate(labelled_images()):
        mirrored = np.stack(
            [image[:, ::-1] if yes else image for image, yes in zip(images, flip, strict=True)]
        )
        views = torch.from_numpy((mirrored / 255 - mean) / std).permute(0, 3, 1, 2)
        logits = groups(views)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        found = {"loss": loss.detach().numpy(), **groups.tensors()}
        made |= {f"{index}/{name}": value for name, value in found.items()}
    return made


def head_of_start() -> np.ndarray:
    return 0.01 * np.random.default_rng(3).normal(size=(64, CLASSES))
