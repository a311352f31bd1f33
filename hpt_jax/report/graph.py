"""The lineage of a study as a drawing: boxes of stages from left to right, arms at the leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpt_jax.report.figures import short

WIDTH, HEIGHT, ACROSS, DOWN = 192, 44, 36, 12  # of a box, and the room between two, pixels
_LETTERS, _SMALL = 24, 31  # that fit into a line of a box


@dataclasses.dataclass(frozen=True)
class Box:
    """One box: its left upper corner in pixels, what is written in it, what hovering tells."""

    x: float
    y: float
    title: str
    text: str
    full: str
    is_arm: bool


@dataclasses.dataclass(frozen=True)
class Graph:
    """A drawing: boxes, arrows (x, y, x, y) and the whole's size in pixels."""

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[float, float, float, float], ...]
    width: float
    height: float


@dataclasses.dataclass
class _Node:
    text: str
    children: dict[str, _Node]
    facts: list[dict[str, Any]]
    arms: list[str]


def layout(runs: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> Graph:
    """Lays out the chains of all arms; seeds and budgets of one stage are one box.

    Every stage has one parent, so that the graph is a forest: leaves stand in rows of their own, a
    parent in the middle of its children, and no two arrows cross.

    Args:
      runs: (arm, its stages from the first to the last): each a mapping with `name`, `dataset`,
        `how` (what trains, or ''), `steps` and `seed`.
    """
    root = _Node("", {}, [], [])
    for arm, chain in runs:
        node = root
        for stage in chain:
            node = node.children.setdefault(stage["name"], _Node(stage["name"], {}, [], []))
            node.facts.append(dict(stage))
        if arm not in node.arms:
            node.arms.append(arm)
    boxes: list[Box] = []
    arrows: list[tuple[float, float, float, float]] = []
    last = _depth(root) * (WIDTH + ACROSS)
    rows = 0

    def place(node: _Node, depth: int) -> float:
        """Places a node after its children; returns the middle of its box."""
        nonlocal rows
        x = (depth - 1) * (WIDTH + ACROSS)
        middles = []
        for arm in node.arms:
            y = rows * (HEIGHT + DOWN)
            boxes.append(Box(last, y, _cut(arm), "", arm, True))
            middles.append((last, y + HEIGHT / 2))
            rows += 1
        for child in node.children.values():
            middles.append((x + WIDTH + ACROSS, place(child, depth + 1)))
        middle = (middles[0][1] + middles[-1][1]) / 2
        if depth:
            text = _words(node.facts)
            full = f"{node.text}: {text}"
            boxes.append(
                Box(x, middle - HEIGHT / 2, _cut(node.text), _cut(text, _SMALL), full, False)
            )
            arrows.extend((x + WIDTH, middle, *end) for end in middles)
        return middle

    place(root, 0) if root.children else None
    height = max(rows * (HEIGHT + DOWN) - DOWN, 1)
    return Graph(tuple(boxes), tuple(arrows), last + WIDTH, height)


def _depth(node: _Node) -> int:
    return max((1 + _depth(child) for child in node.children.values()), default=0)


def _words(facts: list[dict[str, Any]]) -> str:
    """What a box says of its stages: data, steps, and how many seeds."""
    steps = sorted({fact["steps"] for fact in facts})
    seeds = {fact["seed"] for fact in facts}
    parts = [facts[0]["dataset"].rpartition(":")[2].rstrip("/").rpartition("/")[2]]
    parts.append(facts[0]["how"] or f"{', '.join(short(step) for step in steps)} steps")
    parts.append(f"{len(seeds)} seeds" if len(seeds) > 1 else "")
    return " · ".join(part for part in parts if part)


def _cut(text: str, letters: int = _LETTERS) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
