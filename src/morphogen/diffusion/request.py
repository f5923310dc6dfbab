"""Checking a sampling request against a model, and filling in what it leaves to the model: the one place of both."""

from __future__ import annotations

from dataclasses import replace

from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.samplers import DEFAULT_SAMPLER, find_sampler

FROM_NOISE = SamplingRequest(DEFAULT_SAMPLER)
FROM_IMAGE = SamplingRequest("ddpm", 50)
"""The default of tasks that begin with an image: only a sampler that adds noise all the way lets what is painted come
to fit what is known (docs/inpainting.md). The steps are over all timesteps."""

ON_CANVAS = SamplingRequest("dpm++", 12)
"""The default of slides: a step costs more where it is taken over a whole slide, and 12 of these are enough."""


def resolve(
    request: SamplingRequest, denoiser: NoisePredictor, default: SamplingRequest = FROM_NOISE
) -> SamplingRequest:
    """The request with its sampler and steps filled in: the default's, where it names no sampler, or the sampler's own.

    Resolving again changes nothing. Raises InputError for an unknown sampler, and for steps or NCA steps that the model
    cannot do.
    """
    name, sampler = find_sampler(request.sampler or default.sampler)
    most = denoiser.diffusion.timesteps
    steps = request.steps
    if steps is None:
        own = default.steps if request.sampler is None else None
        steps = min(own or sampler.default_steps or most, most)
    if not 1 <= steps <= most:
        raise InputError(f"sampling steps is {steps}, but this model has timesteps for 1 to {most}")
    denoiser.check_nca_steps(request.nca_steps)
    return replace(request, sampler=name, steps=steps)
