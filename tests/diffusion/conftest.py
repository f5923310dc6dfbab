"""Denoisers that are known to be optimal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from morphogen.core.evaluation import Evaluation
from morphogen.core.model import ArchitectureConfig, ImageConfig, Prediction
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.schedule import alpha_sigma


class GaussianDenoiser(Denoiser):
    """The best possible denoiser of images whose pixels are independent normals: known in closed form.

    Of x = signal * image + sigma * noise, the expected noise is sigma (x - signal mean) / (signal^2 std^2 + sigma^2).
    """

    family = "gaussian"
    config_class = ArchitectureConfig
    minimum_size = 1
    receptive_range = 0
    inexact_in_tiles = None

    def __init__(self, diffusion: DiffusionConfig, mean: float | Tensor, std: float, channels: int = 1) -> None:
        super().__init__(ImageConfig(height=8, width=8, channels=channels), ArchitectureConfig(), diffusion)
        self.mean, self.std = mean, std
        self.unused = nn.Parameter(torch.zeros(1))  # a model is where its parameters are

    def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
        signal, sigma = alpha_sigma(self.diffusion, t)
        noise = sigma * (x - signal * self.mean) / (signal**2 * self.std**2 + sigma**2)
        if self.diffusion.output == "noise":
            return Prediction(noise)
        assert self.diffusion.output == "v"
        return Prediction((noise - sigma * x) / signal)


@pytest.fixture(scope="session")
def gaussian() -> type[GaussianDenoiser]:
    return GaussianDenoiser
