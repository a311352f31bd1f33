"""The whole job, top to bottom: plan, stages, evaluations, report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpt_jax import (
    adapt,
    branch,
    compiled,
    estimate,
    handover,
    mirror,
    parallel,
    pictures,
    plan,
    pretrain,
    remote,
    resolve,
    share,
    surveys,
    workdir,
)
from hpt_jax.data import datasets
from hpt_jax.evaluate import evaluations, features
from hpt_jax.evaluate.subject import Subject
from hpt_jax.library import Library, StageData
from hpt_jax.lineage import lineage, words
from hpt_jax.models.backbone import Backbone
from hpt_jax.processes import Leader
from hpt_jax.report import helped, page, results, tables
from hpt_jax.report.live import Live
from hpt_jax.report.tables import ResultRow
from hpt_jax.signals import Stop
from hpt_jax.telemetry.display import Display, Watch
from hpt_jax.telemetry.writers import EventsWriter
from hpt_jax.training import make_model
from hpt_jax.weights import export, load
from hpt_jax.workdir import StageFolder, stage_folder, write_json


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What a run works with.

    Attributes:
      asked: the whole plan, whatever part of it is done here.
      root: the workdir.
      library: its images, on the devices of this process.
      devices: of all processes that train together.
      display: where lines and progress go.
      stop: whether a signal has asked to stop.
      live: the page, while the run goes on.
      leader: of the processes that train together.
    """

    asked: plan.Plan
    root: Path
    library: Library
    devices: parallel.Devices
    display: Display
    stop: Stop
    live: Live
    leader: Leader


def run(
    config: Mapping[str, Any],
    folder: str | Path,
    overrides: Sequence[tuple[str, str]] = (),
    display: Display | None = None,
    config_path: str = "",
    stop: Stop | None = None,
    leader: Leader | None = None,
    only: Sequence[str] = (),
) -> list[ResultRow]:
    """Does all that a config asks for and that is not done yet.

    Args:
      config: what a config file's `get_config()` returns.
      folder: the workdir, also at an address such as gs://bucket/run; made if it is not there.
      overrides: (dotted field, text) pairs, as from `--config.a.b=text`.
      display: where lines and progress go; the terminal by default.
      config_path: the file that the config is from, for the report; '': none.
      stop: whether a signal has asked to stop; by default none ever does.
      leader: of the processes that train together; by default there are no others (those `follow`).
      only: the ids of the stages to train and evaluate, after those that they start from; (): all,
        with the export, `results.csv` and the report.

    Returns:
      The rows of `results.csv`; none in a dry run, and of a part.

    Raises:
      UserError: for a user's mistake; nothing that was done is lost.
      signals.Interrupted: a signal has asked to stop, and all is saved.
    """
    display, stop, leader = display or Display(), stop or Stop(), leader or Leader()
    # Beside the plan, not in it: how it was asked for changes no identity and no result.
    command = {"config": config_path, "workdir": str(folder), "overrides": list(overrides)}
    if not remote.is_address(str(folder)):
        return _run(config, overrides, folder, command, display, stop, leader, only)
    resolve.resolve(config, overrides)  # a mistake is told before anything is copied
    with contextlib.ExitStack() as stack:
        if resolve.value_of("dry_run", config, overrides):
            root = stack.enter_context(mirror.glimpsed(str(folder)))
        else:
            root = stack.enter_context(mirror.mirrored(str(folder), display, stop))
        return _run(config, overrides, root, command, display, stop, leader, only)


def _run(
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]],
    folder: str | Path,
    command: Mapping[str, Any],
    display: Display,
    stop: Stop,
    leader: Leader,
    only: Sequence[str],
) -> list[ResultRow]:
    """`run` in a local workdir; `command` is how the user has asked for it."""
    root = Path(folder).absolute()
    with display.working("looking at the data"):
        asked = make_plan(config, overrides, display, root)
    part = plan.part(asked, only) if only else asked
    for line in adapt.lines(asked.config.choices):
        display.line(line)
    if asked.config.dry_run:
        handover.check_present_files(part)
        for line in estimate.describe(part, root):
            display.outcome(line)
        return []

    workdir.check_root(folder)
    with display.working("checking compiled programs"):
        compiled.keep(root / "compilation_cache", display.line)
    options = asked.config.parallel
    devices = parallel.make_devices(options.devices, options.map, options.deterministic)
    library = Library(asked.config.data_dir, devices.own, display, root / "scans")
    with display.working("checking what is done"):
        handover.reopen_damaged(part, root, display)
    with display.working("checking data and weights"):
        handover.check(part, root, library, devices, display)
    write_json(
        root / "plans" / f"{asked.config.name}.json", {**plan.as_json(asked), "command": command}
    )

    training, probes, *_ = estimate.seconds_left(part, root)
    if training or probes:
        display.line(estimate.time_left(part, root))
    live = Live(root, asked.config.name, display)
    job = Job(asked, root, library, devices, display, stop, live, leader)
    share.share(tasks(part, job), display.line)
    if only:
        return []
    # Else the results of a run that ends at the same moment could be left out.
    with workdir.locked(root, display.line):
        export_arm(asked, root, display)
        return report(asked, root, display)


def tasks(part: plan.Plan, job: Job) -> list[share.Task]:
    """All training, parents first, then what is made of each stage that ends a run."""

    def training(stage: plan.Stage) -> share.Task:
        folder = stage_folder(job.root, stage.id)
        return share.Task(
            key=stage.id,
            before=plan.before(stage, part),
            folder=folder.path,
            is_done=lambda: folder.is_done,
            do=lambda: run_stage(stage, job),
        )

    def judging(stage: plan.Stage) -> share.Task:
        judge = evaluate if job.asked.config.target else show_neighbours
        return share.Task(
            key=f"{stage.id}, judged",
            before=frozenset({stage.id}),
            folder=stage_folder(job.root, stage.id).path,
            is_done=lambda: not handover.missing(stage, job.asked, job.root),
            do=lambda: judge(stage, job),
        )

    ends = {one.stage.id: one.stage for one in part.runs}
    return [*map(training, part.stages), *map(judging, ends.values())]


def make_plan(
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]] = (),
    display: Display | None = None,
    root: Path | None = None,
) -> plan.Plan:
    """Resolves a config and lays out its stages.

    Reads names and sizes of files, and no pixels, but for templates that choose from the data.

    Args:
      config: what a config file's `get_config()` returns.
      overrides: (dotted field, text) pairs.
      display: where it is told that a dataset of a catalog is being prepared, which happens unless
        it is a dry run, and what is found in a dataset; None: nothing is prepared nor told.
      root: the workdir, where what is found is kept; None: it is not.
    """
    data_dir, dry_run, template = (
        resolve.value_of(name, config, overrides) for name in ("data_dir", "dry_run", "template")
    )

    unseen = set()  # what is chosen without having seen them is no plan of theirs

    @functools.cache
    def prepare(name: str) -> str:
        if display is not None and not dry_run:
            datasets.prepare(name, data_dir or "", display.line, display.progress)
        return name

    def inspect(name: str) -> Mapping[str, Any] | None:
        prepare(name)
        found: Mapping[str, Any] | None
        if template != "adapt" or display is None or root is None:
            found = datasets.inspect(name, data_dir or "")
        else:
            found = surveys.facts_of(name, data_dir or "", root, display, bool(dry_run))
        unseen.update([name] if found is None else [])
        return found

    resolved = resolve.resolve(config, overrides, inspect, load.inspect)

    def fingerprint(name: str) -> str | None:
        return None if name in unseen else datasets.fingerprint_of(prepare(name), resolved.data_dir)

    return plan.make_plan(resolved, fingerprint, load.fingerprint)


def run_stage(stage: plan.Stage, job: Job) -> None:
    """Starts from the parent's backbone, writes the lineage, trains to the end."""
    folder, config = stage_folder(job.root, stage.id), job.asked.config
    devices, display, data = job.devices, job.display, job.library.of_stage(stage)
    display.line(f"{stage.id}: {words(stage)}, seed {stage.seed}{_recipe(stage)}")

    def begin() -> Backbone:
        with display.working(f"{stage.id}: making what it starts from"):
            initial, proof = handover.initial_backbone(stage, job.root, data, devices)
        write_json(folder.lineage, lineage(stage, data, initial, proof))
        for line in proof.lines() if proof else ():
            display.line(line)
        before = plan.before_file(stage, job.asked)
        if data and before and stage in [one.stage for one in job.asked.runs]:
            shown = _write_neighbours(folder.path / before, stage, initial, data, job)
            _to_tensorboard(folder, 0, shown)
        return initial

    branch.branch(stage, job.root, display.line)
    if handover.has_lost_its_lineage(folder):
        begin()
    saving = pretrain.Saving(
        config.log_every_steps,
        config.save_every_steps,
        config.save_every_minutes,
        config.keep_checkpoints,
        config.keep_every_steps,
    )
    refresh = functools.partial(job.live.refresh, stage)
    refresh()
    labelled = stage.config.dataset == config.target and config.metric == "top1"
    stop, leader = job.stop, job.leader
    pretrain.run_stage(
        stage, folder, data, begin, devices, saving, display, stop, labelled, refresh, leader
    )


def _recipe(stage: plan.Stage) -> str:
    """The choices that a user may want to change, in one line."""
    if not stage.trains:
        return ""
    config, model = stage.config, stage.config.model
    return (
        f"; {model.arch} of width {model.width}, {config.image_size} px, batch "
        f"{config.batch_size} in {model.bn_groups} groups, queue {config.moco.queue_size}, "
        f"learning rate {config.optimizer.learning_rate:g}"
    )


def evaluate(stage: plan.Stage, job: Job) -> None:
    """Each evaluation of a backbone that has no result yet; the stage is held."""
    folder, config = stage_folder(job.root, stage.id), job.asked.config
    asked, display = job.asked, job.display
    missing = handover.missing(stage, asked, job.root)
    with display.working(f"{stage.id}: reading its backbone"):
        backbone = load.load_stage(folder)
    low, high = (int(value) for value in backbone.pixel_window)
    data = job.library.target(config.target, stage, (low, high) if high else None)
    subject = Subject(
        model=make_model(stage.config.model, job.devices.own),
        backbone=backbone,
        feed=data.feed,
        splits=data.splits,
        labels=data.labels,
        classes=data.dataset.class_names,
        metric=config.metric,
        image_size=stage.config.image_size,
        center_crop=stage.config.input.center_crop,
        seed=stage.seed,
        watch=_watch(stage, display),
    )
    if handover.NEIGHBOURS in missing:
        missing.remove(handover.NEIGHBOURS)
        neighbours = folder.path / plan.neighbours_file(stage, asked)
        asked_of = pictures.question(data, labelled=True)
        features_of = subject.features
        shown = pictures.write_neighbours(neighbours, features_of, asked_of, data, stage.config)
        _to_tensorboard(folder, stage.steps, shown)
    files = plan.evaluation_files(stage, asked)
    for name in missing:
        job.live.refresh(stage, name)
        steps = evaluations.steps(name, config, len(data.splits["train"]))
        first = "compiling" if steps else ""
        with display.progress(f"{stage.id}: {name}", steps, first=first) as update:
            found = evaluations.evaluate(name, subject, config, update)
        write_json(folder.path / files[name], found)
        display.line(f"{stage.id}: {name} {100 * found['test']:.1f} % on test")
        undefined = [subject.classes[index] for index in found["undefined_classes"]]
        if undefined:
            display.line(
                f"note: {config.metric} leaves out {', '.join(undefined)}: without a positive or "
                "without a negative test image it is not defined"
            )


def _watch(stage: plan.Stage, display: Display) -> Watch:
    """Shows the progress of a part of what is done with a stage."""
    return lambda name, total: display.progress(f"{stage.id}: {name}", total)


def show_neighbours(stage: plan.Stage, job: Job) -> None:
    """The nearest neighbours by a stage's backbone among its own images; no label is needed."""
    folder, data = stage_folder(job.root, stage.id), job.library.of_stage(stage)
    assert data is not None
    path = folder.path / plan.neighbours_file(stage, job.asked)
    shown = _write_neighbours(path, stage, load.load_stage(folder), data, job)
    _to_tensorboard(folder, stage.steps, shown)


def _write_neighbours(
    path: Path, stage: plan.Stage, backbone: Backbone, data: StageData, job: Job
) -> np.ndarray:
    asked, config = pictures.question(data, labelled=False), stage.config
    found = features.extract(
        make_model(config.model, job.devices.own),
        backbone,
        data.feed,
        asked.rows,
        config.image_size,
        config.input.center_crop,
        _watch(stage, job.display),
    )
    return pictures.write_neighbours(path, found, asked, data, config)


def _to_tensorboard(folder: StageFolder, step: int, neighbours: np.ndarray) -> None:
    with contextlib.closing(EventsWriter(folder.path, step)) as events:
        events.write_image(step, "nearest neighbours", neighbours)


def export_arm(asked: plan.Plan, root: Path, display: Display) -> None:
    """Writes the backbone of the arm that `export` names, if it names one."""
    stage = plan.exported(asked)
    if stage is None:
        return
    folder = stage_folder(root, stage.id)
    facts = load.inspect(str(folder.path)) or {}
    with display.working(f"exporting {stage.id}"):
        path = export.export_backbone(load.load_stage(folder), facts, root / "export")
    display.outcome(f"exported {stage.id} to {path}")


def report(asked: plan.Plan, root: Path, display: Display) -> list[ResultRow]:
    """Rebuilds `results.csv` and the report page from all finished work; this study's table."""
    path = root / "results.csv"
    with display.working("gathering results"):
        tables.write_results(path, results.collect(root, display.line))
    rows = tables.read_results(path)
    mine = [row for row in rows if row.study == asked.config.name]
    if mine:
        display.console.print(tables.results_table(mine, list(asked.config.arms)))
    with display.working("drawing the report"):
        made = page.write(root, rows, asked.config.name, display.line)
    if told := helped.sentence(plan.as_json(asked), mine, root):
        display.outcome(told)
    display.outcome(f"results: {path}")
    display.outcome(f"report: {made}")
    return rows
