"""One stage: restore or initialise, step, log, save."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from hpt_jax import checkpoints, pictures, plan
from hpt_jax.errors import UserError
from hpt_jax.library import StageData
from hpt_jax.models.backbone import Backbone
from hpt_jax.observe import Observer, is_due
from hpt_jax.parallel import Devices, Votes
from hpt_jax.processes import Follower, Leader, Team
from hpt_jax.signals import Stop
from hpt_jax.telemetry import writers
from hpt_jax.telemetry.display import Display
from hpt_jax.training import Carry, Training, learning_rate, saved
from hpt_jax.workdir import StageFolder, write_json


@dataclasses.dataclass(frozen=True)
class Saving:
    """When to log and to save, and which checkpoints to keep; changes no result."""

    log_every_steps: int
    save_every_steps: int
    save_every_minutes: float
    keep: int
    keep_every_steps: int


def run_stage(
    stage: plan.Stage,
    folder: StageFolder,
    data: StageData | None,
    begin: Callable[[], Backbone],
    devices: Devices,
    saving: Saving,
    display: Display,
    stop: Stop,
    labelled: bool,
    refresh: Callable[[], None],
    leader: Leader,
) -> None:
    """Runs one stage to its end, from its own newest checkpoint where there is one.

    Args:
      stage: what to train.
      folder: where; it is done when this returns.
      data: its images, on the devices; None where it reads none.
      begin: makes the backbone that it starts from; called only where it has no checkpoint.
      devices: to map over.
      saving: when to log and to save.
      display: where progress goes.
      stop: whether a signal has asked to stop.
      labelled: whether the images have classes, which are looked at in passing, not learned from.
      refresh: called when there is something new in the folder to be shown.
      leader: of the processes that take part.

    Raises:
      UserError: training diverged, or another process cannot take part.
      signals.Interrupted: a signal has asked to stop, and all is saved.
    """
    began, taken, last = time.monotonic(), 0, 0
    with (
        stop.deferred(),
        # Closed whatever happens: a save under way is finished, not lost.
        contextlib.closing(
            checkpoints.Checkpoints(
                folder.checkpoints,
                saving.keep,
                saving.keep_every_steps,
                (stage.branch_step,) if stage.trunk else (),
                beside=(folder.metrics, folder.measures),
            )
        ) as saver,
    ):
        if stage.config.trainable == "nothing":
            given = {"backbone": begin()}
            if saver.restore_newest(given, display.line) is None:
                saver.save(0, devices.replicate(given))
        else:
            assert data is not None
            training = Training(stage, data, devices)

            def observe_from(start: int) -> Observer:
                return Observer(training, folder, start, labelled, display.line, refresh)

            with leader.together(stage.id):
                first = train(
                    training, folder, begin, saving, saver, observe_from, display, stop, leader
                )
            last = training.steps
            taken = last - first
    seconds = time.monotonic() - began
    done = {"steps": stage.steps, "steps_timed": taken, "seconds": seconds, "checkpoint": last}
    write_json(folder.done, done)


def train(
    training: Training,
    folder: StageFolder,
    begin: Callable[[], Backbone],
    saving: Saving,
    saver: checkpoints.Checkpoints,
    observe_from: Callable[[int], Observer],
    display: Display,
    stop: Stop,
    leader: Leader,
) -> int:
    """The loop of a stage, up to its last save; returns the step that it went on from.

    Args:
      training: what it is made of.
      folder: of the stage.
      begin: makes the backbone that it starts from, where it has no checkpoint.
      saving: when to log and to save.
      saver: of the stage's checkpoints.
      observe_from: makes what watches the steps from a given one on.
      display: where progress goes.
      stop: whether a signal has asked to stop; told when there is something to save.
      leader: of the processes that take the same steps, see `follow`.
    """
    stage, steps, views = training.stage, training.steps, None
    start, carry = _restored_or_initial(training, begin, saver, display, leader)
    overview = folder.path / "parameters.txt"
    if not overview.is_file():
        writers.write_parameter_overview(carry.state.backbone.params, overview)
    if stage.trains and not folder.views.is_file():
        with display.working(f"{stage.id}: drawing views"):
            rng = training.devices.narrowed(carry.state.rng)
            views = pictures.write_views(folder.views, training, rng)

    last_save, previous, note = time.monotonic(), None, ""
    with (
        contextlib.closing(training.batches(start, steps)) as batches,
        contextlib.closing(observe_from(start)) as observer,
        display.progress(stage.id, steps, start, "compiling") as progress,
    ):
        if views is not None:
            observer.show(start, "augmented views", views)
        if stage.trains and not start:
            observer.look(0, carry)
        timed, votes = _Timed(_told(batches, start, leader)), Votes(training.devices)
        for step, batch in zip(range(start, steps), timed, strict=True):
            carry, metrics = training.take(carry, batch, step)
            stop.hold()
            # One step is always queued behind the one that runs; more would only delay a stop.
            jax.block_until_ready(previous)
            previous = metrics

            done = step + 1
            if stage.trains and (done % saving.log_every_steps == 0 or done == steps):
                means = _means(carry.totals)
                rate = learning_rate(stage.config.optimizer, step, steps)
                wait = timed.share_waited()
                observer.log(done, {**means, "learning_rate": rate}, wait)
                carry = training.counted_anew(carry)
                note = f"loss {means['loss']:.3f}{_slow(wait)}"
                _check_finite(carry, training, folder, saver)
            if stage.trains and is_due(done, steps):
                observer.look(done, carry)
            progress(done, note)
            asked = votes.cast(stop.number)  # once: a signal may come at any moment
            branches = bool(stage.trunk) and done == stage.branch_step
            since = time.monotonic() - last_save
            if asked or branches or done == steps or _due(saving, done, since):
                _check_finite(carry, training, folder, saver)  # so that every checkpoint is good
                saver.save(done, training.devices.widened(saved(carry)))
                last_save = time.monotonic()
            if asked:
                stop.ask(asked)  # as another process may have been
                break
    return start


def follow(training: Training, log_every_steps: int, follower: Follower, stop: Stop) -> None:
    """The steps of a stage on another process than the first: the loop of `train` without the rest.

    What runs on the devices of all processes comes in the same order as there.

    Args:
      training: what it is made of.
      log_every_steps: as of `Saving`.
      follower: this process.
      stop: whether a signal has asked to stop; the first process saves.
    """
    start, carry, previous = follower.start(), training.received(), None
    votes, steps = Votes(training.devices), training.steps
    with stop.deferred(), contextlib.closing(training.batches(start, steps)) as batches:
        for step, batch in enumerate(_told(batches, start, follower), start):
            carry, metrics = training.take(carry, batch, step)
            stop.hold()
            jax.block_until_ready(previous)
            previous = metrics
            if training.stage.trains and (step + 1) % log_every_steps == 0:
                carry = training.counted_anew(carry)
            if votes.cast(stop.number):
                break


def _told(batches: Iterator[Any], start: int, team: Team) -> Iterator[Any]:
    """The batches; the others are told what this process is at, who may wait for it."""
    for step in itertools.count(start):
        team.doing(f"reading the images of step {step + 1}", 2 * step)
        batch = next(batches, None)
        if batch is None:
            return
        team.doing(f"in step {step + 1}", 2 * step + 1)
        yield batch


def _restored_or_initial(
    training: Training,
    begin: Callable[[], Backbone],
    saver: checkpoints.Checkpoints,
    display: Display,
    leader: Leader,
) -> tuple[int, Carry]:
    """The step to go on from, and what is carried there; as of `train`."""
    found = saver.restore_newest(training.saved_like(), display.line)
    if not found:
        backbone = begin()
        leader.begin(0)
        return 0, training.initial(backbone)
    start, tree = found
    leader.begin(start)
    display.line(f"{training.stage.id}: continues after step {start}")
    return start, training.restored(tree)


class _Timed:
    """Batches, and how long they were waited for."""

    def __init__(self, batches: Iterator[Any]):
        self._batches, self._waited, self._since = batches, 0.0, time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        began = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self._waited += time.monotonic() - began

    def share_waited(self) -> float:
        """The share of the time since it was last asked, in [0, 1]."""
        now = time.monotonic()
        waited, passed = self._waited, now - self._since
        self._waited, self._since = 0.0, now
        return min(waited / passed, 1.0) if passed > 0 else 0.0


def _slow(data_wait: float) -> str:
    return f", {100 * data_wait:.0f} % of the time waiting for images" if data_wait > 0.2 else ""


def _due(saving: Saving, done: int, seconds: float) -> bool:
    """Whether to save after `done` steps, `seconds` after the last save."""
    every = (saving.save_every_steps, saving.keep_every_steps)
    by_step = any(period and done % period == 0 for period in every)
    return by_step or seconds >= 60 * saving.save_every_minutes


def _means(totals: dict[str, jax.Array]) -> dict[str, float]:
    sums = {name: float(value) for name, value in jax.device_get(totals).items()}
    count = sums.pop("count")
    return {name: value / count for name, value in sums.items()}


def _check_finite(
    carry: Carry, training: Training, folder: StageFolder, saver: checkpoints.Checkpoints
) -> None:
    bad = int(carry.first_bad)
    if bad < 0:
        return
    saver.wait()
    rows = writers.read_metrics(folder.metrics)[-5:]
    if float(carry.totals["count"]):  # not written yet
        rows.append({"step": int(carry.state.step), **_means(carry.totals)})
    history = "".join(
        f"\n  mean up to step {row.pop('step'):.0f}: "
        + ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        for row in rows
    )
    saved_at = checkpoints.newest_whole(folder.checkpoints)
    last = f"The last checkpoint is of step {saved_at}" if saved_at else "Nothing is saved yet"
    stage, rate = training.stage, training.stage.config.optimizer.learning_rate
    diverged = f"finite numbers, but {stage.id} diverged: at step {bad + 1} "
    replay = (
        "To see the step and its images:\n"
        f"  python -m hpt_jax.replay {shlex.quote(str(folder.path))} {bad + 1}"
    )
    if not stage.trains:
        expected = f"{diverged}the statistics of its batch are not"
        fix = f"The weights that it starts from are at fault. {replay}"
        raise UserError(f"stages.{stage.name}", None, expected, fix)
    expected = f"{diverged}its loss, gradient norm or weights are not"
    fix = f"Lower it, or set optimizer.warmup_steps.{history}\n{last}. {replay}"
    raise UserError("optimizer.learning_rate", rate, expected, fix)
