"""The training objective: what the network is asked to put out, and how its error is weighed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.keys import Key
from morphogen.core.random import Purpose, mix
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.schedule import scales


def draw_timesteps(config: DiffusionConfig, key: Key, device: torch.device) -> Tensor:
    """A timestep for each image, uniform in 0..T-1: float (B,)."""
    drawn = [mix(seed, Purpose.SAMPLE, key.evaluation) % config.timesteps for seed in key.seeds]
    return torch.tensor(drawn, dtype=torch.float32, device=device)


def add_noise(config: DiffusionConfig, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Noise images (B, C, H, W) to the levels of timesteps t (B,)."""
    signal, sigma = scales(config, t)
    return signal * images + sigma * noise


def target(config: DiffusionConfig, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should put out: the noise, or v = sqrt(a) noise - sqrt(1 - a) image (Salimans and Ho)."""
    if config.predict == "noise":
        return noise
    signal, sigma = scales(config, t)
    return signal * noise - sigma * images


def as_noise(config: DiffusionConfig, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The noise that the network's output means for the noisy images x (B, C, H, W)."""
    if config.predict == "noise":
        return output
    signal, sigma = scales(config, t)
    return signal * output + sigma * x


def loss(config: DiffusionConfig, output: Tensor, wanted: Tensor) -> Tensor:
    """The mean error, a tensor without dimensions."""
    match config.loss:
        case "mse":
            return F.mse_loss(output, wanted)
        case "l1":
            return F.l1_loss(output, wanted)
        case "huber":
            return F.smooth_l1_loss(output, wanted, beta=0.1)
        case "mse+l1":
            return F.mse_loss(output, wanted) + F.l1_loss(output, wanted)
