"""The very step of a stage, for chips that are not here: at a batch, traced and compiled."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from hpt_jax import config as config_lib
from hpt_jax import training
from hpt_jax.errors import UserError
from hpt_jax.forecast.chips import CHIPS
from hpt_jax.parallel import AXIS, Devices

_FIELD = "--topology"


def check_name(topology: str) -> None:
    """Checks that a topology names a known chip and that many sides.

    Raises:
      UserError: it does not; libtpu alone knows which sides there are.
    """
    generation, _, shape = topology.partition(":")
    sides = {1: "v5e:2x2", 2: "v5p:2x2x1"}
    known = f"{', '.join(CHIPS)} and a shape, such as {' or '.join(sides.values())}"
    if generation == "cuda":
        expected = f"a TPU's: {known}; GPUs are not compiled for where there is none"
        raise UserError(_FIELD, topology, expected, "On a machine that has it, use --here.")
    if generation not in CHIPS:
        raise UserError(_FIELD, topology, known, "Choose one of them.")
    dims = CHIPS[generation].dims
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dims - 1), shape):
        expected = f"{dims} sides after {generation}"
        raise UserError(_FIELD, topology, expected, f"Write it as {sides[dims - 1]}.")


def topology_devices(topology: str) -> Devices:
    """The chips of a topology, one device each; needs libtpu, and no TPU.

    Raises:
      UserError: libtpu knows no such shape.
    """
    check_name(topology)
    variant = CHIPS[topology.partition(":")[0]].variant
    options = {"chip_config_name": variant} if variant else {}
    try:
        found = topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        expected = f"a shape that libtpu knows, but: {str(error).partition(chr(10))[0]}"
        raise UserError(_FIELD, topology, expected, "Powers of two are safe.") from None
    return Devices(Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,)))


def at_batch(stage: config_lib.Stage, images_per_chip: int, chips: int) -> config_lib.Stage:
    """A stage at another batch: no group of batch norm is larger than its own, or over two chips.

    So that of 4 groups of 64, which are the default, 32 images a chip become groups of 32, and 256
    become groups of 64. The learning rate, which does not matter here, is left as it is.

    Raises:
      UserError: a chip's images make no such groups of at least 2, or the queue is too short.
    """
    most = min(images_per_chip, stage.batch_size // stage.model.bn_groups)
    size = next((n for n in range(most, 1, -1) if images_per_chip % n == 0), 0)
    if not size:
        expected = f"images that make equal groups of batch norm, of 2 to {max(most, 2)}"
        raise UserError("--images_per_chip", images_per_chip, expected, "Take a power of two.")
    batch = images_per_chip * chips
    if batch > stage.moco.queue_size:
        expected = f"a batch of at most moco.queue_size = {stage.moco.queue_size}, not {batch}"
        raise UserError("--images_per_chip", images_per_chip, expected, "Lower it.")
    model = dataclasses.replace(stage.model, bn_groups=batch // size)
    moco = dataclasses.replace(stage.moco, shuffle_block=0)
    return dataclasses.replace(stage, batch_size=batch, model=model, moco=moco)


def traced(stage: config_lib.Stage, devices: Devices) -> jax.stages.Traced:
    """The step of a stage, on images of as many channels as its config says, else 3."""
    method, channels = training.method_of(stage), stage.input.channels or 3
    settings = method.make_settings(stage, training.make_model(stage.model, devices), channels)
    return training.traced_step(method, settings, devices, channels)
