"""Noise levels over time.

A noisy image at timestep t is sqrt(alpha_bar) * image + sqrt(1 - alpha_bar) * noise; alpha_bar(t) is the signal's share
of the variance (Ho et al., "Denoising diffusion probabilistic models", equation 4).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from morphogen.diffusion.config import DiffusionConfig

_COSINE_OFFSET = 0.008  # Nichol and Dhariwal, "Improved DDPM", equation 17
_LARGEST_BETA = 0.999


@lru_cache(maxsize=16)
def betas(config: DiffusionConfig) -> np.ndarray:
    """The variance added at each timestep, float64 (T,)."""
    count = config.timesteps
    if config.schedule == "cosine":

        def signal(time: float) -> float:
            return math.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2

        return np.array([min(1 - signal((i + 1) / count) / signal(i / count), _LARGEST_BETA) for i in range(count)])
    scale = 1000 / count  # the constants were chosen for T = 1000
    low, high = 1e-4 * scale, min(0.02 * scale, _LARGEST_BETA)
    if config.schedule == "linear":
        return np.linspace(low, high, count)
    if config.schedule == "scaled_linear":
        low, high = 0.00085 * scale, min(0.012 * scale, _LARGEST_BETA)
        return np.linspace(math.sqrt(low), math.sqrt(high), count) ** 2
    return low + (high - low) / (1 + np.exp(-np.linspace(-6, 6, count)))


@lru_cache(maxsize=16)
def _alpha_bars(config: DiffusionConfig) -> np.ndarray:
    return np.asarray(np.cumprod(1 - betas(config)))


def alpha_bar(config: DiffusionConfig, t: Tensor) -> Tensor:
    """alpha_bar at timesteps t (any shape, fractions allowed), float64, on t's device (on MPS, the CPU).

    Between two timesteps sqrt((1 - alpha_bar) / alpha_bar) is interpolated linearly, as diffusers' schedulers do.
    """
    t = t.cpu() if t.device.type == "mps" else t
    table = torch.from_numpy(_alpha_bars(config)).to(t.device)
    sigmas = ((1 - table) / table).sqrt()
    time = t.double().clamp(0, config.timesteps - 1)
    below = time.floor().long()
    above = (below + 1).clamp(max=config.timesteps - 1)
    sigma = torch.lerp(sigmas[below], sigmas[above], time - below)
    return 1 / (1 + sigma**2)


def alpha_sigma(config: DiffusionConfig, t: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at timesteps t (B,), each float32 (B, 1, 1, 1)."""
    signal = alpha_bar(config, t).view(-1, 1, 1, 1)
    return signal.sqrt().float().to(t.device), (1 - signal).sqrt().float().to(t.device)
