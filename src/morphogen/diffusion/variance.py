"""A learned variance of the ancestral step, between the two bounds that it has (Nichol and Dhariwal, "Improved DDPM",
equation 15): the posterior's variance and the variance of the step itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.schedule import alpha_bar


def alpha_bars(config: DiffusionConfig, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_bar at timesteps t (B,) and one timestep earlier (1 before the first), each float64 (B, 1, 1, 1)."""
    now, after = alpha_bar(config, t), alpha_bar(config, t - 1)
    return now.view(-1, 1, 1, 1), torch.where(t.to(after.device) < 1, 1.0, after).view(-1, 1, 1, 1)


def log_bounds(now: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bound of the log-variance of a step between signal shares, each float64 (B, 1, 1, 1).

    A step to the clean image has a posterior without variance, and so a lower bound of minus infinity.
    """
    step = 1 - now / after
    return (step * (1 - after) / (1 - now)).log(), step.log()


def between(bounds: tuple[Tensor, Tensor], interpolation: Tensor) -> Tensor:
    """The log-variance float32 (B, C, H, W) at an interpolation of that shape: -1 is the lower bound, 1 the upper."""
    low, high = (bound.float().to(interpolation.device) for bound in bounds)
    return low + (interpolation + 1) / 2 * (high - low)


def posterior_mean(now: Tensor, after: Tensor, clean: Tensor, x: Tensor) -> Tensor:
    """The mean of the step from x (B, C, H, W) given the clean images (Ho et al., equation 7)."""
    step = 1 - now / after
    of_clean = after.sqrt() * step / (1 - now)
    of_x = (now / after).sqrt() * (1 - after) / (1 - now)
    return of_clean.float().to(x.device) * clean + of_x.float().to(x.device) * x
