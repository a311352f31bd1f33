"""What the benchmarks of small trainings share: sets of images, a small network, its base."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from hpt_jax import run
from hpt_jax.config import default_config
from hpt_jax.report.tables import ResultRow
from hpt_jax.telemetry.display import Display
from hpt_jax.workdir import StageFolder, stage_folder

SETS = {
    "aerial": "folder:rsscn7_64",
    "large aerial": "folder:aid_64",
    "sketch": "folder:pacs_sketch_64",
    "cartoon": "folder:pacs_cartoon_64",
    "x-ray": "folder:cxr_adult_64",
    "children's x-ray": "folder:pneumoniamnist_28",
    "photographs": "folder:tinyimagenet_64_20k",
}
RATES = {"random": 0.06, "base": 0.03}
STEPS = 200


def make_config(dataset: str, start: str, data_dir: str, out: Path) -> ConfigDict:
    """A training at 32 px from "random" weights or from the "base", which is made if need be."""
    config = default_config()
    config.name = "small"
    config.data_dir = data_dir
    config.model.update(arch="resnet10", width=16, stem="small", stem_stride=2)
    config.update(batch_size=128, image_size=32, log_every_steps=10)
    config.moco.update(queue_size=1024, momentum=0.99)
    config.input.channels = 3
    config.optimizer.learning_rate = RATES[start]
    config.stages.target = dict(dataset=dataset, steps=STEPS)
    config.arms.T = ("target",)
    if start == "base":
        config.stages.base = dict(init=str(base(data_dir, out)), trainable="nothing")
        config.arms.T = ("base", "target")
    return config


def make_study(place: str, seeds: Sequence[int], data_dir: str, out: Path) -> ConfigDict:
    """A study of a set that is judged by it and has a stage 'base', and no other stage or arm."""
    config = make_config(SETS[place], "random", data_dir, out)
    config.name = place.replace(" ", "_").replace("'", "")
    config.seeds = tuple(seeds)
    config.target = SETS[place]
    config.stages.base = dict(init=str(base(data_dir, out)), trainable="nothing")
    del config.stages["target"], config.arms["T"]
    return config


def base(data_dir: str, out: Path) -> Path:
    """The folder of a base of 1,000 steps on photographs."""
    config = make_config(SETS["photographs"], "random", data_dir, out)
    config.stages.target.steps = 1000
    config.moco.queue_size = 4096
    return trained(config, out / "base").path


def trained(config: ConfigDict, workdir: Path) -> StageFolder:
    """Runs a config of one arm and one seed; the folder of its last stage."""
    run.run(config, workdir, display=Display(quiet=True))
    (one,) = run.make_plan(config).runs
    return stage_folder(workdir, one.stage.id)


def results(config: ConfigDict, workdir: Path) -> list[ResultRow]:
    """Runs a study; its own rows."""
    rows = run.run(config, workdir, display=Display(quiet=True))
    return [row for row in rows if row.study == config.name]


def arguments(doc: str | None, sets: Sequence[str]) -> argparse.Namespace:
    """The command's `data_dir`, `out` and `sets`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("sets", nargs="*", default=sets, choices=[*SETS, sets])
    return parser.parse_args()
