"""A tiny trained-looking model in a folder, and what a slide painted with it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.model_files import save_model
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.sampling import sample
from morphogen.models import create_model, load_model


def save_tiny(folder: Path, name: str = "diff-nca", **settings: Any) -> Path:
    """A model whose weights are drawn from a fixed seed."""
    torch.manual_seed(0)
    settings = {"channels": 8, "hidden": 16, "nca_steps": 2, **settings} if "nca" in name else settings
    model = create_model(name, size=32, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, model.config_dict(), folder)
    return folder


def untiled(folder: Path, seed: int, size: tuple[int, int], sampler: str, steps: int) -> np.ndarray:
    """The image (height, width, 3), uint8, that one run of the whole gives."""
    model = load_model(folder)
    assert isinstance(model, Denoiser)
    model.compute_in("auto")
    return to_bytes(sample(model, Key.of([seed]), size, SamplingRequest(sampler, steps)))[0]


def pixels(out: Path) -> np.ndarray:
    """The largest level (height, width, channels) of an OME-Zarr."""
    import zarr

    return np.asarray(zarr.open_array(str(out / "0"), mode="r")[:]).transpose(1, 2, 0)
