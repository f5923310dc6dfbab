"""Small pyramid models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from morphogen.core.condition import ConditionConfig
from morphogen.core.model import ImageConfig
from morphogen.core.model_files import save_model
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.models import build_model, create_model


def level(number: int, factor: int = 3, mpp: float | None = None, patch: int = 1) -> Denoiser:
    """A small denoiser with random weights that put something out; told a coarser picture unless it is the first."""
    channels = 16 if patch == 1 else 48
    plain = create_model("diff-nca-small", size=12, channels=channels, hidden=12, nca_steps=2, patch=patch)
    config: dict[str, Any] = plain.config_dict()
    config["image"]["mpp"] = mpp
    if number:
        told = ConditionConfig.of_picture(ImageConfig(), factor)
        config = {**config, "condition": told.model_dump(mode="json")}
    with torch.random.fork_rng():
        torch.manual_seed(number)
        model = build_model(config, "test")
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    assert isinstance(model, Denoiser)
    return model.eval()


def make_ladder(levels: int = 3, factor: int = 3, patch: int = 1) -> Ladder:
    """A pyramid of such levels."""
    return Ladder([level(k, factor, patch=patch) for k in range(levels)]).eval()


def save_ladder(folder: Path, **options: int) -> Path:
    """The same in a model's folder."""
    ladder = make_ladder(**options)
    save_model(ladder, ladder.config_dict(), folder)
    return folder
