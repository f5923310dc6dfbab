"""The training objective: what the network is asked to put out, and how its error is weighed."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.keys import Key
from morphogen.core.random import Purpose, mix
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.schedule import alpha_sigma
from morphogen.diffusion.variance import alpha_bars, between, log_bounds, posterior_mean


def draw_timesteps(config: DiffusionConfig, key: Key, device: torch.device) -> Tensor:
    """A timestep for each image, uniform in 0..T-1: float (B,)."""
    drawn = [mix(seed, Purpose.SAMPLE, key.evaluation) % config.timesteps for seed in key.seeds]
    return torch.tensor(drawn, dtype=torch.float32, device=device)


def add_noise(config: DiffusionConfig, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Noise images (B, C, H, W) to the levels of timesteps t (B,)."""
    alpha, sigma = alpha_sigma(config, t)
    return alpha * images + sigma * noise


def network_input(config: DiffusionConfig, x: Tensor, t: Tensor) -> Tensor:
    """The noisy images x (B, C, H, W) as the network sees them: themselves, or under `edm` scaled to unit variance
    (c_in of Karras et al., "Elucidating the design space", table 1).
    """
    if config.output != "edm":
        return x
    alpha, sigma = alpha_sigma(config, t)
    return x / (sigma.square() + (config.sigma_data * alpha).square()).sqrt()


def as_noise(config: DiffusionConfig, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The noise that the network's output means for the noisy images x (B, C, H, W)."""
    if config.output == "noise":
        return output
    alpha, sigma = alpha_sigma(config, t)
    match config.output:
        case "v":  # v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) image (Salimans and Ho, 2022)
            return alpha * output + sigma * x
        case "clean":
            return (x - alpha * output) / sigma
        case "edm":
            variance = sigma.square() + (config.sigma_data * alpha).square()
            return (sigma / variance) * x - (alpha * config.sigma_data / variance.sqrt()) * output


def as_clean(config: DiffusionConfig, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The clean images that the network's output means for the noisy images x (B, C, H, W)."""
    if config.output == "clean":
        return output
    alpha, sigma = alpha_sigma(config, t)
    match config.output:
        case "noise":
            return (x - sigma * output) / alpha
        case "v":
            return alpha * x - sigma * output
        case "edm":  # c_skip and c_out of Karras et al., table 1, for x of unit variance
            variance = sigma.square() + (config.sigma_data * alpha).square()
            return (alpha * config.sigma_data**2 / variance) * x + (
                sigma * config.sigma_data / variance.sqrt()
            ) * output


def prediction_error(
    config: DiffusionConfig, output: Tensor, images: Tensor, noise: Tensor, x: Tensor, t: Tensor
) -> Tensor:
    """The loss of what the network put out for noisy images x (B, C, H, W) of `images` and `noise`: a tensor without
    dimensions. It is taken on the noise, on v or on the clean image, as `loss_on` says.
    """
    match config.loss_on:
        case "noise":
            return _distance(config, as_noise(config, output, x, t), noise)
        case "clean":
            return _distance(config, as_clean(config, output, x, t), images)
        case "v":
            alpha, sigma = alpha_sigma(config, t)
            found = output
            if config.output != "v":
                found = alpha * as_noise(config, output, x, t) - sigma * as_clean(config, output, x, t)
            return _distance(config, found, alpha * noise - sigma * images)


def _distance(config: DiffusionConfig, found: Tensor, wanted: Tensor) -> Tensor:
    match config.loss:
        case "mse" | "mse+vb":
            return F.mse_loss(found, wanted)
        case "l1":
            return F.l1_loss(found, wanted)
        case "huber":
            return F.smooth_l1_loss(found, wanted, beta=0.1)
        case "mse+l1":
            return F.mse_loss(found, wanted) + F.l1_loss(found, wanted)


def variational_bound(
    config: DiffusionConfig, images: Tensor, x: Tensor, t: Tensor, output: Tensor, variance: Tensor
) -> Tensor:
    """The terms of the variational bound at timesteps t (B,), in bits a dimension: their mean.

    output: the network's own, detached: this term trains the variance alone (Nichol and Dhariwal, "Improved DDPM",
    section 3.1). variance: the interpolation (B, C, H, W). At t = 0 it is the negative log-likelihood of the images'
    256 values under the discretised Gaussian (of latents too, as released), elsewhere the divergence of the two steps.
    """
    now, after = alpha_bars(config, t)
    clean = as_clean(config, output, x, t)
    wanted, predicted = (posterior_mean(now, after, start, x) for start in (images, clean))
    low, _ = log_bounds(*alpha_bars(config, t.clamp(min=1)))  # t = 0 has none: that of t = 1
    own_log = between((low, log_bounds(now, after)[1]), variance)
    true_log = low.float().to(x.device)
    ratio = true_log - own_log
    divergence = 0.5 * (ratio.exp() - 1 - ratio + (wanted - predicted).square() * (-own_log).exp())
    unlikely = -_discretised_log_likelihood(images, predicted, 0.5 * own_log)
    nats = torch.where((t == 0).view(-1, 1, 1, 1), unlikely, divergence)
    return nats.mean() / math.log(2)


def _discretised_log_likelihood(images: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Natural log-probability of the 256 values on [-1, 1] under Gaussians (Ho et al., equation 13)."""
    inverse = (-log_deviation).exp()
    centred = images - mean
    above = torch.special.ndtr(inverse * (centred + 1 / 255))
    below = torch.special.ndtr(inverse * (centred - 1 / 255))
    share = torch.where(images < -0.999, above, torch.where(images > 0.999, 1 - below, above - below))
    return share.clamp(min=1e-12).log()
