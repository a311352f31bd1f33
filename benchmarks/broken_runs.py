"""Trainings that are broken on purpose, healthy ones, and what the verdict on each is.

    python benchmarks/broken_runs.py --data_dir DATA --out DIR

Each runs 200 steps of a small ResNet-10 at 32 px. Healthy ones: each set of images below DATA, from
random weights and from a base. Broken ones, and `LATER`, which were thought of when the limits of
`hpt_jax.health` were fixed already: sketches from random weights, aerial images from the base.
It prints a table in Markdown, which docs/health.md holds, and keeps each run's curves as
`DIR/curves/NAME.json`, of which tests/health_runs/ is a copy. The same command continues.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from small_runs import RATES, SETS, base, make_config, trained

from hpt_jax import health, moco, run, training
from hpt_jax.augment import photometric
from hpt_jax.data import order
from hpt_jax.errors import UserError
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import stage_folder


@dataclasses.dataclass(frozen=True)
class Break:
    """One way to break a training.

    Attributes:
      what: in words.
      change: of the config.
      patch: (module, name, what stands in for it) or None.
      images: what the folder of images holds instead, or ''.
    """

    what: str
    change: Callable[[ConfigDict], None] = lambda config: None
    patch: tuple[Any, str, Any] | None = None
    images: str = ""


def _set(field: str, value: Any) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        *sections, name = field.split(".")
        node = config
        for section in sections:
            node = node[section]
        node[name] = value

    return change


def _multiplied(factor: float) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        config.optimizer.learning_rate *= factor

    return change


def _unshuffled(seed: int, step: int, stream: int, count: int, block: int) -> np.ndarray:
    return np.arange(count)


_enqueue = moco.enqueue


def _frozen_once_full(
    queue: Any, pointer: jax.Array, fill: jax.Array, new: Any
) -> tuple[Any, jax.Array, jax.Array]:
    written, pointer, filled = _enqueue(queue, pointer, fill, new)
    size = jax.tree.leaves(queue)[0].shape[0]
    kept = jax.tree.map(lambda old, new: jnp.where(fill >= size, old, new), queue, written)
    return kept, pointer, filled


def _never(queue: Any, pointer: jax.Array, fill: jax.Array, new: Any) -> tuple[Any, Any, Any]:
    return queue, pointer, fill


_normalize = photometric.normalize


def _of_255(image: jax.Array, mean: Any, std: Any) -> jax.Array:
    return _normalize(255 * image, mean, std)


_rate = training.learning_rate


def _uphill(*arguments: Any) -> float:
    return -_rate(*arguments)


def _one_view(config: ConfigDict) -> None:
    config.augment = dict(policy="crop", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


BREAKS = {
    "one_group": Break(
        "one batch-norm group, keys not shuffled",
        _set("model.bn_groups", 1),
        (order, "shuffle", _unshuffled),
    ),
    "temperature": Break("temperature 0.01", _set("moco.temperature", 0.01)),
    "momentum_0": Break("momentum of the key encoder 0", _set("moco.momentum", 0.0)),
    "momentum_1": Break("momentum of the key encoder 1", _set("moco.momentum", 1.0)),
    "rate": Break("learning rate times 100", _multiplied(100)),
    "constant": Break("a folder of images of one grey", images="constant"),
    "repeated": Break("one image repeated", images="repeated"),
    "stale": Break("a queue that is frozen once full", patch=(moco, "enqueue", _frozen_once_full)),
    "empty": Break("keys never enter the queue", patch=(moco, "enqueue", _never)),
    "pixels": Break("pixels not divided by 255", patch=(photometric, "normalize", _of_255)),
    "lengths": Break(
        "embeddings not normalised", patch=(moco, "normalized", lambda embeddings: embeddings)
    ),
}
LATER = {
    "unsorted": Break(
        "shuffled keys not put back", patch=(moco, "unshuffle", lambda keys, _: keys)
    ),
    "uphill": Break("the gradient's sign turned", patch=(training, "learning_rate", _uphill)),
    "one_view": Break("no augmentation at all", _one_view),
}


def write_images(folder: Path, kind: str) -> None:
    """1,200 images, all of one grey or all the same picture."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    if kind == "repeated":
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(1200):
        picture.save(folder / f"{index:04d}.png")


def cases() -> dict[str, tuple[str, str, Break]]:
    """Name -> (set, start, break) of each run."""
    found = {
        f"healthy, {place}, {start}": (place, start, Break("nothing"))
        for place in SETS
        for start in RATES
    }
    for name, broken in (BREAKS | LATER).items():
        found[f"{name}, sketch"] = ("sketch", "random", broken)
        found[f"{name}, aerial"] = ("aerial", "base", broken)
    return found


def run_case(name: str, data_dir: str, out: Path) -> None:
    """Runs one case, and keeps its curves."""
    place, start, broken = cases()[name]
    config = make_config(SETS[place], start, data_dir, out)
    broken.change(config)
    if broken.images:
        images = (out / "images" / broken.images).absolute()
        write_images(images, broken.images)
        config.stages.target.dataset = f"folder:{images}"
    workdir, ended = out / "runs" / name, ""
    with contextlib.ExitStack() as stack:
        if broken.patch:
            stack.enter_context(mock.patch.object(*broken.patch))
        try:
            trained(config, workdir)
        except UserError as error:
            ended = str(error).partition("\n")[0]
    (one,) = run.make_plan(config).runs
    folder = stage_folder(workdir, one.stage.id)
    kept = {
        "facts": dataclasses.asdict(health.facts(one.stage)),
        "metrics": _rows(folder.metrics),
        "measures": _rows(folder.measures),
        "ended": ended,
    }
    (out / "curves").mkdir(exist_ok=True)
    curves_of(name, out).write_text(json.dumps(kept) + "\n")


def curves_of(name: str, out: Path) -> Path:
    """Where the curves of a case are kept."""
    return out / "curves" / f"{name.replace(', ', '-').replace(' ', '_')}.json"


def _rows(path: Path) -> list[dict[str, float]]:
    """The rows of a file of metrics, in six digits, which are enough to judge by."""
    return [
        {column: float(f"{value:.6g}") for column, value in row.items()}
        for row in read_metrics(path)
    ]


def verdicts(kept: dict[str, Any]) -> list[health.Verdict]:
    """The verdict after each row of a case's metrics."""
    known, metrics = health.Facts(**kept["facts"]), kept["metrics"]
    return [
        health.judge(
            known,
            metrics[: place + 1],
            [one for one in kept["measures"] if one["step"] <= row["step"]],
        )
        for place, row in enumerate(metrics)
    ]


def table_row(name: str, kept: dict[str, Any]) -> str:
    """A case in Markdown: what was done, retrieval before and after, verdict, since when, why."""
    said = verdicts(kept)
    worst = max((one.level for one in said), key=health.LEVELS.index)
    first = next(one for one in said if one.level == worst)
    why = "; ".join(one.text for one in first.findings if one.level == worst)
    why = "; ".join(filter(None, [why, kept["ended"] and "ended by itself: diverged"]))
    since = first.step if worst != health.LEVELS[0] else ""
    what = cases()[name][2].what
    found = " to ".join(f"{kept['measures'][place]['retrieval']:.2f}" for place in (0, -1))
    return f"| {what} | {name.partition(', ')[2]} | {found} | {worst} | {since} | {why} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--case", help="runs this one alone, and prints nothing")
    arguments = parser.parse_args()
    if arguments.case:
        run_case(arguments.case, arguments.data_dir, arguments.out)
        return
    base(arguments.data_dir, arguments.out)
    print("| what was done | images | retrieval | verdict | since step | why |")
    print("|---|---|---|---|---|---|")
    for name in cases():
        path = curves_of(name, arguments.out)
        if not path.is_file():
            # Each in a process of its own: compiled programs know nothing of what is patched.
            subprocess.run([sys.executable, *sys.argv, "--case", name], check=True)
        print(table_row(name, json.loads(path.read_text())), flush=True)


if __name__ == "__main__":
    main()
