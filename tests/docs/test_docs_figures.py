"""The figures of docs/hpt.md and README.md are those that their script draws, and are shown."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("build_hpt", ROOT / "docs" / "hpt" / "build.py")
assert _SPEC is not None
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)


@pytest.fixture(scope="module")
def drawn():
    yield build.figures()
    plt.close("all")


def test_each_figure_is_there_and_shown(drawn):
    assert {path.name for path in build.HERE.glob("*.png")} == drawn.keys()
    shown = re.findall(r"\]\(hpt/(\w+\.png)\)", (ROOT / "docs" / "hpt.md").read_text("utf-8"))
    assert sorted(shown) == sorted(drawn)


def test_the_results_are_drawn_as_reproduction_tells_them(drawn):
    """HPT after 200 steps, and scratch after 1,600, of sketches: 63.5 and 67.3 on that page."""
    axes = drawn["results.png"].axes[0]
    ends = {bars.get_label(): bars[0].get_ydata()[-1] for bars in axes.containers}
    assert ends["HPT: the base, then the target"] == pytest.approx(63.5, abs=0.05)
    assert ends["the target from scratch"] == pytest.approx(67.3, abs=0.05)
