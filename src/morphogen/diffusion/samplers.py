"""From noise to image: one loop over diffusers' schedulers, with every random number our own.

`Stepper` takes one step, and `sample` takes them all. A scheduler decides the arithmetic of a step. Noise that a step
adds comes from the key, so an image depends on its seed alone; the ancestral steps of DDPM and Euler, whose noise
diffusers' schedulers draw themselves, are written here. So are the timesteps: diffusers' own can come out one too many,
doubled or negative, and its DDIM step is right only where the number of steps divides T.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from morphogen.core.errors import InputError, NonFiniteError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, StepInfo
from morphogen.core.random import Purpose
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.known import Known, Resampling
from morphogen.diffusion.schedule import alpha_bar, alpha_sigma, betas
from morphogen.diffusion.variance import between, log_bounds

_TRAILING = {"timestep_spacing": "trailing"}
_IMAGE_PLUS_NOISE = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler and how to step it."""

    summary: str
    scheduler: str
    """The class in diffusers."""
    settings: dict[str, Any] = field(default_factory=dict)
    noise: Literal["none", "given", "ancestral"] = "none"
    """Whether a step adds noise: none, given to the scheduler as `variance_noise`, or in our own ancestral step."""
    default_steps: int | None = 50
    """Sampling steps where the user names none; None for as many as the model has timesteps."""
    history: bool = False
    """Whether a step needs what the steps before it have left, so that it cannot be taken by itself."""

    def unit(self, share: Tensor) -> Tensor:
        """How large x is here where the noisy image has unit variance: 1, or where x is image + s * noise, 1 / signal.

        share: the signal's share of the variance.
        """
        return share.rsqrt() if self.scheduler in _IMAGE_PLUS_NOISE else torch.ones_like(share)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("ancestral sampling, as published", "DDIMScheduler", _TRAILING, "ancestral", default_steps=None),
    "ddim": Sampler("deterministic given the seed", "DDIMScheduler", _TRAILING),
    "dpm++": Sampler(
        "DPM-Solver++ 2M, multistep", "DPMSolverMultistepScheduler", _TRAILING, default_steps=25, history=True
    ),
    "dpm++-single": Sampler(
        "DPM-Solver++ 2S, single step",
        "DPMSolverSinglestepScheduler",
        {"lower_order_final": True},
        default_steps=25,
        history=True,
    ),
    "dpm++-sde": Sampler(
        "DPM-Solver++ 2M with noise",
        "DPMSolverMultistepScheduler",
        {**_TRAILING, "algorithm_type": "sde-dpmsolver++"},
        "given",
        default_steps=25,
        history=True,
    ),
    "unipc": Sampler(
        "UniPC, predictor and corrector", "UniPCMultistepScheduler", _TRAILING, default_steps=25, history=True
    ),
    "euler": Sampler("Euler's method", "EulerDiscreteScheduler", _TRAILING),
    "euler-a": Sampler(
        "Euler's method with fresh noise each step", "EulerAncestralDiscreteScheduler", _TRAILING, "ancestral"
    ),
    "heun": Sampler(
        "Heun's method, two evaluations a step", "HeunDiscreteScheduler", _TRAILING, default_steps=25, history=True
    ),
}
DEFAULT_SAMPLER = "ddim"
# Solvers of higher order extrapolate from the first steps, where a cosine schedule's signal vanishes; the log of the
# signal-to-noise ratio is cut off there, as Lu et al. recommend ("DPM-Solver++", appendix).
_SMALLEST_LOG_SNR = {
    "DPMSolverMultistepScheduler": -5.1,
    "DPMSolverSinglestepScheduler": -5.1,
    "HeunDiscreteScheduler": -5.1,
}


def find_sampler(name: str | None) -> tuple[str, Sampler]:
    """A sampler and its name. Raises InputError, listing the names, for an unknown one."""
    name = name or DEFAULT_SAMPLER
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler '{name}'; choose one of {', '.join(SAMPLERS)}")
    return name, SAMPLERS[name]


def _timesteps(config: DiffusionConfig, sampler: Sampler, steps: int, levels: int) -> list[int]:
    """Timesteps evenly spaced from the noisiest of the lowest `levels` down ("trailing" in Lin et al., "Common
    diffusion noise schedules and sample steps are flawed"): as many as `steps` over all timesteps leave for them, and
    no more than there are where the solver skips the noisiest.
    """
    count = levels
    steps = max(1, round(steps * levels / config.timesteps))
    if config.schedule == "cosine" and sampler.scheduler in _SMALLEST_LOG_SNR:
        share = alpha_bar(config, torch.arange(count))
        count = max(1, int(((share / (1 - share)).log() / 2 >= _SMALLEST_LOG_SNR[sampler.scheduler]).sum()))
    steps = min(steps, count)
    return [(2 * count * (steps - i) + steps) // (2 * steps) - 1 for i in range(steps)]


def make_scheduler(config: DiffusionConfig, sampler: Sampler, steps: int, levels: int | None = None) -> Any:
    """The diffusers scheduler of a sampler for a model's noise levels, set to `steps` sampling steps.

    levels: begin at the noisiest of so many timesteps, with that share of the steps; None for all.
    Raises InputError where steps is not between 1 and the model's number of timesteps.
    """
    import diffusers

    if not 1 <= steps <= config.timesteps:
        raise InputError(f"sampling steps is {steps}, but this model has timesteps for 1 to {config.timesteps}")
    settings: dict[str, Any] = {"prediction_type": "epsilon", **sampler.settings}
    if sampler.scheduler == "DDIMScheduler":
        settings["clip_sample"] = False  # clipping is the loop's, the same for all
    cls = getattr(diffusers, sampler.scheduler)
    scheduler = cls(num_train_timesteps=config.timesteps, trained_betas=betas(config), **settings)
    times = torch.tensor(_timesteps(config, sampler, steps, levels or config.timesteps))
    scheduler.set_timesteps(len(times))
    repeats = torch.tensor([1] + [scheduler.order] * (len(times) - 1))  # Heun evaluates twice at all but the first
    times = times.repeat_interleave(repeats)
    scheduler.timesteps = times.to(scheduler.timesteps.dtype)
    if hasattr(scheduler, "sigmas"):
        share = alpha_bar(config, times)
        scheduler.sigmas = torch.cat([((1 - share) / share).sqrt().float(), scheduler.sigmas[-1:]])
    return scheduler


def _ddim(
    config: DiffusionConfig,
    clean: Tensor,
    noise: Tensor,
    t: Tensor,
    after: Tensor | None,
    fresh: Tensor | None,
    learned: Tensor | None = None,
) -> Tensor:
    """A step (Song et al., "Denoising diffusion implicit models", equation 16) from timesteps t to `after`, each (B,),
    or to the clean image: at eta = 1, which is DDPM's step, where there is fresh noise, and at eta = 0 where not.

    learned: where between its bounds the variance of that noise is, (B, C, H, W); the step's mean stays.
    """
    share = alpha_bar(config, t).view(-1, 1, 1, 1)
    following = torch.ones_like(share) if after is None else alpha_bar(config, after).view(-1, 1, 1, 1)
    variance = (1 - following) / (1 - share) * (1 - share / following)
    added = torch.zeros_like(variance) if fresh is None else variance
    parts = (following, (1 - following - added).clamp(min=0), added)
    signal, direction, spread = (part.sqrt().float().to(clean.device) for part in parts)
    moved = signal * clean + direction * noise
    if learned is not None and fresh is not None and after is not None:
        spread = (between(log_bounds(share, following), learned) / 2).exp()
    return moved if fresh is None else moved + spread * fresh


def _ancestral_euler(now: Tensor, after: Tensor, noise: Tensor, x: Tensor, fresh: Tensor) -> Tensor:
    """An ancestral Euler step between two noise levels (Karras et al., "Elucidating the design space", as k-diffusion
    has it).
    """
    up = (after**2 * (now**2 - after**2) / now**2).sqrt()
    down = (after**2 - up**2).sqrt()
    following: Tensor = x + noise * (down - now) + fresh * up
    return following


def _clip(config: DiffusionConfig, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The clean images that a noise prediction means, clipped to [-1, 1], and the noise that leads to them."""
    signal, sigma = alpha_sigma(config, t)
    clean = (x - sigma * noise) / signal
    clipped = clean.clamp(-1, 1)
    return clipped, noise + (clean - clipped) * (signal / sigma)


def _add_noise(sampler: Sampler, x: Tensor, share: Tensor, less: Tensor, noise: Tensor) -> Tensor:
    """x at a signal's share of the variance, with noise added until the share is `less`."""
    ratio = less / share
    kept = (ratio.sqrt() * sampler.unit(less) / sampler.unit(share)).to(x)
    return kept * x + ((1 - ratio).sqrt() * sampler.unit(less)).to(x) * noise


class StepOutput(NamedTuple):
    """What one evaluation and step lead to."""

    x: Tensor
    """The noisy images after it, in the sampler's own scale."""
    clean: Tensor
    """What the model takes the images before it to become, float (B, C, H, W), about [-1, 1]."""
    memory: Any
    """What may be carried to the next evaluation, or None."""


class Stepper:
    """A sampler set to a model and a number of steps; it begins, and it takes one step at a time.

    A step of a sampler without `history` depends on the noisy images alone: it may be taken for any region of them, in
    any order. One with history must be led through all steps in turn. timesteps: of the evaluations, Heun's twice.
    levels, clip: as `make_scheduler` and `sample` have them.

    Raises InputError for an unknown sampler, or a number of steps that the model cannot do.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: str | None = None,
        steps: int | None = None,
        levels: int | None = None,
        clip: bool = True,
    ) -> None:
        timesteps = denoiser.diffusion.timesteps
        self.name, self.sampler = find_sampler(sampler)
        self.denoiser, self.clip, self._levels = denoiser, clip, levels
        self.steps = min(self.sampler.default_steps or timesteps, timesteps) if steps is None else steps
        self._scheduler = make_scheduler(denoiser.diffusion, self.sampler, self.steps, levels)
        self.timesteps: Tensor = self._scheduler.timesteps
        self.order: int = self._scheduler.order
        self._shares = alpha_bar(denoiser.diffusion, self.timesteps)

    def __len__(self) -> int:
        return len(self.timesteps)

    def begin(self, key: Key, size: tuple[int, int], image: Tensor | None = None) -> Tensor:
        """What sampling starts from, float (B, C, height, width): noise, or images (B, C, H, W) noised as far."""
        x = key.normals(Purpose.INITIAL_NOISE, self.denoiser.image.channels, size, self.denoiser.device)
        if image is None:
            return x * float(self._scheduler.init_noise_sigma)
        signal, sigma = alpha_sigma(self.denoiser.diffusion, self.timesteps[:1].to(x.device))
        return (signal * image + sigma * x) * self.sampler.unit(self._shares[0]).to(x)

    def renoise(self, x: Tensor, after: int, i: int, key: Key) -> Tensor:
        """x as evaluation `after` left it, noised until evaluation i can follow."""
        chosen = self.sampler
        fresh = key.normals(Purpose.RESAMPLING_NOISE, x.shape[1], (x.shape[2], x.shape[3]), x.device)
        x = _add_noise(chosen, x, self._shares[after + 1], self._shares[i], fresh)
        if chosen.history:  # which is no longer so
            self._scheduler = make_scheduler(self.denoiser.diffusion, chosen, self.steps, self._levels)
            self._scheduler.set_begin_index(i)
        return x

    @torch.no_grad()
    def step(
        self,
        i: int,
        x: Tensor,
        key: Key,
        *,
        labels: Tensor | None = None,
        memory: Any = None,
        known: Known | None = None,
        active: Tensor | None = None,
        nca_steps: int | None = None,
    ) -> StepOutput:
        """Evaluation number i, and the step that follows from it. The key must be at its evaluation.

        x: the noisy images before it, float (B, C, H, W). Raises NonFiniteError where the prediction overflows.
        """
        config, chosen, scheduler, timesteps = self.denoiser.diffusion, self.sampler, self._scheduler, self.timesteps
        size = (x.shape[2], x.shape[3])
        t = timesteps[i]
        if not chosen.history:
            scheduler._step_index = i
        times = t.to(device=x.device, dtype=torch.float32).expand(len(key))
        model_input = scheduler.scale_model_input(x, t)
        signal, sigma = alpha_sigma(config, times)
        if known is not None:
            fresh = key.normals(Purpose.TASK_NOISE, x.shape[1], size, x.device)
            model_input = known.put(model_input, signal, sigma, fresh)
            x = model_input * chosen.unit(self._shares[i]).to(x)
        prediction = self.denoiser(
            model_input, times, labels=labels, memory=memory, active=active, key=key, nca_steps=nca_steps
        )
        noise = prediction.noise
        if not torch.isfinite(noise).all():
            raise NonFiniteError(
                f"sampling overflowed at step {i + 1} of {len(self)} ({self.name}, timestep {float(t):g}): "
                "the model's prediction is no longer finite"
            )
        clean = (model_input - sigma * noise) / signal
        if self.clip:
            clean, noise = _clip(config, model_input, noise, times)
        given = key.normals(Purpose.SAMPLER_NOISE, x.shape[1], size, x.device) if chosen.noise != "none" else None
        if chosen.scheduler == "DDIMScheduler":
            after = timesteps[i + 1].to(times).expand_as(times) if i + 1 < len(self) else None
            x = _ddim(config, clean, noise, times, after, given, prediction.variance)
        elif given is not None and chosen.noise == "ancestral":
            x = _ancestral_euler(scheduler.sigmas[i], scheduler.sigmas[i + 1], noise, x, given)
        else:
            extra = {} if given is None else {"variance_noise": given}
            x = scheduler.step(noise, t, x, **extra, return_dict=False)[0]
        if i + 1 == len(self) and not torch.isfinite(x).all():
            raise NonFiniteError(f"sampling overflowed at its last step ({self.name}): the images are not finite")
        return StepOutput(x, clean, prediction.memory)

    def shown(self, x: Tensor, i: int) -> Tensor:
        """The noisy images after evaluation i in the scale of the model's input."""
        if i + 1 == len(self):
            return x
        if not self.sampler.history:
            self._scheduler._step_index = i + 1
        shown: Tensor = self._scheduler.scale_model_input(x, self.timesteps[i + 1])
        return shown


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    key: Key,
    size: tuple[int, int],
    *,
    sampler: str | None = None,
    steps: int | None = None,
    labels: Tensor | None = None,
    nca_steps: int | None = None,
    clip: bool = True,
    callback: Callback | None = None,
    image: Tensor | None = None,
    strength: float = 1.0,
    known: Known | None = None,
    active: Tensor | None = None,
    resampling: Resampling | None = None,
) -> Tensor:
    """Images float (B, C, height, width), about [-1, 1], one for each seed of the key.

    nca_steps: NCA steps of an evaluation instead of the model's own. clip: hold the predicted clean image within [-1,
    1] at every step; off in latents. image: float (B, C, H, W) to begin with instead of noise alone, noised to the
    timestep that `strength` (0 to 1) is of all; so much of the steps is taken. known: content put in before every
    evaluation. active: boolean (B, 1, H, W), the cells that may update; elsewhere the result means nothing.
    resampling: go back and forth in time.

    Raises InputError for an unknown sampler, a number of steps or a size that the model cannot do, and NonFiniteError
    where a value overflows.
    """
    levels = denoiser.diffusion.timesteps if image is None else round(strength * denoiser.diffusion.timesteps)
    stepper = Stepper(denoiser, sampler, steps, levels, clip)
    if image is not None and levels == 0:
        return image.clone()
    x, memory, order = stepper.begin(key, size, image), None, stepper.order
    count = -(-len(stepper) // order)
    visits = resampling.visits(count) if resampling else list(range(count))
    evaluations = [i for step in visits for i in range(step * order, min((step + 1) * order, len(stepper)))]
    for number, i in enumerate(evaluations):
        now = key.at(number)
        if number > 0 and i <= evaluations[number - 1]:
            x = stepper.renoise(x, evaluations[number - 1], i, now)
        x, clean, memory = stepper.step(
            i, x, now, labels=labels, memory=memory, known=known, active=active, nca_steps=nca_steps
        )
        if callback is not None:
            callback(StepInfo(number + 1, len(evaluations), stepper.shown(x, i), clean))
    return x
