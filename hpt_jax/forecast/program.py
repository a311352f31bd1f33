"""The very step of a stage, for chips that are not here: at a batch, traced and compiled."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from hpt_jax import config as config_lib
from hpt_jax import training
from hpt_jax.errors import UserError
from hpt_jax.forecast.chips import CHIPS, chip_of
from hpt_jax.forecast.gpus import target_config
from hpt_jax.parallel import AXIS, Devices

_FIELD = "--topology"
_GPUS_OF_A_HOST = 8  # between which NVLink goes


def check_name(topology: str) -> None:
    """Checks that a topology names a known chip and that many sides.

    Raises:
      UserError: it does not; libtpu alone knows which sides there are.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        known = ", ".join(f"{name}:{chip.shape}" for name, chip in CHIPS.items())
        raise UserError(_FIELD, topology, f"a known chip and a shape, such as {known}", "Take one.")
    chip = CHIPS[generation]
    sides = chip.shape.count("x") + 1
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (sides - 1), shape):
        expected = f"{sides} numbers after {generation}" if sides > 1 else "a number of GPUs"
        raise UserError(_FIELD, topology, expected, f"Write it as {generation}:{chip.shape}.")
    if chip.gpu and int(shape) > _GPUS_OF_A_HOST:
        expected = f"at most {_GPUS_OF_A_HOST} GPUs, those of one host"
        raise UserError(_FIELD, topology, expected, f"Write it as {generation}:{chip.shape}.")


def topology_devices(topology: str) -> Devices:
    """The chips of a topology, one device each; needs their compiler, and none of them.

    Raises:
      UserError: the compiler knows no such shape.
    """
    chip, shape = chip_of(topology), topology.partition(":")[2]
    options: dict[str, Any] = {"topology_name": topology}
    if chip.variant:
        options["chip_config_name"] = chip.variant
    if chip.gpu:
        options = {"target_config": target_config(chip, chip.gpu), "topology": f"1x1x{shape}"}
    try:
        found = topologies.get_topology_desc(platform=chip.platform, **options).devices
    except jax.errors.JaxRuntimeError as error:
        expected = f"a shape that its compiler knows, but: {str(error).partition(chr(10))[0]}"
        raise UserError(_FIELD, topology, expected, "Powers of two are safe.") from None
    return Devices(Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,)))


def at_batch(stage: config_lib.Stage, images_per_chip: int, chips: int) -> config_lib.Stage:
    """A stage at the batch of some chips.

    At its own batch it is what it is, if its groups of batch norm fit the chips. At another one no
    group is larger than its own, or over two chips: of 4 groups of 64, which are the default, 32
    images a chip become groups of 32, and 256 become groups of 64. The learning rate, which does
    not matter here, is left as it is.

    Raises:
      UserError: a chip's images make no such groups of at least 2, or the queue is too short.
    """
    batch, groups = images_per_chip * chips, stage.model.bn_groups
    if batch == stage.batch_size and 0 in (groups % chips, chips % groups):
        return stage
    most = min(images_per_chip, stage.batch_size // groups)
    size = next((n for n in range(most, 1, -1) if images_per_chip % n == 0), 0)
    if not size:
        expected = f"images that make equal groups of batch norm, of 2 to {max(most, 2)}"
        raise UserError("--images_per_chip", images_per_chip, expected, "Take a power of two.")
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
