"""What another process than the first does: it takes part in the steps of each stage."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hpt_jax import parallel, plan, pretrain, processes, remote, run
from hpt_jax.errors import UserError
from hpt_jax.library import Library
from hpt_jax.processes import Follower
from hpt_jax.signals import Interrupted, Stop
from hpt_jax.training import Training


def follow(
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]],
    stop: Stop,
    follower: Follower,
) -> NoReturn:
    """Takes part in the steps of another process's stages; writes nothing, and ends with it.

    Args:
      config: as of `run`, and all else as there.
      overrides: (dotted field, text) pairs.
      stop: whether a signal has asked to stop.
      follower: this process.
    """
    display = processes.Silent(follower)

    @functools.cache
    def opened() -> tuple[plan.Plan, parallel.Devices, Library]:
        asked = run.make_plan(config, overrides, display, Path(follower.scratch))
        options = asked.config.parallel
        devices = parallel.make_devices(options.devices, options.map, options.deterministic)
        # It has no workdir, but what was read of large sets must not be read at every start.
        scans = remote.cache() / "scans"
        return asked, devices, Library(asked.config.data_dir, devices.own, display, scans)

    while True:
        wanted = follower.next()
        try:
            asked, devices, library = opened()
            stage = next((one for one in asked.stages if one.id == wanted), None)
            if stage is None:
                has = ", ".join(one.id for one in asked.stages)
                expected = f"the stage {wanted}, which process 0 trains, but here it has {has}"
                fix = "Give all processes the same images, weights and versions."
                raise UserError("the plan", None, expected, fix)
            data = library.of_stage(stage)
        except UserError as error:
            follower.refuse(error.mistakes)
            continue
        assert data is not None
        follower.ready(wanted)
        training = Training(stage, data, devices)
        with contextlib.suppress(Interrupted):  # the first process ends all, once it has saved
            pretrain.follow(training, asked.config.log_every_steps, follower, stop)
