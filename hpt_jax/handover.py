"""What a stage starts from, and the checks that nothing stands in its way, before any training."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import jax
import numpy as np
import psutil

from hpt_jax import checkpoints, estimate, mirror, pictures, plan, remote
from hpt_jax.augment.policies import for_channels
from hpt_jax.config import Config, Optimizer, labels_of
from hpt_jax.data.splits import strata
from hpt_jax.errors import Mistake, UserError
from hpt_jax.evaluate.metrics import check_metric
from hpt_jax.library import Library, StageData
from hpt_jax.lineage import kin
from hpt_jax.models.backbone import Backbone, abstract_backbone, init_backbone
from hpt_jax.paper import statistics_note
from hpt_jax.parallel import Devices
from hpt_jax.shapes import LINEAGE
from hpt_jax.telemetry.display import Display
from hpt_jax.training import make_model
from hpt_jax.weights import check as check_weights
from hpt_jax.weights import load
from hpt_jax.weights.names import flatten
from hpt_jax.weights.proof import Proof, prove
from hpt_jax.workdir import StageFolder, locked, read_json, stage_folder


def initial_backbone(
    stage: plan.Stage, root: Path, data: StageData | None, devices: Devices
) -> tuple[Backbone, Proof | None]:
    """The parent's backbone, or that of a file with the proof that it is whole, or a random one.

    Only convolutions, batch norm's scale and bias and its running statistics pass on; the pixel
    statistics are the stage's own, where it reads a dataset.
    """
    model = make_model(stage.config.model, devices)
    rng = jax.random.key(stage.seed)
    if stage.parent:
        given = load.load(str(stage_folder(root, stage.parent.id).path))
    elif stage.config.init != "random":
        given = _file_of(stage, data)
    else:
        given = None
    if data is not None:
        mean, std = data.pixel_mean, data.pixel_std
        window = np.array(data.store.reading.window or (0, 0))
    elif given is not None:
        mean, std, window = given.pixel_mean, given.pixel_std, given.pixel_window
    else:
        mean, std = load.imagenet_pixels(stage.config.input.channels or 3)
        window = np.zeros(2)
    if given is None:
        return init_backbone(model, rng, mean, std, window), None
    backbone = load.make_backbone(model, rng, given, mean, std, window)
    field = f"stages.{stage.name}.init"
    return backbone, None if stage.parent else prove(given, model, backbone, field)


def _file_of(stage: plan.Stage, data: StageData | None) -> load.Weights:
    """The weights that a first stage starts from, for images of as many channels as it takes."""
    weights = load.load(stage.config.init, f"stages.{stage.name}.init")
    had = weights.facts["channels"]
    wanted = data.store.channels if data else stage.config.input.channels
    return load.with_channels(weights, wanted or had)


def reopen_damaged(asked: plan.Plan, root: Path, display: Display) -> None:
    """Lets stages be trained on that are done, and still needed, but whose end is damaged.

    They go on from their last whole checkpoint.

    Raises:
      UserError: there is none: training it all again is for the user to decide.
    """
    exported = plan.exported(asked)
    needed = {run.stage.id for run in asked.runs if missing(run.stage, asked, root)}
    needed |= {exported.id} if exported else set()
    for stage in reversed(asked.stages):  # children first
        folder = stage_folder(root, stage.id)
        if stage.id in needed and folder.is_done:
            _reopen(stage, folder, display)
        if stage.parent and not folder.is_done and not _goes_on(folder):
            needed.add(stage.parent.id)


def _reopen(stage: plan.Stage, folder: StageFolder, display: Display) -> None:
    """Makes a stage unfinished whose end is damaged."""
    if load.fault_of_stage(folder) is None:
        return
    with locked(folder.path, display.line):
        fault = load.fault_of_stage(folder)
        if fault is None:  # another run, that this one waited for, has mended it
            return
        if stage.trains and checkpoints.newest_whole(folder.checkpoints) is None:
            raise load.lost(folder, fault)
        folder.done.unlink(missing_ok=True)
    display.line(f"note: {stage.id}: damaged at its end ({fault}): it goes on from where it can")


def _goes_on(folder: StageFolder) -> bool:
    """Whether an unfinished stage can go on without its parent."""
    if has_lost_its_lineage(folder):
        return False
    return checkpoints.newest_whole(folder.checkpoints) is not None


def has_lost_its_lineage(folder: StageFolder) -> bool:
    """Whether a stage was begun, but what tells of its beginning is damaged or gone."""
    return folder.checkpoints.exists() and read_json(folder.lineage, LINEAGE) is None


# The paper's; beyond its batch, groups stay as they are and the rate of steps grows with the batch.
REFERENCE_BATCH, REFERENCE_GROUP = 256, 64

# What is made of a backbone besides its evaluations.
NEIGHBOURS = "neighbours"


def missing(stage: plan.Stage, asked: plan.Plan, root: Path) -> list[str]:
    """The evaluations of a stage's backbone that have no result yet, and `NEIGHBOURS`."""
    if not (asked.config.target or stage.config.dataset):
        return []
    folder, files = stage_folder(root, stage.id), plan.evaluation_files(stage, asked)
    left = [name for name, file in files.items() if not folder.has(file)]
    neighbours = folder.path / plan.neighbours_file(stage, asked)
    return left if pictures.neighbours_are_whole(neighbours) else [*left, NEIGHBOURS]


def check(
    asked: plan.Plan, root: Path, library: Library, devices: Devices, display: Display
) -> None:
    """Finds mistakes in data, then in weights, before hours are spent; warns of oddities.

    Raises:
      UserError: for the first mistake.
    """
    todo = [stage for stage in asked.stages if not stage_folder(root, stage.id).is_done]
    found = [mistake for stage in todo for mistake in _device_mistakes(stage, devices)]
    if asked.config.target and any(
        name.startswith("finetune") for name in asked.config.evaluations
    ):
        tuned = asked.config.finetune
        found += _batch_mistakes("finetune.", tuned.batch_size, tuned.bn_groups, devices.own)
    if found:
        raise UserError.of(list(dict.fromkeys(found)))
    for stage in todo:
        data = library.of_stage(stage)
        if data is not None:
            _check_unchanged(stage, root)
    for run in asked.runs if asked.config.target else ():
        if missing(run.stage, asked, root):
            _check_target(asked.config, run.stage, library)
    for line in dict.fromkeys(line for stage in todo for line in _warnings(stage, library)):
        display.line(f"note: {line}")
    _check_export(asked, root)
    for stage in todo:
        _check_file(stage, asked.config.template)
        _check_parent(stage, asked.config.template, library, devices)


def _check_target(config: Config, stage: plan.Stage, library: Library) -> None:
    name, data = config.target, library.target(config.target, stage)
    check_metric(config.metric, data.dataset.multi_label)
    groups = len(np.unique(strata(data.labels[data.splits["train"]])))
    for evaluation in config.evaluations:
        count = labels_of(evaluation)
        if count is not None and not groups <= count <= len(data.splits["train"]):
            most = len(data.splits["train"])
            raise UserError(
                "evaluations",
                evaluation,
                f"from {groups} labels, one of each class, to {most}, all training images",
                f"For example {evaluation.partition('_')[0]}_{min(most, 10 * groups)}.",
            )
    has, takes = data.store.channels, _channels(stage, library)
    if has != takes:
        raise UserError(
            "target",
            name,
            f"images of {takes} channels, which stage {stage.name} takes, but they have {has}",
            f"Set --config.input.channels={max(has, takes)} (1: luma, 3: grey is repeated).",
        )


def _device_mistakes(stage: plan.Stage, devices: Devices) -> list[Mistake]:
    found: list[Mistake] = []
    dtype = stage.config.model.dtype
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        fix = "Set the environment variable JAX_ENABLE_X64=1."
        found.append(Mistake("model.dtype", dtype, "JAX in double precision", fix))
    found += _memory_mistakes(stage, devices) if stage.trains else []
    groups = stage.config.model.bn_groups
    return found + _batch_mistakes("", stage.config.batch_size, groups, devices, "model.")


def _memory_mistakes(stage: plan.Stage, devices: Devices) -> list[Mistake]:
    """Refuses what could only end in the middle of a run, or take the machine with it."""
    needs = estimate.least_memory(stage, devices.count) / 2**30
    # Devices that share the host's memory have a part of it each.
    has = (devices.memory() or psutil.virtual_memory().total / devices.own.count) / 2**30
    expected = (
        f"what fits into the {has:.1f} GiB of a device, but weights, queue and batch alone take "
        f"{needs:.1f}"
    )
    fix = "Lower batch_size, image_size, model.width, moco.queue_size or moco.dim."
    return [] if needs <= has else [Mistake(f"stages.{stage.name}", None, expected, fix)]


def _batch_mistakes(
    at: str, batch: int, groups: int, devices: Devices, of_groups: str = ""
) -> list[Mistake]:
    """Whether a batch and its groups can be cut over the devices; `at` is their place."""
    found: list[Mistake] = []
    try:
        devices.group_layout(groups, f"{at or of_groups}bn_groups")
    except UserError as error:
        found += error.mistakes
    if batch % devices.count:
        fix = "Change it, or use fewer devices with --config.parallel.devices."
        expected = f"a multiple of the {devices.count} devices"
        found.append(Mistake(f"{at}batch_size", batch, expected, fix))
    return found


def _check_unchanged(stage: plan.Stage, root: Path) -> None:
    """Refuses to begin anew what was begun on the same dataset with another content."""
    for path in sorted((root / "stages").glob(f"{stage.name}-*/lineage.json")):
        begun = read_json(path, LINEAGE)
        if begun is None or not begun["dataset"] or StageFolder(path.parent).is_done:
            continue
        if begun["kin"] == kin(stage) and begun["id"] != stage.id:
            raise UserError(
                f"stages.{stage.name}.dataset",
                stage.config.dataset,
                f"the images that {begun['id']} was begun with (fingerprint "
                f"{begun['dataset']['fingerprint']}, now {stage.fingerprint})",
                f"Restore them, or give it up: delete {path.parent}.",
            )


def _check_export(asked: plan.Plan, root: Path) -> None:
    """Refuses to overwrite, in the end, what a stage starts from: it would begin anew each time."""
    for stage in asked.stages:
        if asked.config.export and _lies_in(stage.config.init, root, "export"):
            expected = "weights that this run does not overwrite, but it exports to that folder"
            fix = "Choose another --workdir, or copy the folder."
            raise UserError(f"stages.{stage.name}.init", stage.config.init, expected, fix)


def _lies_in(path: str, root: Path, name: str) -> bool:
    """Whether a path is a folder of a workdir, or lies in it."""
    if remote.is_address(path):
        workdir, inside, _ = f"{path}/".rpartition(f"/{name}/")
        return bool(inside) and mirror.home_of(workdir) == root
    here, folder = Path(path).expanduser().resolve(), (root / name).resolve()
    return path != "random" and folder in (here, *here.parents)


def check_present_files(asked: plan.Plan) -> None:
    """Checks the files that stages start from, where they are there; needs no data and no device.

    Raises:
      UserError: a file is of another network, lacks something, or is no weights.
    """
    for stage in asked.stages:
        if stage.start != plan.UNKNOWN:
            _check_file(stage, asked.config.template)


def _check_file(stage: plan.Stage, template: str) -> None:
    """Checks names and shapes of the file that a stage starts from, if it does."""
    if stage.parent is not None or stage.config.init == "random":
        return
    config, field = stage.config, f"stages.{stage.name}.init"
    given, setting = load.load(config.init, field), _setting(stage, template)
    wanted = dataclasses.asdict(config.model)
    missing = (*config.init_missing, *given.facts.get("missing", ()))
    check_weights.weights(given, wanted, missing, field, given.source, setting)


def _setting(stage: plan.Stage, template: str) -> check_weights.Setting:
    """How a message about a stage names what to set."""

    def setting(name: str, value: object) -> str:
        if name == "channels":
            return f"set --config.input.channels={value}"
        if name != "missing":
            return f"--config.model.{name}={value}"
        if template == "stages":
            return f"--config.stages.{stage.name}.init_missing={value}"
        file = shlex.quote(stage.config.init)
        return f"python -m hpt_jax.weights import {file} DST --missing {value}; then start from DST"

    return setting


def _check_parent(stage: plan.Stage, template: str, library: Library, devices: Devices) -> None:
    """Checks names and shapes of what a stage will take from the one before it."""
    if stage.parent is None:
        return
    wanted, given = (
        flatten(abstract_backbone(make_model(one.config.model, devices), _channels(one, library)))
        for one in (stage, stage.parent)
    )
    field, source = f"stages.{stage.name}", f"stage {stage.parent.name}"
    setting = _setting(stage, template)
    check_weights.tensors(wanted, given, stage.config.init_missing, field, source, setting)


def _channels(stage: plan.Stage, library: Library) -> int:
    """Channels of the images that a stage's backbone takes."""
    data = library.of_stage(stage)
    if data is not None:
        return data.store.channels
    if stage.parent:
        return _channels(stage.parent, library)
    wanted = stage.config.input.channels
    if stage.config.init != "random":
        return wanted or (load.inspect(stage.config.init) or {}).get("channels", 3)
    return wanted or 3


def _warnings(stage: plan.Stage, library: Library) -> list[str]:
    data, config, lines = library.of_stage(stage), stage.config, []
    if data is None:
        if stage.parent is None and config.init == "random":
            lines.append(f"{stage.name} reads no data: it takes ImageNet's pixel statistics")
        return lines
    if not stage.trains:
        return lines
    images, queue = len(data.rows), config.moco.queue_size
    if queue > images and not config.moco.mask_own_keys:
        lines.append(
            f"{stage.name}: moco.queue_size = {queue} exceeds its {images} images, so that an "
            "image meets its own old keys as negatives (the paper does so too; "
            "moco.mask_own_keys leaves them out)"
        )
    if config.model.bn_groups == 1:
        lines.append(
            f"{stage.name}: model.bn_groups = 1 lets keys and queries share batch statistics, "
            "which MoCo's shuffling exists to prevent"
        )
    batch, groups = config.batch_size, config.model.bn_groups
    if batch > REFERENCE_BATCH and batch // groups > REFERENCE_GROUP:
        rate = Optimizer().learning_rate * batch / REFERENCE_BATCH
        lines.append(
            f"{stage.name}: batch norm over groups of {batch // groups}, where the paper has "
            f"{REFERENCE_GROUP} (its recipe for a batch of {batch}: "
            f"--config.model.bn_groups={batch // REFERENCE_GROUP} "
            f"--config.optimizer.learning_rate={rate:g})"
        )
    if config.subset == 1.0 and (note := statistics_note(config.dataset, data.pixel_mean)):
        lines.append(note)
    channels = data.store.channels
    _, skipped = for_channels(config.augment, channels)
    if skipped:
        lines.append(
            f"{config.dataset} has {channels} channel{'s' if channels > 1 else ''}: "
            f"{', '.join(skipped)} mean nothing there and are skipped"
        )
    return lines
