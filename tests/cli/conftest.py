"""A trained run for the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphogen.training.config import resolve
from morphogen.training.loop import train


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A finished run of 12 steps with ten timesteps, made for 16x16 images. Read only."""
    out = tmp_path_factory.mktemp("runs") / "tiny-run"
    small = ("architecture.channels=8", "architecture.hidden=16", "architecture.nca_steps=2", "diffusion.timesteps=10")
    settings = {"steps": 12, "batch_size": 4, "sample_images": 0, "checkpoint_every": 5, "validate_every": 6}
    train(resolve({"data": {"source": str(images), "size": 16}, "training": settings}, None, small), out, quiet=True)
    return out
