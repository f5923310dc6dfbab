"""How well the averaged weights do on held-out images: one figure that any two runs can be compared by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from morphogen.core import random
from morphogen.core.evaluation import Evaluation
from morphogen.core.images import to_float
from morphogen.core.keys import Key
from morphogen.core.random import Purpose
from morphogen.data.dataset import ImageDataset
from morphogen.diffusion.condition import of_images
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.latents import OwnAutoencoder
from morphogen.diffusion.learned_autoencoder import LearnedAutoencoder
from morphogen.diffusion.objective import add_noise
from morphogen.diffusion.schedule import alpha_bar

_COMMON = DiffusionConfig(timesteps=300, schedule="cosine")
_SEED = 0x76616C


def common_timesteps(config: DiffusionConfig, count: int) -> torch.Tensor:
    """`count` timesteps (fractional) at which a model has the noise levels of the published schedule, evenly spread.

    So the figures of models with other schedules are about the same noise levels.
    """
    grid = torch.linspace(0, _COMMON.timesteps - 1, count)
    wanted = alpha_bar(_COMMON, grid).numpy()
    own = alpha_bar(config, torch.arange(config.timesteps)).numpy()
    return torch.from_numpy(np.interp(-wanted, -own, np.arange(config.timesteps))).float()


@torch.no_grad()
def noise_error(
    model: Denoiser, images: ImageDataset, count: int, batch_size: int, tell: Callable[[int], None] | None = None
) -> float:
    """The mean squared error of the predicted noise at `count` noise levels, each on a held-out image.

    tell: is told after every batch how many have been measured.

    Where there are fewer images they come again, with other noise, so that the noise levels are always the same.
    """
    t = common_timesteps(model.diffusion, count)
    total = 0.0
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        pixels, labels = zip(*(images.fixed(i % len(images)) for i in rows), strict=True)
        clean = to_float(torch.stack(pixels)).to(model.device)
        known = torch.stack(labels).to(model.device) if len(model.labels) else None
        key = Key(tuple(random.mix(_SEED, i) for i in rows))
        times = t[rows.start : rows.stop].to(model.device)
        noise = key.normals(Purpose.TRAINING_NOISE, clean.shape[1], (clean.shape[2], clean.shape[3]), model.device)
        x = add_noise(model.diffusion, clean, noise, times)
        told = None
        if model.condition is not None:
            maps = torch.stack([images.fixed_map(i % len(images)) for i in rows]) if model.classes else None
            told = of_images(model.condition, clean, key, None if maps is None else model.grid_maps(maps))
        error = (model(x, times, Evaluation(key, known, condition=told)).noise - noise).square().mean(dim=(1, 2, 3))
        total += float(error.cpu().double().sum())  # MPS has no float64
        if tell is not None:
            tell(rows.stop)
    return total / count


def reconstruction_error(model: LearnedAutoencoder, images: ImageDataset, count: int) -> float:
    """The mean absolute error, in levels of 0..255, of at most `count` held-out images encoded and decoded again."""
    autoencoder = OwnAutoencoder(model, model.family, identity="")
    errors = []
    for i in range(min(count, len(images))):
        image = to_float(images.fixed(i)[0])[None].to(model.device)
        decoded = autoencoder.decode(autoencoder.encode(image)).clamp(-1, 1)
        errors.append(float((decoded - image).abs().mean()) * 127.5)
    return float(np.mean(errors))
