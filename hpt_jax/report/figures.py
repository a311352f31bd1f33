"""Figures, drawn from the rows of `results.csv` alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpt_jax.report.tables import (
    ResultRow,
    Summary,
    one_study,
    order_arms,
    seeds_in_words,
    summarize,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which white paper swallows.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (10, 3)), (0, (4, 2, 1, 2, 1, 2)))
_METRICS = {"top1": "top-1 accuracy", "macro_auroc": "macro AUROC"}


def accuracy_against_steps(
    rows: Iterable[ResultRow],
    path: str | os.PathLike[str],
    arm_order: Sequence[str],
    evaluation: str = "linear",
) -> None:
    """Save `draw(...)` as a PNG; folders above `path` are made.

    Args:
      rows: results of one study on one dataset.
      path: the PNG file.
      arm_order: arms in the order of the legend, as for `draw`.
      evaluation: which evaluation to show.
    """
    figure = draw(rows, arm_order, evaluation)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=150)


def draw(
    rows: Iterable[ResultRow],
    arm_order: Sequence[str],
    evaluation: str = "linear",
) -> Figure:
    """Test metric against pretraining steps on the target, one line per arm.

    Points are means over seeds with bars of one sample standard deviation and, to their right,
    every seed as a faint dot. What took no step on the target has no place on a logarithmic
    axis: it is a dashed horizontal line in a band of one standard deviation. An arm's colour and
    marker depend on its place in `arm_order` alone, so that they are the same in every figure of
    a study.

    Args:
      rows: results of one study on one dataset; other evaluations and splits are passed over.
      arm_order: arms in the order of the legend; others follow in alphabetical order. An arm
        with a variant (`B+T@no_color`) is an arm of its own.
      evaluation: which evaluation to show.

    Raises:
      ValueError: the rows hold no test result of `evaluation`, or several studies, datasets or
        metrics.
    """
    from matplotlib.figure import Figure

    rows = list(rows)
    study, dataset = one_study(rows)
    rows = [row for row in rows if row.evaluation == evaluation and row.split == "test"]
    metrics = sorted({row.metric for row in rows})
    if len(metrics) != 1:
        raise ValueError(f"need test results of {evaluation!r} with one metric, got {metrics}")
    summaries = summarize(rows)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    arms = order_arms({row.arm for row in rows} | set(arm_order), arm_order)
    for place, arm in enumerate(arms):
        points = [summary for summary in summaries if summary.arm == arm]
        _draw_reference(axes, [point for point in points if not point.pretrain_steps], place)
        moving = [row for row in rows if row.arm == arm and row.pretrain_steps]
        _draw_line(axes, [point for point in points if point.pretrain_steps], moving, place)
    _draw_steps(axes, sorted({row.pretrain_steps for row in rows if row.pretrain_steps}))
    axes.set_ylabel(f"test {_METRICS.get(metrics[0], metrics[0])} (%)")
    axes.set_title(f"{study}: {evaluation} on {dataset}", parse_math=False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    counts = [summary.seeds for summary in summaries]
    figure.legend(loc="outside right upper", frameon=False, handlelength=3)
    figure.supxlabel(_caption(min(counts), max(counts)), fontsize=8, color="0.35")
    return figure


def _draw_reference(axes: Axes, points: list[Summary], place: int) -> None:
    color = _COLORS[place % len(_COLORS)]
    for point in points:
        axes.axhline(
            100 * point.mean,
            label=f"{point.arm} (0 steps)",
            color=color,
            linestyle=_DASHES[place % len(_DASHES)],
            linewidth=1.5,
            zorder=1.5,
        )
        if point.std is not None:
            low, high = 100 * (point.mean - point.std), 100 * (point.mean + point.std)
            axes.axhspan(low, high, color=color, alpha=0.1, linewidth=0, zorder=1)


def _draw_line(axes: Axes, points: list[Summary], rows: list[ResultRow], place: int) -> None:
    from matplotlib.transforms import offset_copy

    if not points:
        return
    color = _COLORS[place % len(_COLORS)]
    axes.errorbar(
        [point.pretrain_steps for point in points],
        [100 * point.mean for point in points],
        yerr=[math.nan if point.std is None else 100 * point.std for point in points],
        label=points[0].arm,
        color=color,
        marker=_MARKERS[place % len(_MARKERS)],
        # Open where the colours begin again, which two lines of a large study may come to share.
        markerfacecolor="white" if place >= len(_COLORS) else color,
        markersize=6,
        linewidth=1.8,
        elinewidth=1,
        capsize=3,
        zorder=3,
    )
    axes.scatter(
        [row.pretrain_steps for row in rows],
        [100 * row.value for row in rows],
        # Set aside, because the bars hide what lies under them.
        transform=offset_copy(axes.transData, axes.get_figure(root=True), x=6, units="points"),
        s=12,
        color=color,
        alpha=0.45,
        linewidths=0,
        zorder=2,
    )


def _draw_steps(axes: Axes, steps: list[int]) -> None:
    """A logarithmic axis with ticks at the steps that were run, and no others."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xlabel("pretraining steps on the target (logarithmic)")
    if not steps:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    margin = 1.5 if len(steps) == 1 else (steps[-1] / steps[0]) ** 0.05
    axes.set_xlim(steps[0] / margin, steps[-1] * margin)
    ticks = _apart(steps)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([_short(step) for step in ticks])


def _apart(steps: list[int]) -> list[int]:
    """Those of the sorted steps, from the largest down, whose labels leave each other room."""
    room = math.log(steps[-1] / steps[0]) / 14
    kept = [steps[-1]]
    for step in reversed(steps[:-1]):
        if math.log(kept[-1] / step) >= room:
            kept.append(step)
    return kept[::-1]


def _short(step: int) -> str:
    return f"{step // 1000}k" if step >= 1000 and step % 1000 == 0 else str(step)


def _caption(fewest: int, most: int) -> str:
    if most == 1:
        return "one seed"
    return f"{seeds_in_words(fewest, most)} (bars, bands); dots: single seeds"
