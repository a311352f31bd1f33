"""The image folders that the promises share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets below one folder: base (3 x 13 images), source (2 x 9) and target (3 x 12)."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "base", 3, 13, 20, seed=1)
    write_images(root / "source", 2, 9, 18, seed=2)
    write_images(root / "target", 3, 12, 16, seed=3)
    return root
