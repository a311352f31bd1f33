"""Draws the figures of docs/hpt.md and README.md into docs/hpt/.

    python docs/hpt/build.py

`results.png` is drawn from the CSV files of docs/reproduction/; the others are schematic.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from hpt_jax.report import tables

HERE = Path(__file__).parent
# Okabe and Ito's colours, as in the report.
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#777777"
GROUPS = (BLUE, ORANGE, GREEN, RED)
# Title, study and evaluation of each panel of `results.png`.
PANELS = (
    ("sketches\n(base: photographs)", "drawing_separability", "linear", "top-1 on test, %"),
    ("aerial scenes\n(base: photographs)", "aerial_separability", "linear", "top-1 on test, %"),
    ("chest X-rays, 50 labels\n(base: photographs in grey)", "chest_separability", "linear_50",
     "AUROC on test, %"),
)  # fmt: skip


def figures() -> dict[str, Figure]:
    """Name of a file -> its figure."""
    return {
        "chain.png": chain(),
        "moco.png": moco(),
        "shuffle.png": shuffle(),
        "results.png": results(),
    }


def results() -> Figure:
    """Accuracy against steps on the target, from scratch and from the base: three targets."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    lines = (
        ("B+T", "HPT: the base, then the target", BLUE, "o-"),
        ("T", "the target from scratch", ORANGE, "s-"),
    )
    floors = (
        ("B", "the base, no step on the target", BLUE, "--"),
        ("random", "random weights", GREY, ":"),
    )
    for ax, (title, study, evaluation, label) in zip(axes, PANELS, strict=True):
        rows = tables.read_results(HERE.parent / "reproduction" / f"{study}.csv")
        found = [one for one in tables.summarize(rows) if one.evaluation == evaluation]
        for arm, name, color, style in lines:
            points = sorted((p.pretrain_steps, p.mean, p.std) for p in found if p.arm == arm)
            steps, means, stds = zip(*points, strict=True)
            ax.errorbar(
                steps,
                [100 * value for value in means],
                [100 * value for value in stds],
                fmt=style,
                color=color,
                label=name,
                capsize=3,
                linewidth=2,
            )
        for arm, name, color, style in floors:
            (mean,) = (p.mean for p in found if p.arm == arm)
            ax.axhline(100 * mean, color=color, linestyle=style, label=name, linewidth=1.5)
        ax.set(xscale="log", title=title, xlabel="pretraining steps on the target", ylabel=label)
        ax.set_xticks([10, 50, 200, 600, 1600], ["10", "50", "200", "600", "1.6k"])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def chain() -> Figure:
    """Base, source and target, what is handed over, and the arms."""
    figure, ax = _canvas(10, 3.6)
    boxes = (
        ("base", "many images of all kinds,\nor a model that is there", 0, BLUE),
        ("source", "many images\nof the field", 3.7, GREEN),
        ("target", "your own,\nperhaps a few thousand", 7.4, ORANGE),
    )
    for name, text, x, color in boxes:
        _box(ax, x, 2.0, 2.6, 1.4, f"{name}\n", color)
        ax.text(x + 1.3, 2.45, text, ha="center", va="center", fontsize=9.5)
    for x in (2.6, 6.3):
        _arrow(ax, (x, 2.7), (x + 1.1, 2.7))
        ax.text(x + 0.55, 2.85, "backbone", ha="center", fontsize=9, style="italic")
    arms = (
        ("B", 0, 0),
        ("B+T", 0, 7.4),
        ("B+S+T: HPT with a source", 0, 7.4),
        ("T: from scratch", 7.4, 7.4),
    )
    for row, (name, first, last) in enumerate(arms):
        y = 1.5 - 0.42 * row
        stops = [x for _, _, x, _ in boxes if first <= x <= last]
        if name == "B+T":
            stops.remove(3.7)
        ax.plot([x + 1.3 for x in stops], [y] * len(stops), "o-", color="black", markersize=6)
        ax.text(10.15, y, name, va="center", fontsize=10)
    ax.set(xlim=(-0.1, 12.6), ylim=(-0.1, 3.5))
    return figure


def moco() -> Figure:
    """One step of MoCo-v2 for one image."""
    figure, ax = _canvas(10.5, 4.3)
    _box(ax, 0, 1.75, 1.3, 0.9, "image", GREY)
    for y, view, encoder, vector, color in (
        (3.0, "one view", "query encoder\nbackbone + head", "query q", BLUE),
        (0.5, "another view", "key encoder\nbackbone + head", "key k", GREEN),
    ):
        _arrow(ax, (1.3, 2.2), (2.0, y + 0.45))
        _box(ax, 2.0, y, 1.6, 0.9, view, GREY)
        _arrow(ax, (3.6, y + 0.45), (4.3, y + 0.45))
        _box(ax, 4.3, y, 2.3, 0.9, encoder, color)
        _arrow(ax, (6.6, y + 0.45), (7.3, y + 0.45))
        _box(ax, 7.3, y, 1.3, 0.9, vector, color)
    _arrow(ax, (5.45, 3.0), (5.45, 1.4), dashed=True)
    ax.text(5.55, 2.2, "follows slowly:\nk + (1 - m)(q - k)", fontsize=9.5, va="center")
    for index in range(7):
        ax.add_patch(
            Rectangle((7.3 + 0.42 * index, -0.75), 0.36, 0.55, color=GREEN, alpha=1 - 0.12 * index)
        )
    ax.text(7.3, -1.05, "queue: the keys of the last batches", fontsize=9.5, va="center")
    _arrow(ax, (7.6, 0.5), (7.45, -0.2))
    _box(ax, 9.4, 1.45, 2.7, 1.5, "loss\nq·k high,\nq·queue low,\nall over temperature", ORANGE)
    _arrow(ax, (8.6, 3.45), (9.7, 2.95))
    _arrow(ax, (8.6, 0.95), (9.7, 1.45))
    _arrow(ax, (9.9, -0.2), (10.4, 1.45))
    _arrow(ax, (9.4, 2.4), (6.6, 3.15), dashed=True)
    ax.text(8.0, 2.45, "gradient", fontsize=9.5, ha="center")
    ax.set(xlim=(-0.1, 12.2), ylim=(-1.3, 4.1))
    return figure


def shuffle() -> Figure:
    """Which images are normalised together: as queries, and as keys."""
    figure, ax = _canvas(9, 2.6)
    perm = (9, 2, 12, 7, 0, 14, 5, 10, 3, 8, 15, 4, 13, 6, 1, 11)
    for y, images, name in ((1.5, tuple(range(16)), "queries"), (0.2, perm, "keys")):
        ax.text(-0.2, y + 0.3, name, ha="right", va="center")
        for slot, image in enumerate(images):
            x = slot * 0.55 + 0.35 * (slot // 4)
            ax.add_patch(Rectangle((x, y), 0.5, 0.6, color=GROUPS[image // 4], alpha=0.75))
            ax.text(x + 0.25, y + 0.3, str(image), ha="center", va="center", color="white")
        for group in range(4):
            x = group * (4 * 0.55 + 0.35)
            ax.add_patch(Rectangle((x - 0.06, y - 0.07), 2.27, 0.74, fill=False, color="black"))
    for group in range(4):
        x = group * (4 * 0.55 + 0.35) + 1.1
        ax.text(x, 2.35, f"batch-norm group {group + 1}", ha="center", fontsize=9)
    ax.set(xlim=(-1.3, 10.2), ylim=(0, 2.6))
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set_axis_off()
    return figure, ax


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((x, y), width, height, style, color=color, alpha=0.25))
    bold = text.endswith("\n")
    ax.text(
        x + width / 2,
        y + height - 0.35 if bold else y + height / 2,
        text.strip(),
        ha="center",
        va="center",
        fontsize=11 if bold else 10,
        weight="bold" if bold else "normal",
    )


def _arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], dashed: bool = False
) -> None:
    line = "--" if dashed else "-"
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=14, linestyle=line, color="black"
        )
    )


if __name__ == "__main__":
    for file, drawn in figures().items():
        drawn.savefig(HERE / file, dpi=110, metadata={"Software": None})
