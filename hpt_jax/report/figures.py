"""Figures, drawn from the rows of `results.csv` and from curves alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_jax.augment.policies import ROBUSTNESS
from hpt_jax.errors import printable
from hpt_jax.report.tables import (
    ResultRow,
    Summary,
    drops,
    longest,
    one_study,
    order_arms,
    seeds_in_words,
    summarize,
)
from hpt_jax.workdir import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which white paper swallows.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (10, 3)), (0, (4, 2, 1, 2, 1, 2)))
_METRICS = {"top1": "top-1 accuracy", "macro_auroc": "macro AUROC"}
# Of text, of captions and of the ground: colours that nothing else has, so that a page can put its
# own in their places. The first blue is too dark for a dark one.
INK, MUTED, PAPER = "#1b1b1d", "#5c5c60", "#fffffe"
PAGE_COLORS = {INK: "ink", MUTED: "muted", PAPER: "paper", _COLORS[0].lower(): "blue"}
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": MUTED,
    "text.parse_math": False,  # names are free text
    "axes.grid": True,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "legend.fontsize": 9.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.hashsalt": "hpt_jax",
}


@dataclasses.dataclass(frozen=True)
class Axis:
    """What accuracy is drawn against, on a logarithmic axis.

    Attributes:
      label: of the axis.
      place: (arm, pretraining steps) -> (name of its line, where on the axis); None where it has
        no place there and becomes a dashed line.
      tick: a value of the axis, in words.
    """

    label: str
    place: Callable[[str, int], tuple[str, float | None]]
    tick: Callable[[float], str]


def _by_variant(pattern: str) -> Callable[[str, int], tuple[str, float | None]]:
    def place(arm: str, steps: int) -> tuple[str, float | None]:
        line, _, variant = arm.partition("@")
        found = re.fullmatch(pattern, variant)
        return (line, float(found[1])) if found else (arm, None)

    return place


def short(step: float) -> str:
    """A number of steps for where there is little room."""
    return f"{step / 1000:g}k" if step >= 1000 and step % 100 == 0 else f"{step:g}"


STEPS = Axis(
    "pretraining steps on the target (logarithmic)",
    lambda arm, steps: (arm, float(steps) if steps else None),
    short,
)
DATA = Axis(
    "share of the target's images (logarithmic)",
    _by_variant(r"(\d+(?:\.\d+)?)%"),
    lambda share: f"{share:g} %",
)
BASE = Axis("pretraining steps of the base (logarithmic)", _by_variant(r"base_(\d+)"), short)


def _styled(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def styled(*args: Any, **kwargs: Any) -> Any:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return fn(*args, **kwargs)

    return styled


@_styled
def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Saves a figure as `path`, a PNG, and as an SVG beside it; folders above are made."""
    # Without a date the same results give the same file.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with whole(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    with whole(Path(path).with_suffix(".svg")) as temporary:
        figure.savefig(temporary, format="svg", metadata=nothing)


@_styled
def draw(
    rows: Iterable[ResultRow],
    arm_order: Sequence[str],
    evaluation: str = "linear",
    axis: Axis = STEPS,
) -> Figure:
    """Test metric against pretraining steps on the target, one line per arm.

    Points are means over seeds with bars of one sample standard deviation and, to their right,
    every seed as a faint dot. What took no step on the target has no place on a logarithmic
    axis: it is a dashed horizontal line in a band of one standard deviation. An arm's colour and
    marker depend on its place in `arm_order` alone, so that they are the same in every figure of
    a study; HPT-BN is a star.

    Args:
      rows: results of one study on one dataset; other evaluations and splits are passed over.
      arm_order: arms in the order of the legend; others follow in alphabetical order. An arm
        with a variant (`B+T@no_color`) is an arm of its own.
      evaluation: which evaluation to show.
      axis: what to draw against; along another axis than `STEPS` each arm has its largest number
        of steps, and variants of an arm are one line.

    Raises:
      ValueError: the rows hold no test result of `evaluation`, or several studies, datasets or
        metrics.
    """
    rows, title, metric = _of_evaluation(rows, evaluation)
    rows = rows if axis is STEPS else longest(rows)
    figure = _figure(6.4, 4.6)
    axes = figure.add_subplot()
    arms = order_arms({row.arm for row in rows} | set(arm_order), arm_order)
    # An arm that only ever is a dashed line has the name that it has without steps.
    lines = list(dict.fromkeys(axis.place(arm, 1)[0] for arm in arms))
    for number, line in enumerate(lines):
        mine = [row for row in rows if axis.place(row.arm, row.pretrain_steps)[0] == line]
        placed = [(x, row) for row in mine if (x := _x(axis, row)) is not None]
        points = [(x, one) for one in summarize(mine) if (x := _x(axis, one)) is not None]
        _draw_reference(axes, [one for one in summarize(mine) if _x(axis, one) is None], number)
        _draw_line(axes, line, sorted(points, key=lambda p: p[0]), placed, number)
    ticks = sorted({x for row in rows if (x := _x(axis, row)) is not None})
    axes.set_xlabel(axis.label)
    _draw_ticks(axes, ticks, axis.tick)
    axes.set_ylabel(f"test {_METRICS.get(metric, metric)} (%)")
    axes.set_title(title)
    _add_legend(figure, rows)
    return figure


@_styled
def draw_bars(
    rows: Iterable[ResultRow], arm_order: Sequence[str], evaluations: Sequence[str]
) -> Figure:
    """Test metric of each arm at its largest number of steps, one panel per evaluation.

    Bars are means over seeds with one sample standard deviation; every seed is a dot. They do not
    begin at zero, where all would look alike, and the axis says so.

    Args:
      rows: as for `draw`.
      arm_order: arms from top to bottom; others follow in alphabetical order.
      evaluations: from left to right.

    Raises:
      ValueError: as `draw`.
    """
    rows = list(rows)
    found = [_of_evaluation(longest(rows), evaluation) for evaluation in evaluations]
    arms = order_arms({row.arm for row in rows}, arm_order)
    across = min(len(found), 3)
    down = math.ceil(len(found) / across)
    figure = _figure(8 if across > 1 else 6.5, down * (1.2 + 0.3 * len(arms)))
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flat
    for axes, (mine, title, metric) in zip(panels, found, strict=False):
        low = _floor([100 * row.value for row in mine])
        for one in summarize(mine):
            place = arms.index(one.arm)
            dots = [100 * row.value for row in mine if row.arm == one.arm]
            _draw_bar(axes, one, dots, place, low)
        axes.set_xlim(left=low)
        measured = f"test {_METRICS.get(metric, metric)}"
        axes.set_xlabel(f"{measured} (%), from {low:g}" if across == 1 else f"%, from {low:g}")
        axes.set_title(title if len(found) == 1 else mine[0].evaluation)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
    for axes in panels:
        axes.remove()
    spread = _spread_in_words([row for mine, *_ in found for row in mine], "whiskers")
    figure.supxlabel(f"{measured}; {spread}", fontsize=8.5, color=MUTED)
    return figure


@_styled
def draw_drops(
    rows: Iterable[ResultRow], arm_order: Sequence[str], evaluation: str = "linear"
) -> Figure:
    """What each augmentation policy changes, in points, against the full one (`@moco_v2`).

    Differences are taken seed by seed between arms that differ in what follows `@` alone, at their
    largest numbers of steps; points are their means, bars one sample standard deviation, dots
    single seeds.

    Args:
      rows: as for `draw`.
      arm_order: as for `draw`.
      evaluation: which evaluation to show.

    Raises:
      ValueError: as `draw`.
    """
    rows, title, metric = _of_evaluation(rows, evaluation)
    changes = drops(longest(rows), ROBUSTNESS[0])
    if not changes:
        raise ValueError(f"no arm has a variant {ROBUSTNESS[0]!r} to compare with")
    policies = order_arms({row.arm.partition("@")[2] for row in changes}, ROBUSTNESS)
    inits = list(dict.fromkeys(arm.partition("@")[0] for arm in arm_order if "@" in arm))
    inits = order_arms({row.arm.partition("@")[0] for row in changes}, inits)
    figure = _figure(6.4, 4.6)
    axes = figure.add_subplot()
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1)
    for number, init in enumerate(inits):
        aside = 0.12 * (number - (len(inits) - 1) / 2)
        x_of = {f"{init}@{policy}": place + aside for place, policy in enumerate(policies)}
        points = [(x_of[one.arm], one) for one in summarize(changes) if one.arm in x_of]
        dots = [(x_of[row.arm], row) for row in changes if row.arm in x_of]
        _draw_line(axes, init, sorted(points, key=lambda p: p[0]), dots, number)
    axes.set_xticks(range(len(policies)), policies)
    axes.set_xlabel("augmentation policy")
    axes.set_ylabel(f"change of test {_METRICS.get(metric, metric)} (points)")
    axes.set_title(title)
    _add_legend(figure, changes)
    return figure


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of `draw_curves`: the panel it is in, its name, and its points."""

    panel: str
    line: str
    xs: Sequence[float]
    ys: Sequence[float]


@_styled
def draw_curves(curves: Sequence[Curve], x_label: str) -> Figure:
    """Small multiples over one horizontal axis; curves of one name share a colour.

    Args:
      curves: at least one; panels and names in their order.
      x_label: of the shared axis, logarithmic where the ends of curves lie far apart.
    """
    names = list(dict.fromkeys(curve.panel for curve in curves))
    lines = list(dict.fromkeys(curve.line for curve in curves))
    across = min(len(names), 3)
    down = math.ceil(len(names) / across)
    figure = _figure(8, 0.7 + 0.16 * math.ceil(len(lines) / 2) + (2.1 if across > 1 else 3) * down)
    grid = list(figure.subplots(down, across, squeeze=False, sharex=True).flat)
    for axes, name in zip(grid, names, strict=False):
        for curve in curves:
            if curve.panel == name:
                place = lines.index(curve.line)
                axes.plot(
                    curve.xs,
                    curve.ys,
                    label=curve.line,
                    color=_COLORS[place % len(_COLORS)],
                    linestyle="-" if place < len(_COLORS) else _DASHES[place % len(_DASHES)],
                    linewidth=1.2,
                    alpha=0.8,
                )
        axes.set_title(name, fontsize=10)
    for axes in grid[len(names) :]:
        axes.remove()
    for axes in grid[max(0, len(names) - across) : len(names)]:
        axes.tick_params(labelbottom=True)  # also where the panel below is not there
    ends = [max(curve.xs) for curve in curves]
    if max(ends) > 20 * min(ends):
        grid[0].set_xscale("log")
    handles = {h.get_label(): h for axes in grid for h in axes.lines}
    figure.legend(
        [handles[line] for line in lines], lines, loc="outside upper left", frameon=False, ncols=2
    )
    figure.supxlabel(x_label, fontsize=10)
    return figure


@dataclasses.dataclass(frozen=True)
class Panel:
    """One of the small drawings of `draw_health`.

    Attributes:
      title: above it.
      steps: of the points, ascending.
      lines: name -> values; several are told apart by a legend.
      chance: the loss of guessing, a dashed line; None: none.
      until: the queue was filling up to this step; 0: it was not.
      before: whether the first value is what the stage started from, to compare with.
      log: whether the axis is logarithmic.
    """

    title: str
    steps: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    chance: float | None = None
    until: float = 0.0
    before: bool = False
    log: bool = False


@_styled
def draw_health(panels: Sequence[Panel]) -> Figure:
    """How one stage is doing, step by step: panels three a row, the first as wide as is left."""
    others = len(panels) - 1
    wide = -others % 3 or 3
    down = (others + wide) // 3
    figure = _figure(8, 0.5 + 1.9 * down)
    grid = figure.add_gridspec(down, 3)
    places: list[tuple[int, Any]] = [
        (0, slice(0, wide)),
        *(divmod(wide + one, 3) for one in range(others)),
    ]
    for panel, (row, column) in zip(panels, places, strict=True):
        axes = figure.add_subplot(grid[row, column])
        _draw_panel(axes, panel)
        axes.set_xlim(0, max(1.0, *(panel.steps[-1] for panel in panels)))
    figure.supxlabel("step", fontsize=10)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    small: Any = {"fontsize": 8, "color": MUTED}
    marker = "o" if panel.before or len(panel.steps) == 1 else ""
    for place, (name, values) in enumerate(panel.lines.items()):
        color = _COLORS[place % len(_COLORS)]
        axes.plot(panel.steps, values, label=name, color=color, marker=marker, markersize=3)
    if panel.before:
        first = next(iter(panel.lines.values()))[0]
        axes.axhline(first, color=MUTED, linestyle=(0, (2, 2)), linewidth=1, zorder=1)
        right = axes.get_yaxis_transform()
        axes.text(0.98, first, "before", transform=right, ha="right", va="bottom", **small)
    if panel.until:
        axes.axvspan(0, panel.until, color=MUTED, alpha=0.12, linewidth=0, zorder=0)
        axes.text(0, 0.02, " queue filling", transform=axes.get_xaxis_transform(), **small)
    if panel.chance is not None:
        axes.axhline(panel.chance, color=INK, linestyle=(0, (6, 2)), linewidth=1, zorder=1)
        right = axes.get_yaxis_transform()
        told = "ln(K+1): no better than chance"
        axes.text(0.98, panel.chance, told, transform=right, ha="right", va="bottom", **small)
        axes.margins(y=0.12)
    values = [value for line in panel.lines.values() for value in line if math.isfinite(value)]
    positive = [value for value in values if value > 0]
    # Within a factor of three a logarithmic axis has a tick or none.
    if panel.log and positive and max(positive) > 3 * min(positive):
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8, handlelength=1.5)
    axes.set_title(panel.title, fontsize=10)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _of_evaluation(rows: Iterable[ResultRow], evaluation: str) -> tuple[list[ResultRow], str, str]:
    """The test rows of one evaluation, a title, and their one metric."""
    rows = list(rows)
    study, dataset = one_study(rows)
    rows = [row for row in rows if row.evaluation == evaluation and row.split == "test"]
    metrics = sorted({row.metric for row in rows})
    if len(metrics) != 1:
        raise ValueError(f"need test results of {evaluation!r} with one metric, got {metrics}")
    return rows, printable(f"{study}: {evaluation} on {dataset}"), metrics[0]


def _x(axis: Axis, one: ResultRow | Summary) -> float | None:
    return axis.place(one.arm, one.pretrain_steps)[1]


def _spread_in_words(rows: list[ResultRow], marks: str) -> str:
    """What a figure's marks and dots are."""
    counts = [summary.seeds for summary in summarize(rows)]
    text = seeds_in_words(min(counts), max(counts))
    return text if max(counts) == 1 else f"{text} ({marks}); dots: single seeds"


def _add_legend(figure: Figure, rows: list[ResultRow]) -> None:
    """Below the axes, where a narrow screen leaves it readable; long names get fewer columns."""
    _, names = figure.axes[0].get_legend_handles_labels()
    columns = max(1, min(3, len(names), 60 // (8 + max(map(len, names)))))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(names) / columns))
    legend = figure.legend(
        loc="outside lower center",
        frameon=False,
        handlelength=3,
        ncols=columns,
        title=_spread_in_words(rows, "bars, bands"),
        title_fontsize=8.5,
    )
    legend.get_title().set_color(MUTED)


def _floor(percents: list[float]) -> float:
    """Where bars begin: below all of them by a fifth of their range, a multiple of five."""
    low, high = min(percents), max(percents)
    return max(0.0, 5.0 * math.floor((low - max(high - low, 2.5) / 5) / 5))


def _draw_bar(axes: Axes, one: Summary, dots: list[float], place: int, low: float) -> None:
    color, mean = _COLORS[place % len(_COLORS)], 100 * one.mean
    axes.barh(place, mean - low, left=low, height=0.62, color=color, alpha=0.75, label=one.arm)
    text = f"{mean:.1f}"
    if one.std is not None:
        text += f" ± {100 * one.std:.1f}"
        axes.errorbar(mean, place, xerr=100 * one.std, color=INK, elinewidth=1, capsize=3)
        axes.scatter(dots, [place + 0.2] * len(dots), s=10, color=INK, alpha=0.6, linewidths=0)
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)


def _draw_reference(axes: Axes, points: list[Summary], place: int) -> None:
    color = _COLORS[place % len(_COLORS)]
    for point in points:
        axes.axhline(
            100 * point.mean,
            label=f"{point.arm} ({point.pretrain_steps:,} steps)",
            color=color,
            linestyle=_DASHES[place % len(_DASHES)],
            linewidth=1.5,
            zorder=1.5,
        )
        if point.std is not None:
            low, high = 100 * (point.mean - point.std), 100 * (point.mean + point.std)
            axes.axhspan(low, high, color=color, alpha=0.1, linewidth=0, zorder=1)


def _draw_line(
    axes: Axes,
    line: str,
    points: list[tuple[float, Summary]],
    rows: list[tuple[float, ResultRow]],
    place: int,
) -> None:
    from matplotlib.transforms import offset_copy

    if not points:
        return
    color = _COLORS[place % len(_COLORS)]
    star = line.startswith("HPT-BN")
    stds = [math.nan if point.std is None else 100 * point.std for _, point in points]
    axes.errorbar(
        [x for x, _ in points],
        [100 * point.mean for _, point in points],
        yerr=None if all(math.isnan(std) for std in stds) else stds,
        label=line,
        color=color,
        marker="*" if star else _MARKERS[place % len(_MARKERS)],
        # Open where the colours begin again, which two lines of a large study may come to share.
        markerfacecolor=PAPER if place >= len(_COLORS) else color,
        markersize=11 if star else 6,
        linewidth=1.8,
        elinewidth=1,
        capsize=3,
        zorder=3,
    )
    if len(points) == len(rows):
        return  # one seed each: dots would repeat the points
    axes.scatter(
        [x for x, _ in rows],
        [100 * row.value for _, row in rows],
        # Set aside, because the bars hide what lies under them.
        transform=offset_copy(axes.transData, axes.get_figure(root=True), x=6, units="points"),
        s=12,
        color=color,
        alpha=0.45,
        linewidths=0,
        zorder=2,
    )


def _draw_ticks(axes: Axes, values: list[float], tick: Callable[[float], str]) -> None:
    """A logarithmic axis with ticks at the values that were run, and no others."""
    from matplotlib.ticker import FixedLocator, NullLocator

    if not values:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    margin = 1.5 if len(values) == 1 else (values[-1] / values[0]) ** 0.05
    axes.set_xlim(values[0] / margin, values[-1] * margin)
    ticks = _apart(values)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([tick(value) for value in ticks])


def _apart(values: list[float]) -> list[float]:
    """Those of the sorted values, from the largest down, whose labels leave each other room."""
    room = math.log(values[-1] / values[0]) / 14
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if math.log(kept[-1] / value) >= room:
            kept.append(value)
    return kept[::-1]
