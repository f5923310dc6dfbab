"""From noise to image: `Stepper` takes one step of a sampler, and `sample` takes them all.

Noise that a step adds comes from the key, so that an image depends on its seed alone.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.errors import InputError, NonFiniteError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Callback, StepInfo
from morphogen.core.random import Purpose
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.guidance import check_guidance, guided
from morphogen.diffusion.known import Known, Resampling
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.projection import Projection
from morphogen.diffusion.request import resolve
from morphogen.diffusion.samplers import find_sampler, sampling_timesteps
from morphogen.diffusion.schedule import alpha_bar
from morphogen.diffusion.solvers import CLEAN, History, NoiseLevel, ddpm


class StepOutput(NamedTuple):
    """The result of one evaluation and step."""

    x: Tensor
    """The noisy images after it, float (B, C, H, W)."""
    clean: Tensor
    """The clean images that the model predicts, float (B, C, H, W), about [-1, 1]."""
    memory: Tensor | None
    """State that may be carried to the model's next evaluation, or None."""
    history: History | None
    """The sampler's state for its next step, or None."""


class Stepper:
    """A sampling request set to a model; it begins, and it takes one step at a time.

    A step is a function of the noisy images and of the history that the step before left, pointwise but for the model:
    it may be taken for any region of them, in any order. timesteps, levels: of the evaluations. highest: begin at the
    noisiest of this many timesteps, with their share of the steps; None for all. clip: as `sample` has it.

    Raises InputError for a request that the model cannot follow.
    """

    def __init__(
        self,
        denoiser: NoisePredictor,
        request: SamplingRequest = SamplingRequest(),
        highest: int | None = None,
        clip: bool = True,
    ) -> None:
        config, self.request = denoiser.diffusion, resolve(request, denoiser)
        self.name, self.sampler = find_sampler(self.request.sampler)
        self.denoiser, self.clip = denoiser, clip
        self.steps = self.request.steps or config.timesteps
        self.timesteps = sampling_timesteps(config, self.sampler, self.steps, highest, clip)
        self.levels = [NoiseLevel(share) for share in alpha_bar(config, torch.tensor(self.timesteps)).tolist()]

    def __len__(self) -> int:
        return len(self.timesteps)

    def begin(self, key: Key, size: tuple[int, int], image: Tensor | None = None) -> Tensor:
        """The start of sampling, float (B, C, height, width): noise, or images (B, C, H, W) noised as far."""
        noise = key.normals(Purpose.INITIAL_NOISE, self.denoiser.image.channels, size, self.denoiser.device)
        alpha, sigma = self.levels[0].alpha, self.levels[0].sigma
        if image is None:
            return sigma * noise if self.sampler.sigma_start else noise
        return alpha * image + sigma * noise

    @property
    def kept_channels(self) -> int:
        """Channels of what a canvas has to keep between two steps."""
        return self.denoiser.image.channels * (1 + self.sampler.history)

    def keep(self, output: StepOutput) -> Tensor:
        """A step's result as one float tensor (B, kept_channels, H, W): the noisy images, then the history."""
        if output.history is None:
            return F.pad(output.x, (0, 0, 0, 0, 0, self.kept_channels - output.x.shape[1]))
        return torch.cat([output.x, *output.history.tensors], dim=1)

    def resume(self, i: int, kept: Tensor) -> tuple[Tensor, History | None]:
        """The noisy images before evaluation i and the history, from what was kept, of all of them or of a region.

        The steps must have been taken in their order, without going back.
        """
        x, *tensors = kept.chunk(1 + self.sampler.history, dim=1)
        return x, History(tuple(tensors), tuple(reversed(self.levels[max(0, i - 2) : i]))) if tensors else None

    def renoise(self, x: Tensor, after: int, i: int, key: Key) -> Tensor:
        """x as evaluation `after` left it, noised until evaluation i can follow, which then has no history."""
        fresh = key.normals(Purpose.RESAMPLING_NOISE, x.shape[1], (x.shape[2], x.shape[3]), x.device)
        kept = NoiseLevel(self.levels[i].alpha_bar / self.levels[after + 1].alpha_bar)
        return kept.alpha * x + kept.sigma * fresh

    @torch.no_grad()
    def step(
        self,
        i: int,
        x: Tensor,
        evaluation: Evaluation,
        history: History | None = None,
        known: Known | None = None,
        projection: Projection | None = None,
    ) -> StepOutput:
        """Evaluation number i, and the step that follows from it. The evaluation's key must be at it.

        x: the noisy images before it, float (B, C, H, W). history: what the step before left. projection: of the clean
        images that are predicted.
        Raises NonFiniteError where the prediction overflows.
        """
        sampler, level, key = self.sampler, self.levels[i], evaluation.key
        size = (x.shape[2], x.shape[3])
        if known is not None:
            x = known.put(x, level.alpha, level.sigma, key.normals(Purpose.TASK_NOISE, x.shape[1], size, x.device))
        times = torch.full((len(key),), float(self.timesteps[i]), device=x.device)
        prediction = guided(self.denoiser, x, times, evaluation, self.request.guidance)
        noise = prediction.noise
        if not torch.isfinite(noise).all():
            raise NonFiniteError(
                f"sampling overflowed at step {i + 1} of {len(self)} ({self.name}, timestep {self.timesteps[i]}): "
                "the model's prediction is no longer finite"
            )
        clean = (x - level.sigma * noise) / level.alpha
        if self.clip:
            clipped = clean.clamp(-1, 1)
            noise, clean = noise + (clean - clipped) * (level.alpha / level.sigma), clipped
        if projection is not None:
            projected = projection.onto(clean, self.clip)
            noise, clean = noise + (clean - projected) * (level.alpha / level.sigma), projected
        fresh = key.normals(Purpose.SAMPLER_NOISE, x.shape[1], size, x.device) if sampler.stochastic else None
        next_level = self.levels[i + 1] if i + 1 < len(self) else CLEAN
        if sampler.pairs and i % 2 == 0:
            history = None
        solver = partial(ddpm, learned=prediction.variance) if sampler.step is ddpm else sampler.step
        x, history = solver(x, clean, noise, level, next_level, history, fresh)
        if i + 1 == len(self) and not torch.isfinite(x).all():
            raise NonFiniteError(f"sampling overflowed at its last step ({self.name}): the images are not finite")
        return StepOutput(x, clean, prediction.memory, history)


@torch.no_grad()
def sample(
    denoiser: NoisePredictor,
    key: Key,
    size: tuple[int, int],
    request: SamplingRequest = SamplingRequest(),
    *,
    labels: Tensor | None = None,
    clip: bool = True,
    callback: Callback | None = None,
    image: Tensor | None = None,
    strength: float = 1.0,
    known: Known | None = None,
    active: Tensor | None = None,
    resampling: Resampling | None = None,
    condition: Tensor | None = None,
    projection: Projection | None = None,
) -> Tensor:
    """Images float (B, C, height, width), about [-1, 1], one for each seed of the key.

    labels: float (B, K), of a model that has any. clip: hold the predicted clean image within [-1,
    1] at every step; off in latents. image: float (B, C, H, W) to begin with instead of noise alone, noised to the
    timestep that `strength` (0 to 1) is of all; so much of the steps is taken. known: content put in before every
    evaluation. active: boolean (B, 1, H, W), the cells that may update; elsewhere the result means nothing.
    resampling: go back and forth in time. condition: float (B, K, height, width), of a model that was trained with one.
    projection: of the clean images that are predicted at every step.

    Raises InputError for a request or a size that the model cannot do, and NonFiniteError where a value overflows.
    """
    check_guidance(denoiser, request.guidance, labels, condition)
    timesteps = denoiser.diffusion.timesteps
    highest = timesteps if image is None else round(strength * timesteps)
    stepper = Stepper(denoiser, request, highest, clip)
    if image is not None and highest == 0:
        return image.clone()
    x, memory, history = stepper.begin(key, size, image), None, None
    each = stepper.sampler.evaluations
    count = -(-len(stepper) // each)
    visits = resampling.visits(count) if resampling else list(range(count))
    evaluations = [i for step in visits for i in range(step * each, min((step + 1) * each, len(stepper)))]
    for number, i in enumerate(evaluations):
        now = key.at(number)
        if number > 0 and i <= evaluations[number - 1]:
            x, history = stepper.renoise(x, evaluations[number - 1], i, now), None
        evaluation = Evaluation(now, labels, memory, active, request.nca_steps, condition)
        x, clean, memory, history = stepper.step(i, x, evaluation, history, known, projection)
        if callback is not None:
            changed = callback(StepInfo(number + 1, len(evaluations), x, clean, int(stepper.timesteps[i])))
            x = x if changed is None else _like(changed, x)
    return x


def _like(changed: Tensor, x: Tensor) -> Tensor:
    """What a callback made of the noisy images. Raises InputError for what cannot take their place."""
    if not isinstance(changed, Tensor) or changed.shape != x.shape or not changed.is_floating_point():
        found = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise InputError(f"the callback returned {found}; it should be None, or float images of {tuple(x.shape)}")
    return changed.detach().to(x)
