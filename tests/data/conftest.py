"""Images made on the spot, and the real ones of ../shared where they are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Save = Callable[..., Path]


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} with the real images is not there")
    return folder


@pytest.fixture(scope="session")
def cases() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} with files that went wrong once is not there")
    return folder


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """save(name, height, width, seed): an image of random pixels below tmp_path, in the format of its suffix."""

    def make(name: str, height: int = 64, width: int = 64, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def folder(tmp_path: Path, save: Save) -> Path:
    """Twelve different PNGs of 32x32 in two classes."""
    for k in range(12):
        save(f"set/{'ab'[k % 2]}/{k:02d}.png", 32, 32, seed=k)
    return tmp_path / "set"
