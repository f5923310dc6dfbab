"""The samplers by name: which solver steps, in how many steps by default, from which timesteps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from morphogen.core.errors import InputError
from morphogen.diffusion import solvers
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.schedule import alpha_bar
from morphogen.diffusion.solvers import Solver

# Solvers of higher order extrapolate from the first steps, where a cosine schedule's signal vanishes; the log of the
# signal-to-noise ratio is cut off there, as Lu et al. recommend ("DPM-Solver++", appendix).
_SMALLEST_LOG_SNR = -5.1
# The clean image that a noise prediction means is its error divided by the signal's scale. In pixels clipping bounds
# it; where nothing is clipped, sampling begins here, where an error of 0.05 in the noise is one of 1 in the clean
# image, the deviation of latents (measured in benchmarks/NOTES.md, "Sampling that is sound").
_SMALLEST_UNCLIPPED_LOG_SNR = -3.0


@dataclass(frozen=True)
class Sampler:
    """A solver, and how to lead it."""

    summary: str
    step: Solver
    stochastic: bool = False
    """Whether a step reads fresh noise."""
    default_steps: int | None = 50
    """Sampling steps where the user names none; None for as many as the model has timesteps."""
    history: int = 0
    """How many tensors like x a step leaves for the next one; 0 where each can be taken by itself."""
    pairs: bool = False
    """Whether evaluations go by twos, from the first on, and history never leads from one pair into the next."""
    evaluations: int = 1
    """Evaluations that a sampling step takes; the last takes one."""
    sigma_start: bool = False
    """Whether sampling starts from sigma * noise at the first level (Karras et al.), instead of noise of unit variance
    (Ho et al.)."""
    cut_off: bool = False
    """Whether to begin below the noisiest levels of a cosine schedule."""


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("ancestral sampling, as published", solvers.ddpm, stochastic=True, default_steps=None),
    "ddim": Sampler("deterministic given the seed", solvers.ddim),
    "dpm++": Sampler("DPM-Solver++ 2M, multistep", solvers.dpmpp_2m, default_steps=25, history=1, cut_off=True),
    "dpm++-single": Sampler(
        "DPM-Solver++ 2S, single step", solvers.dpmpp_2s, default_steps=25, history=2, pairs=True, cut_off=True
    ),
    "dpm++-sde": Sampler(
        "DPM-Solver++ 2M with noise", solvers.dpmpp_2m_sde, True, default_steps=25, history=1, cut_off=True
    ),
    "unipc": Sampler("UniPC, predictor and corrector", solvers.unipc, default_steps=25, history=3),
    "euler": Sampler("Euler's method", solvers.euler, sigma_start=True),
    "euler-a": Sampler(
        "Euler's method with fresh noise each step", solvers.euler_ancestral, stochastic=True, sigma_start=True
    ),
    "heun": Sampler(
        "Heun's method, two evaluations a step",
        solvers.heun,
        default_steps=25,
        history=2,
        pairs=True,
        evaluations=2,
        sigma_start=True,
        cut_off=True,
    ),
}
DEFAULT_SAMPLER = "ddim"


def find_sampler(name: str | None) -> tuple[str, Sampler]:
    """A sampler and its name. Raises InputError, listing the names, for an unknown one."""
    name = name or DEFAULT_SAMPLER
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler '{name}'; choose one of {', '.join(SAMPLERS)}")
    return name, SAMPLERS[name]


def sampling_timesteps(
    config: DiffusionConfig, sampler: Sampler, steps: int, levels: int | None = None, clip: bool = True
) -> tuple[int, ...]:
    """The timestep of every evaluation, evenly spaced from the noisiest down ("trailing" in Lin et al., "Common
    diffusion noise schedules and sample steps are flawed").

    steps: over all timesteps, 1 to as many. levels: begin at the noisiest of this many timesteps, with their share of
    the steps; None for all. There are no more than there are timesteps where the noisiest are cut off.
    """
    count = config.timesteps if levels is None else levels
    steps = max(1, round(steps * count / config.timesteps))
    smallest = None
    if config.schedule == "cosine" and config.output == "noise" and not clip:
        smallest = _SMALLEST_UNCLIPPED_LOG_SNR
    elif config.schedule == "cosine" and sampler.cut_off:
        smallest = _SMALLEST_LOG_SNR
    if smallest is not None:
        signal = alpha_bar(config, torch.arange(count))
        count = max(1, int(((signal / (1 - signal)).log() / 2 >= smallest).sum()))
    steps = min(steps, count)
    once = [(2 * count * (steps - i) + steps) // (2 * steps) - 1 for i in range(steps)]
    return tuple(t for i, t in enumerate(once) for _ in range(sampler.evaluations if i else 1))
