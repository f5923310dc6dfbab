"""Checking a sampling request against a model, and filling in what it leaves to the model: the one place of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.samplers import DEFAULT_SAMPLER, find_sampler


@dataclass(frozen=True)
class SamplingDefaults:
    """A task's sampler and steps where the request leaves them open.

    sampler: by its name. steps: of a sampler that the request names; under None, where it names none. others: steps of
    the samplers that are not in `steps`; None for the sampler's own default.
    """

    sampler: str
    steps: Mapping[str | None, int] = field(default_factory=dict)
    others: int | None = None


FROM_NOISE = SamplingDefaults(DEFAULT_SAMPLER)
FROM_IMAGE = SamplingDefaults("ddpm", {None: 50})
"""Of tasks that begin with an image: only a sampler that adds noise all the way lets what is painted come to fit what
is known (docs/inpainting.md). The steps are over all timesteps."""
ON_CANVAS = SamplingDefaults("dpm++", {None: 12, "dpm++": 12})
"""Of slides: a step costs more where it is taken over a whole slide, and 12 of these are enough."""
ON_SCREEN = replace(ON_CANVAS, others=20)
"""Of `serve`: the same, but a tile must be there soon."""


def resolve(
    request: SamplingRequest, denoiser: NoisePredictor, default: SamplingDefaults = FROM_NOISE
) -> SamplingRequest:
    """The request with its sampler and steps filled in: the task's, or the sampler's own, at most all timesteps.

    Resolving again changes nothing. Raises InputError for an unknown sampler, and for steps or NCA steps that the model
    cannot do.
    """
    name, sampler = find_sampler(request.sampler or default.sampler)
    most = denoiser.diffusion.timesteps
    steps = request.steps
    if steps is None:
        of_task = default.steps.get(request.sampler) or default.others
        steps = min(of_task or sampler.default_steps or most, most)
    if not 1 <= steps <= most:
        raise InputError(f"sampling steps is {steps}, but this model has timesteps for 1 to {most}")
    denoiser.check_nca_steps(request.nca_steps)
    return replace(request, sampler=name, steps=steps)
