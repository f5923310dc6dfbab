"""Trainings in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from morphogen.training.config import RunConfig
from morphogen.training.loop import Result, train
from morphogen.training.recipes import resolve


def tiny_config(source: Path, *assignments: str, model: str = "diff-nca-small", **training: Any) -> RunConfig:
    """A configuration whose steps take milliseconds."""
    size = 32 if model.startswith("fourier") else 16
    settings = {"batch_size": 4, "sample_images": 0, **training}
    small = ("architecture.channels=8", "architecture.hidden=16", "architecture.nca_steps=2")
    flags = {"model": model, "data": {"source": str(source), "size": size}, "training": settings}
    return resolve(flags, None, [*small, *assignments])


@pytest.fixture
def config(images: Path) -> Callable[..., RunConfig]:
    """config("a.b=c", ..., model=..., steps=...): a tiny configuration on twelve images; keywords are of training,
    in the spelling of format 1."""

    def make(*assignments: str, source: Path = images, **settings: Any) -> RunConfig:
        return tiny_config(source, *assignments, **settings)

    return make


@pytest.fixture
def trained(config: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., Result]:
    """trained("run", "a.b=c", steps=...): train, or go on, in tmp_path/run."""

    def run(name: str, *assignments: str, **settings: Any) -> Result:
        return train(config(*assignments, **settings), tmp_path / name, quiet=True)

    return run
