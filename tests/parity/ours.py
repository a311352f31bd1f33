"""Our side of the comparisons: hpt_jax's own train steps on the scenarios' inputs."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scenarios
from scenarios import PIXEL_MEAN, PIXEL_STD, Scenario

from hpt_jax import moco, training
from hpt_jax.models.backbone import Backbone, abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import make_devices
from hpt_jax.weights.load import Weights, fill
from hpt_jax.weights.names import flatten

_HEAD = {"fc1": "0", "fc2": "2"}  # our name of a layer of the head -> the oracle's
_INFO_NCE = moco.info_nce


def trace(scenario: Scenario, dtype: str = "float64") -> dict[str, np.ndarray]:
    """Every step of a scenario, by 'step/name'; the names after it are the oracle's."""
    stage, devices = scenario.stage(dtype), make_devices(1)
    method = training.method_of(stage)
    with jax.enable_x64(dtype == "float64"), mock.patch.object(moco, "info_nce", _with_logits):
        model = training.make_model(stage.model, devices)
        settings = method.make_settings(stage, model, 3)
        state = devices.replicate(_initial(method, settings, scenario))
        step = devices.map(
            lambda state, batch, rate: method.train_step(settings, state, batch, rate),
            (False, True, False),
            sharded_out=False,
            donate=True,
        )
        made = {}
        for index, batch in enumerate(scenarios.batches(scenario)):
            rate = np.asarray(training.learning_rate(stage.optimizer, index, scenario.steps), dtype)
            state, metrics = step(state, devices.shard(_batch(method, batch)), rate)
            if method is moco:
                found = {"loss": metrics["loss"], "logits": metrics["logits"]}
                found |= {"learning_rate": rate, **_named(state)}
            else:
                found = named_backbone(state.backbone)
            made |= {f"{index}/{name}": np.asarray(value) for name, value in found.items()}
        return made


def load(model: ResNet, tensors: dict[str, np.ndarray]) -> Backbone:
    """A backbone from tensors as torch lays them out, by the package's own import."""
    given = {
        name: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        for name, value in tensors.items()
    }
    pixel = (PIXEL_MEAN.astype(np.float32), PIXEL_STD.astype(np.float32))
    weights = Weights(given, {}, *pixel, np.zeros(2, np.int32), "scenario")
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_backbone(model, 3))
    return dataclasses.replace(fill(like, weights), pixel_mean=pixel[0], pixel_std=pixel[1])


def named_backbone(backbone: Any) -> dict[str, np.ndarray]:
    """Its tensors by torchvision's names, as torch lays them out."""
    return {
        name: np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else np.asarray(value)
        for name, value in flatten(backbone).items()
    }


def _initial(method: ModuleType, settings: Any, scenario: Scenario) -> Any:
    model, stage = settings.model, scenario.stage()
    backbone = load(model, scenarios.tensors(model, seed=1))
    rng = scenarios.rng_of_step()
    state = method.init(settings, rng, backbone)
    if method is not moco:
        return state
    dtype = jax.tree.leaves(state.head)[0].dtype
    given = scenarios.head_tensors(model.features, stage.moco.dim, seed=2)
    head = {
        name: {
            "kernel": jnp.asarray(given[f"{place}.weight"].T, dtype),
            "bias": jnp.asarray(given[f"{place}.bias"], dtype),
        }
        for name, place in _HEAD.items()
    }
    key_params = jax.tree.map(jnp.copy, {"backbone": backbone.params, "head": head})
    queue = jnp.asarray(scenarios.queue(scenario), dtype)
    return dataclasses.replace(state, rng=rng, head=head, key_params=key_params, queue=queue)


def _batch(method: ModuleType, batch: scenarios.Batch) -> dict[str, np.ndarray]:
    if method is not moco:
        return {"image": batch.query}
    return {
        "query": batch.query,
        "key": batch.key[batch.permutation],
        "images": np.arange(len(batch.query), dtype=np.int32),
        "key_slots": batch.permutation.astype(np.int32),
    }


def _named(state: moco.State) -> dict[str, np.ndarray]:
    key = Backbone(state.key_params["backbone"], state.key_batch_stats, None, None)
    encoders = {"query": (state.backbone, state.head), "key": (key, state.key_params["head"])}
    found = {"pointer": np.asarray(state.queue_pointer, np.int64), "queue": state.queue}
    for encoder, (backbone, head) in encoders.items():
        for name, value in named_backbone(backbone).items():
            found[f"{encoder}/backbone.{name}"] = value
        for name, place in _HEAD.items():
            found[f"{encoder}/head.{place}.weight"] = np.asarray(head[name]["kernel"]).T
            found[f"{encoder}/head.{place}.bias"] = head[name]["bias"]
    return found


def _with_logits(
    queries: jax.Array,
    positives: jax.Array,
    queue: jax.Array,
    temperature: float,
    own: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`moco.info_nce`, with the logits among its metrics."""
    assert own is None
    loss, metrics = _INFO_NCE(queries, positives, queue, temperature)
    logits = moco.logits(queries, positives, queue, temperature)
    return loss, {**metrics, "logits": jax.lax.stop_gradient(logits)}
