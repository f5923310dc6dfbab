"""Small models, and images for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from run_helpers import pixels
from torch import Tensor

from morphogen.core.images import to_float
from morphogen.core.model import Model
from morphogen.models import create_model

SMALL = {"channels": 8, "hidden": 16, "nca_steps": 3}


def _steady(model: Model) -> Model:
    """With an output that stays of the size of noise, as a trained one's does."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("output.weight_g"):
                weight.mul_(0.6)
    return model.eval()


@pytest.fixture(scope="session")
def local() -> Model:
    """An untrained Diff-NCA of three steps, whose cells are normalised one by one."""
    torch.manual_seed(0)
    return _steady(create_model("diff-nca-small", size=16, diffusion={"timesteps": 20}, **SMALL))


@pytest.fixture(scope="session")
def gray() -> Model:
    """The same for gray images."""
    torch.manual_seed(1)
    return _steady(create_model("diff-nca-small", size=16, image_channels=1, diffusion={"timesteps": 20}, **SMALL))


@pytest.fixture(scope="session")
def fourier() -> Model:
    """An untrained FourierDiff-NCA."""
    torch.manual_seed(2)
    return _steady(create_model("fourier-diff-nca-small", size=32, diffusion={"timesteps": 20}, **SMALL))


@pytest.fixture(scope="session")
def image() -> Callable[..., Tensor]:
    """image(height, width, seed=0, channels=3): float (1, C, H, W) within 0.8."""

    def make(height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
        picture = torch.from_numpy(pixels(height, width, seed).copy()).permute(2, 0, 1)
        return 0.8 * to_float(picture)[None, :channels]  # what is painted is clipped to 1, and so never the same

    return make
