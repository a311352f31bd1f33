"""`results.csv`, its summary over seeds, and the table for the terminal.

Everything here is computed from `results.csv` alone, so that a report can be made again on any
machine, without a checkpoint or a dataset.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """One line of `results.csv`; the fields are its columns, in its order.

    Attributes:
      study: the config's `name`.
      arm: the arm's name, with its variant after `@` where it has one.
      stage_id: the stage whose backbone was evaluated.
      dataset: the target, as the config names it.
      pretrain_steps: optimiser steps on the target; 0 where it was not pretrained on.
      evaluation: `linear`, `knn`, `finetune_1000` ...
      metric: `top1` or `macro_auroc`.
      split: `val` or `test`.
      value: a fraction in [0, 1].
      seed: the pretraining seed.
      selected_by: `val`, or empty where nothing was chosen.
      config_id: the identity of the resolved config.
    """

    study: str
    arm: str
    stage_id: str
    dataset: str
    pretrain_steps: int
    evaluation: str
    metric: str
    split: str
    value: float
    seed: int
    selected_by: str
    config_id: str


_REBUILD = "Remove the file: the next run rebuilds it from the finished evaluations."

COLUMNS = tuple(field.name for field in dataclasses.fields(ResultRow))


@dataclasses.dataclass(frozen=True)
class Summary:
    """One metric of one arm at one pretraining length, over seeds.

    Attributes:
      seeds: number of pretraining seeds.
      mean: mean over seeds, a fraction in [0, 1].
      std: sample standard deviation over seeds (divisor n - 1); None for one seed.
    """

    study: str
    dataset: str
    arm: str
    pretrain_steps: int
    evaluation: str
    metric: str
    seeds: int
    mean: float
    std: float | None


def read_results(path: str | os.PathLike[str]) -> list[ResultRow]:
    """Rows of a `results.csv`, in the file's order.

    Raises:
      UserError: the columns are not exactly `COLUMNS`, or a line does not fit them.
    """
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != COLUMNS:
            raise UserError(
                str(path),
                ",".join(header),
                f"the columns {','.join(COLUMNS)}",
                _REBUILD,
            )
        return [_parse(cells, f"{path}, line {reader.line_num}") for cells in reader]


def write_results(path: str | os.PathLike[str], rows: Iterable[ResultRow]) -> None:
    """Write the whole file in a fixed order and rename it into place.

    The same rows in any order give the same bytes, and each value reads back exactly.

    Raises:
      ValueError: two rows answer the same question (equal study, arm, stage, dataset,
        evaluation, metric, split and seed).
    """
    path = Path(path)
    rows = sorted(rows, key=_order)
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        place = (row.study, row.arm, row.stage_id, row.dataset)
        question = (*place, row.evaluation, row.metric, row.split, row.seed)
        if question in seen:
            raise ValueError(f"two results for one question: {row}")
        seen.add(question)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in rows:
                cells = dataclasses.asdict(row)
                # float(): NumPy's scalars have a repr of their own.
                writer.writerow((cells | {"value": repr(float(row.value))}).values())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def summarize(rows: Iterable[ResultRow], split: str = "test") -> list[Summary]:
    """Mean and spread over pretraining seeds of every result on one split.

    Returns:
      One summary per (study, dataset, arm, pretrain_steps, evaluation, metric), sorted by these.

    Raises:
      ValueError: a seed has two values within one summary.
    """
    values: dict[tuple[str, str, str, int, str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row.split != split:
            continue
        group = (row.study, row.dataset, row.arm, row.pretrain_steps, row.evaluation, row.metric)
        if row.seed in values[group]:
            raise ValueError(f"two values for seed {row.seed} of {group}")
        values[group][row.seed] = row.value
    return [_summary(group, list(values[group].values())) for group in sorted(values)]


def interval(summary: Summary) -> tuple[float, float] | None:
    """The 95 % interval of the mean over seeds, Student's t; None for one seed.

    It may reach beyond [0, 1] where seeds are few and differ much.
    """
    return student(summary.mean, summary.std, summary.seeds)


def student(mean: float, std: float | None, count: int) -> tuple[float, float] | None:
    """The 95 % interval of a mean of `count` values, of sample standard deviation `std`."""
    if std is None:
        return None
    from scipy.special import stdtrit

    reach = float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count)
    return mean - reach, mean + reach


def spread(summary: Summary) -> str:
    """Mean and standard deviation in percent, as tables write them."""
    std = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{std}"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # no -0.0


def longest(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """The rows of each arm's largest number of pretraining steps."""
    rows = list(rows)
    most: dict[str, int] = {}
    for row in rows:
        most[row.arm] = max(row.pretrain_steps, most.get(row.arm, 0))
    return [row for row in rows if row.pretrain_steps == most[row.arm]]


def drops(rows: Iterable[ResultRow], variant: str) -> list[ResultRow]:
    """Each value less that of the same arm's `variant` (after `@`) at the same seed.

    Args:
      rows: one number of pretraining steps an arm, as from `longest`.
      variant: what is compared to; rows without a partner there are left out.

    Returns:
      Rows with differences in [-1, 1] as values.
    """
    rows = list(rows)

    def question(row: ResultRow) -> tuple[object, ...]:
        arm = row.arm.partition("@")[0]
        return row.study, row.dataset, arm, row.evaluation, row.metric, row.split, row.seed

    base = {question(row): row.value for row in rows if row.arm.partition("@")[2] == variant}
    return [
        dataclasses.replace(row, value=row.value - base[question(row)])
        for row in rows
        if "@" in row.arm and question(row) in base
    ]


def results_table(rows: Iterable[ResultRow], arm_order: Sequence[str]) -> Table:
    """The test results of one study, for the terminal.

    One row per (arm, pretraining steps), one column per evaluation, `mean ± std` in percent.
    The number of seeds stands in the caption; a cell names its own only where cells differ.

    Args:
      rows: results of one study on one dataset.
      arm_order: arms in the order wanted; others follow in alphabetical order.

    Raises:
      ValueError: the rows hold no test result, or more than one study or dataset.
    """
    rows = list(rows)
    study, dataset = one_study(rows)
    cells = {(s.arm, s.pretrain_steps, s.evaluation, s.metric): s for s in summarize(rows)}
    if not cells:
        raise ValueError(f"no test result of {study}")
    counts = sorted({cell.seeds for cell in cells.values()})
    columns = sorted({(evaluation, metric) for _, _, evaluation, metric in cells})
    if len(counts) == 1:
        caption = f"Test split, percent; {seeds_in_words(counts[0], counts[0])}"
    else:
        caption = f"Test split, percent; {seeds_in_words(counts[0], counts[-1])} (n in each cell)"
    table = Table(title=escape(f"{study} on {dataset}"), caption=caption)
    table.add_column("arm")
    table.add_column("target steps", justify="right")
    for evaluation, metric in columns:
        table.add_column(escape(f"{evaluation}\n{metric}"), justify="right")
    for arm in order_arms({arm for arm, *_ in cells}, arm_order):
        for steps in sorted({key[1] for key in cells if key[0] == arm}):
            found = [cells.get((arm, steps, *column)) for column in columns]
            table.add_row(
                escape(arm), f"{steps:,}", *(_cell(one, len(counts) > 1) for one in found)
            )
    return table


def one_study(rows: Iterable[ResultRow]) -> tuple[str, str]:
    """The (study, dataset) that all rows share.

    Raises:
      ValueError: there is no row, or they do not share one.
    """
    found = sorted({(row.study, row.dataset) for row in rows})
    if len(found) != 1:
        raise ValueError(f"need the rows of one study on one dataset, got {found}")
    return found[0]


def order_arms(arms: Iterable[str], arm_order: Sequence[str]) -> list[str]:
    """`arms` in the order of their first place in `arm_order`, then the others by name."""
    place = {arm: i for i, arm in reversed(list(enumerate(arm_order)))}
    return sorted(set(arms), key=lambda arm: (place.get(arm, len(arm_order)), arm))


def seeds_in_words(fewest: int, most: int) -> str:
    """What a mean was taken over, for captions."""
    if most == 1:
        return "one seed"
    if fewest == most:
        return f"mean ± sample std over n = {most} seeds"
    return f"mean ± sample std over n = {fewest} to {most} seeds"


def _order(row: ResultRow) -> tuple[object, ...]:
    main = (row.study, row.arm, row.pretrain_steps, row.evaluation, row.metric, row.split)
    return (*main, row.seed, row.stage_id, row.dataset, row.selected_by, row.config_id, row.value)


def _parse(cells: list[str], where: str) -> ResultRow:
    if len(cells) != len(COLUMNS):
        raise UserError(where, ",".join(cells), f"{len(COLUMNS)} cells", _REBUILD)
    text = dict(zip(COLUMNS, cells, strict=True))
    try:
        numbers: dict[str, Any] = {
            "pretrain_steps": int(text["pretrain_steps"]),
            "value": float(text["value"]),
            "seed": int(text["seed"]),
        }
    except ValueError as error:
        expected = "numbers in pretrain_steps, value and seed"
        raise UserError(where, ",".join(cells), expected, _REBUILD) from error
    if not math.isfinite(numbers["value"]):
        raise UserError(where, numbers["value"], "a finite value", _REBUILD)
    return ResultRow(**{**text, **numbers})


def _summary(group: tuple[str, str, str, int, str, str], values: list[float]) -> Summary:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(*group, seeds=len(values), mean=statistics.fmean(values), std=std)


def _cell(summary: Summary | None, show_seeds: bool) -> str:
    if summary is None:
        return "-"
    return f"{spread(summary)} ({summary.seeds})" if show_seeds else spread(summary)
