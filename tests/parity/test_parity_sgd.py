"""Optimiser, schedules, the paper's probe and fine-tuning equal torch.optim's, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scenarios
from compare import OUTPUTS, TEN_STEPS, assert_close

from hpt_jax import moco, training
from hpt_jax.config import Finetune, LinearSGD, Optimizer, Stage
from hpt_jax.evaluate import linear_sgd
from hpt_jax.models.resnet import ResNet

torch = pytest.importorskip("torch")
import supervised  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("optimized")]


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
    found = [training.learning_rate(optimizer, step, steps) for step in range(steps)]
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
            rate = training.learning_rate(stage.optimizer, step, len(gradients))
            found = found - rate * update
            param.grad = torch.from_numpy(gradient.copy())
            theirs.step()
            cosine.step()
            np.testing.assert_allclose(found, param.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_papers_probe_is_torchs_sgd(multi_label: bool) -> None:
    found, expected = supervised.our_probes(multi_label), supervised.torchs_probes(multi_label)
    assert_close(found, expected, TEN_STEPS)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_trained_probe_is_torchs_to_single_precision(multi_label: bool) -> None:
    """At a rate that does not amplify rounding; at 30 PyTorch's own can be off by percents."""
    features, labels = supervised.features_and_labels(multi_label)
    features, steps = features.astype(np.float32), supervised.PROBE_STEPS
    settings = LinearSGD(
        steps=steps, learning_rates=(0.003,), weight_decays=(0.01,), eval_every=steps
    )
    ((probe, _),) = linear_sgd.train(
        zip(features, labels, strict=True),
        features[0],
        labels[0],
        supervised.CLASSES,
        "macro_auroc" if multi_label else "top1",
        settings,
        seed=0,
    )
    start = linear_sgd.init((0, 0), features.shape[-1], supervised.CLASSES)
    weights = np.asarray(start["weights"], np.float64)
    expected = supervised.torchs_probe((features, labels), weights, 0.003, 0.01)
    assert_close(probe, {name: expected[name].astype(np.float32) for name in probe}, 1e-4)


@pytest.mark.parametrize(("multi_label", "decay", "devices"), [(False, 1e-3, 1), (True, 0.0, 2)])
def test_finetuning_steps_are_torchs(multi_label: bool, decay: float, devices: int) -> None:
    found = supervised.our_finetuning(multi_label, decay, devices)
    expected = supervised.torchs_finetuning(multi_label, decay)
    assert_close(scenarios.of_step(found, 0), scenarios.of_step(expected, 0), OUTPUTS)
    assert_close(found, expected, TEN_STEPS)
