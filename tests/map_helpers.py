"""Small models with random weights that paint from maps, and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from morphogen.core.condition import ConditionConfig
from morphogen.core.model import ImageConfig
from morphogen.core.model_files import save_model
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.models import build_model, create_model

CLASSES: dict[str, str | None] = {"0": "background", "1": "nucleus", "2": "rim"}


def map_level(number: int, patch: int = 1, family: str = "diff-nca-small", **architecture: Any) -> Denoiser:
    """A small denoiser that is told a map, and, unless it is the first, a picture three times as coarse."""
    settings = architecture or {"channels": 24 if patch == 1 else 64, "hidden": 12, "nca_steps": 2, "patch": patch}
    config: dict[str, Any] = create_model(family, size=12, **settings).config_dict()
    told = ConditionConfig.of_map(CLASSES)
    if number:
        told = ConditionConfig.of_picture(ImageConfig(), 3).with_map(CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(number)
        model = build_model({**config, "condition": told.settings()}, "test")
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    assert isinstance(model, Denoiser)
    return model.eval()


def save_map_model(folder: Path, levels: int, patch: int = 1) -> Path:
    """A model that paints from maps, of one level or a pyramid, in a folder."""
    found = [map_level(k, patch) for k in range(levels)]
    model = found[0] if levels == 1 else Ladder(found)
    save_model(model, model.config_dict(), folder)
    return folder


def draw_map(path: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A map of blobs, also as an image in a file."""
    draw = np.random.default_rng(seed)
    values = np.zeros(size, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(12):
        distance = np.hypot(y - draw.uniform(0, size[0]), x - draw.uniform(0, size[1]))
        radius = draw.uniform(3, 9)
        values[distance < radius + 1.5] = 2
        values[distance < radius] = 1
    Image.fromarray(values).save(path)
    return values
