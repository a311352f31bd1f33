"""What the promises share: image folders, and figures that take no time."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import TWO_BLOCKS, write_images

from hpt_jax import run
from hpt_jax.models.resnet import ARCHITECTURES
from hpt_jax.report import figures
from hpt_jax.workdir import whole


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets below one folder: base (3 x 13 images), source (2 x 9) and target (3 x 12)."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "base", 3, 13, 20, seed=1)
    write_images(root / "source", 2, 9, 18, seed=2)
    write_images(root / "target", 3, 12, 16, seed=3)
    return root


@pytest.fixture(scope="module", autouse=True)
def two_blocks() -> Iterator[None]:
    """A network that takes half the time of ResNet-10 to compile, unknown to other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, *TWO_BLOCKS)
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_figures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Draws each kind of figure of a report once: what it shows is of no interest here."""
    drawn = tmp_path_factory.getbasetemp() / "drawn"
    save = figures.save

    def save_once(figure: Any, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        kind = drawn / re.sub("-[0-9a-f]{8}", "", path.name)  # without the stage's hash
        if not kind.is_file():
            save(figure, kind)
        for suffix in (".png", ".svg"):
            with whole(path.with_suffix(suffix)) as temporary:
                shutil.copyfile(kind.with_suffix(suffix), temporary)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", save_once)
        yield


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends each run once everything is read and checked, where training would begin."""
    monkeypatch.setattr(run, "run_stage", lambda *args: None)
    monkeypatch.setattr(run, "evaluate", lambda *args: None)
    monkeypatch.setattr(run, "show_neighbours", lambda *args: None)
    monkeypatch.setattr(run, "report", lambda *args: [])
