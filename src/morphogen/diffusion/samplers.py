"""From noise to image: one loop over diffusers' schedulers, with every random number our own.

A scheduler decides the timesteps and the arithmetic of a step. Noise that a step adds comes from the key, so an image
depends on its seed alone. DDPM's ancestral step is DDIM's at eta = 1 (Song et al., "Denoising diffusion implicit
models", equation 16), which lets the noise be given; Euler's ancestral step is written here for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from morphogen.core.errors import InputError, NonFiniteError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Progressing
from morphogen.core.random import Purpose
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.schedule import betas, scales

_TRAILING = {"timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler and how to step it."""

    summary: str
    scheduler: str
    """The class in diffusers."""
    settings: dict[str, Any] = field(default_factory=dict)
    noise: Literal["none", "given", "ancestral"] = "none"
    """Whether a step adds noise: none, given to the scheduler as `variance_noise`, or in our own ancestral step."""
    step_settings: dict[str, Any] = field(default_factory=dict)
    default_steps: int | None = 50
    """Sampling steps where the user names none; None for as many as the model has timesteps."""


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        "ancestral sampling, as published", "DDIMScheduler", _TRAILING, "given", {"eta": 1.0}, default_steps=None
    ),
    "ddim": Sampler("deterministic given the seed", "DDIMScheduler", _TRAILING, step_settings={"eta": 0.0}),
    "dpm++": Sampler("DPM-Solver++ 2M, multistep", "DPMSolverMultistepScheduler", _TRAILING, default_steps=25),
    "dpm++-single": Sampler(
        "DPM-Solver++ 2S, single step",
        "DPMSolverSinglestepScheduler",
        {"lower_order_final": True},
        default_steps=25,
    ),
    "dpm++-sde": Sampler(
        "DPM-Solver++ 2M with noise",
        "DPMSolverMultistepScheduler",
        {**_TRAILING, "algorithm_type": "sde-dpmsolver++"},
        "given",
        default_steps=25,
    ),
    "unipc": Sampler("UniPC, predictor and corrector", "UniPCMultistepScheduler", _TRAILING, default_steps=25),
    "deis": Sampler("DEIS, multistep", "DEISMultistepScheduler", _TRAILING, default_steps=25),
    "euler": Sampler("Euler's method", "EulerDiscreteScheduler", _TRAILING),
    "euler-a": Sampler(
        "Euler's method with fresh noise each step", "EulerAncestralDiscreteScheduler", _TRAILING, "ancestral"
    ),
    "heun": Sampler("Heun's method, two evaluations a step", "HeunDiscreteScheduler", _TRAILING, default_steps=25),
}
DEFAULT_SAMPLER = "ddim"
# Solvers of higher order extrapolate from the first steps, where a cosine schedule's signal vanishes; the log of the
# signal-to-noise ratio is cut off there, as Lu et al. recommend ("DPM-Solver++", appendix).
_SMALLEST_LOG_SNR = {"DPMSolverMultistepScheduler": -5.1, "DPMSolverSinglestepScheduler": -5.1}


def find_sampler(name: str | None) -> tuple[str, Sampler]:
    """A sampler and its name. Raises InputError, listing the names, for an unknown one."""
    name = name or DEFAULT_SAMPLER
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler '{name}'; choose one of {', '.join(SAMPLERS)}")
    return name, SAMPLERS[name]


def make_scheduler(config: DiffusionConfig, sampler: Sampler, steps: int) -> Any:
    """The diffusers scheduler of a sampler for a model's noise levels, set to `steps` sampling steps.

    Raises InputError where steps is not between 1 and the model's number of timesteps.
    """
    import diffusers

    if not 1 <= steps <= config.timesteps:
        raise InputError(f"sampling steps is {steps}, but this model has timesteps for 1 to {config.timesteps}")
    settings: dict[str, Any] = {"prediction_type": "epsilon", **sampler.settings}
    if sampler.scheduler == "DDIMScheduler":
        settings["clip_sample"] = False  # clipping is the loop's, the same for all
    if config.schedule == "cosine" and sampler.scheduler in _SMALLEST_LOG_SNR:
        settings["lambda_min_clipped"] = _SMALLEST_LOG_SNR[sampler.scheduler]
    cls = getattr(diffusers, sampler.scheduler)
    scheduler = cls(num_train_timesteps=config.timesteps, trained_betas=betas(config), **settings)
    scheduler.set_timesteps(steps)
    return scheduler


def _ancestral_euler(scheduler: Any, noise: Tensor, t: Tensor, x: Tensor, fresh: Tensor) -> Tensor:
    """An ancestral Euler step (Karras et al., "Elucidating the design space", as k-diffusion has it)."""
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    now, after = (scheduler.sigmas[scheduler.step_index + i] for i in (0, 1))
    up = (after**2 * (now**2 - after**2) / now**2).sqrt()
    down = (after**2 - up**2).sqrt()
    scheduler._step_index += 1
    following: Tensor = x + noise * (down - now) + fresh * up
    return following


def _clip(config: DiffusionConfig, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The clean images that a noise prediction means, clipped to [-1, 1], and the noise that leads to them."""
    signal, sigma = scales(config, t)
    clean = (x - sigma * noise) / signal
    clipped = clean.clamp(-1, 1)
    return clipped, noise + (clean - clipped) * (signal / sigma)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    key: Key,
    size: tuple[int, int],
    *,
    sampler: str | None = None,
    steps: int | None = None,
    labels: Tensor | None = None,
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Images float (B, C, height, width), about [-1, 1], one for each seed of the key.

    clip: hold the predicted clean image within [-1, 1] at every step; off in latents.
    Raises InputError for an unknown sampler, a number of steps or a size that the model cannot do, and NonFiniteError
    where a value overflows.
    """
    config = denoiser.diffusion
    name, chosen = find_sampler(sampler)
    steps = steps or min(chosen.default_steps or config.timesteps, config.timesteps)
    scheduler = make_scheduler(config, chosen, steps)
    channels, device = denoiser.image.channels, denoiser.device
    x = key.normals(Purpose.INITIAL_NOISE, channels, size, device) * float(scheduler.init_noise_sigma)
    memory = None
    timesteps = scheduler.timesteps
    for i, t in enumerate(timesteps):
        now = key.at(i)
        times = t.to(device=device, dtype=torch.float32).expand(len(key))
        model_input = scheduler.scale_model_input(x, t)
        prediction = denoiser(model_input, times, labels=labels, memory=memory, key=now)
        memory, noise = prediction.memory, prediction.noise
        if not torch.isfinite(noise).all():
            raise NonFiniteError(
                f"sampling overflowed at step {i + 1} of {len(timesteps)} ({name}, timestep {float(t):g}): "
                "the model's prediction is no longer finite"
            )
        signal, sigma = scales(config, times)
        clean = (model_input - sigma * noise) / signal
        if clip:
            clean, noise = _clip(config, model_input, noise, times)
        fresh = now.normals(Purpose.SAMPLER_NOISE, channels, size, device) if chosen.noise != "none" else None
        if fresh is not None and chosen.noise == "ancestral":
            x = _ancestral_euler(scheduler, noise, t, x, fresh)
        else:
            given = {} if fresh is None else {"variance_noise": fresh}
            x = scheduler.step(noise, t, x, **chosen.step_settings, **given, return_dict=False)[0]
        if callback is not None:
            following = timesteps[min(i + 1, len(timesteps) - 1)]
            shown = scheduler.scale_model_input(x, following) if i + 1 < len(timesteps) else x
            callback(Progressing(i + 1, len(timesteps), shown, clean))
    return x
