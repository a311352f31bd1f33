"""A run on images without labels can be watched: what is shown while it goes on, and after it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import folder_of, tiny_config
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from hpt_jax import run
from hpt_jax.report import live
from hpt_jax.telemetry.display import Display


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for index in range(24):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(
            tmp_path / "mine" / f"{index}.png"
        )
    return tmp_path


def test_an_unlabelled_run_shows_neighbours_before_and_after_and_a_page_all_along(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(unlabelled)
    config.stages.adapted = dict(dataset="folder:mine", steps=6)
    config.arms.T = ("adapted",)
    root = tmp_path / "w"
    index = root / "report" / "index.html"
    monkeypatch.setattr(live, "SECONDS", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    pages: list[str] = []
    refresh = live.Live.refresh

    def kept(self: live.Live, *args: object) -> None:
        refresh(self, *args)
        pages.append(index.read_text())

    monkeypatch.setattr(live.Live, "refresh", kept)
    run.run(config, root)
    assert ["step 0 of 6" in page for page in pages] == [True, True, False, False, False, False]
    assert "step 6 of 6" in pages[-1]
    assert all("what the training starts from" in page for page in pages[1:])
    assert "Running" not in index.read_text()
    assert "after the training" in index.read_text()

    folder = folder_of(config, root, "T").path
    (before,), (after,) = folder.glob("before-*.json"), folder.glob("neighbours-*.json")
    shown = [json.loads(path.read_text())["queries"] for path in (before, after)]
    asked = [[one["image"] for one in queries] for queries in shown]
    assert asked[0] == asked[1]
    assert shown[0] != shown[1]

    events = EventAccumulator(str(folder))
    events.Reload()
    assert len(events.Tensors("augmented views")) == 1
    assert [event.step for event in events.Tensors("nearest neighbours")] == [0, 6]
    assert [event.step for event in events.Tensors("loss")] == [2, 4, 6]

    first = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    pages.clear()
    run.run(config, root, display=Display())
    assert pages == [], "nothing was left to do"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == first
