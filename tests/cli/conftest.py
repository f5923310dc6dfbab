"""A trained run for the tests of commands."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from morphogen.training.loop import train
from morphogen.training.recipes import resolve


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, but for compiled kernels, which take a while to build."""
    kernels = Path(os.environ.get("MORPHOGEN_CACHE") or Path.home() / ".cache" / "morphogen") / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    cache = tmp_path / "cache"
    cache.mkdir()
    with contextlib.suppress(OSError):  # without links they are built again
        (cache / "kernels").symlink_to(kernels)
    monkeypatch.setenv("MORPHOGEN_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A finished run of 12 steps with ten timesteps, made for 16x16 images. Read only."""
    out = tmp_path_factory.mktemp("runs") / "tiny-run"
    small = ("architecture.channels=8", "architecture.hidden=16", "architecture.nca_steps=2", "diffusion.timesteps=10")
    settings = {"steps": 12, "batch_size": 4, "sample_images": 0, "checkpoint_every": 5, "validate_every": 6}
    train(resolve({"data": {"source": str(images), "size": 16}, "training": settings}, None, small), out, quiet=True)
    return out
