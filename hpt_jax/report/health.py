"""How a stage is doing, from the small files that it keeps while it trains; no labels needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpt_jax.errors import UserError
from hpt_jax.report import figures
from hpt_jax.shapes import HEALTH
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import read_json, stage_folder

Row = Mapping[str, float]

# Column of `measures.csv` -> its name, how it is written, and what up and down mean.
MEASURES = {
    "retrieval": (
        "finds itself again (retrieval)",
        "{:.1%}",
        "How near to the top of the list a view finds its own image among all: 0 by chance, 100 if "
        "it always comes first. Up is better.",
    ),
    "rankme": (
        "directions in use (RankMe)",
        "{:.1f}",
        "How many directions the features spread over. Up is richer; near 1 they have collapsed.",
    ),
    "alignment": (
        "distance of two views (alignment)",
        "{:.3f}",
        "How far apart two views of one image lie, squared, from 0 to 4. Down is better, as long "
        "as different images stay apart.",
    ),
    "uniformity": (
        "crowding of images (uniformity)",
        "{:.2f}",
        "How closely different images lie together. Down, more negative, is better spread; 0 is "
        "all in one point.",
    ),
    "knn": (
        "nearest neighbours' labels (kNN)",
        "{:.1%}",
        "How many images have the class that their nearest neighbours have. Up is better.",
    ),
}  # fmt: skip

# What the curves are that have no place in the table.
CURVES = {
    "loss": (
        "How hard it is to pick an image's other view out of all that is in the queue. Below the "
        "dashed line is better than guessing. While the queue fills (shaded) it still holds random "
        "vectors, which are easy to tell apart: the loss rises as images take their place."
    ),
    "similarity": (
        "Cosine of two views of one image (positive) and of different images (negative). The gap "
        "between them is what is learnt."
    ),
    "spread of embeddings": (
        "1: embeddings point in all directions. 0: they are all the same, which is collapse."
    ),
    "gradient norm": (
        "How steep the loss is at each step, on a logarithmic axis. Jumps by a factor of ten and "
        "more are trouble."
    ),
}


def of_stage(
    stage_id: str, lineage: Mapping[str, Any], root: Path, damaged: Callable[[Path], None]
) -> dict[str, Any] | None:
    """What the files of a stage that trains say; None where it has none yet.

    Args:
      stage_id: of the stage.
      lineage: of `lineage.json`.
      root: the workdir.
      damaged: told of files that are there and not whole; they count as absent.

    Returns:
      'verdict', as in `health.json` or empty; 'compared', see `compared`; 'metrics' and 'measures',
      the rows of the files; 'chance', the loss of guessing, None where it is not known.
    """
    folder = stage_folder(root, stage_id)
    metrics, measures = (_rows(path, damaged) for path in (folder.metrics, folder.measures))
    verdict = read_json(folder.health, HEALTH)
    if verdict is None and folder.health.exists():
        damaged(folder.health)
    if not (metrics or measures or verdict):
        return None
    queue = lineage["config"].get("moco", {}).get("queue_size")
    return {
        "id": stage_id,
        "verdict": verdict or {},
        "compared": compared(measures),
        "measured": int(measures[-1]["step"]) if measures else 0,
        "metrics": metrics,
        "measures": measures,
        "chance": math.log(queue + 1) if queue else None,
    }


def compared(measures: Sequence[Row]) -> list[dict[str, str]]:
    """The rows of `measures.csv` before training and the last, side by side, in words."""
    found: list[dict[str, str]] = []
    if not measures or measures[0]["step"]:  # what was before is not there any more
        return found
    for column, (name, form, meaning) in MEASURES.items():
        if column not in measures[0]:
            continue
        before, after = (
            form.format(row[column]).replace("%", " %") if math.isfinite(row[column]) else "-"
            for row in (measures[0], measures[-1])
        )
        found.append({"name": name, "before": before, "after": after, "meaning": meaning})
    return found


def panels(
    metrics: Sequence[Row], measures: Sequence[Row], chance: float | None
) -> list[figures.Panel]:
    """What is drawn of a stage's files, loss first; what they have no column for is left out."""
    asked: list[tuple[str, tuple[str, ...], Sequence[Row], dict[str, Any]]] = [
        ("loss", ("loss",), metrics, {"chance": chance, "until": _filled_at(metrics)}),
        ("similarity", ("positive_similarity", "negative_similarity"), metrics, {}),
        ("spread of embeddings", ("embedding_std",), metrics, {}),
        ("gradient norm", ("gradient_norm",), metrics, {"log": True}),
        *((column, (column,), measures, {"before": True}) for column in MEASURES),
    ]
    found = []
    for title, columns, rows, options in asked:
        there = [column for column in columns if rows and column in rows[0]]
        if there:
            steps = [row["step"] for row in rows]
            lines = {column.partition("_")[0]: [row[column] for row in rows] for column in there}
            found.append(figures.Panel(title, steps, lines, **options))
    return found


def _filled_at(metrics: Sequence[Row]) -> float:
    """The first step at which the queue holds keys alone; the last, where it does not yet."""
    if not metrics or "queue_fill" not in metrics[0]:
        return 0.0
    return next((row["step"] for row in metrics if row["queue_fill"] >= 1), metrics[-1]["step"])


def _rows(path: Path, damaged: Callable[[Path], None]) -> list[Row]:
    try:
        return [*read_metrics(path)]
    except UserError:
        damaged(path)
        return []
