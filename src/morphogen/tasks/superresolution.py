"""Larger pictures of which the given one is what remains when they are shrunk again.

By a level that was trained to be told a picture `factor` times as coarse, or, of a model without such a level, by
projecting what it samples onto the pictures that shrink to the given one (`Projection`), from noise that leaves the
coarse shapes: 0.3 of all timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model, StepInfo
from morphogen.core.random import Purpose, mix
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.condition import enlarge, in_sampling
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.projection import Input, Projection
from morphogen.diffusion.request import FROM_IMAGE, SamplingDefaults, resolve
from morphogen.diffusion.sampling import sample
from morphogen.tasks.checks import check_share, need_denoiser

Scheme = Literal["auto", "trained", "projection", "published"]
SMALLEST_FACTOR, LARGEST_FACTOR = 2, 8
NOISE = {"trained": 1.0, "projection": 0.3, "published": 0.9}
"""The share of all timesteps that each scheme starts from."""
_DEFAULTS = {
    "trained": SamplingDefaults("ddpm", {None: 24}),
    "projection": SamplingDefaults("ddpm", {None: 27}),  # 8 of them are taken
    "published": FROM_IMAGE,
}


@dataclass(frozen=True)
class Way:
    """How a model enlarges pictures: by which scheme, and by which denoiser."""

    scheme: Literal["trained", "projection", "published"]
    denoiser: Denoiser

    @property
    def defaults(self) -> SamplingDefaults:
        """Its sampler and steps where the user names none."""
        return _DEFAULTS[self.scheme]


def find_way(model: Model, factor: int, scheme: Scheme = "auto") -> Way:
    """How a model makes pictures `factor` times as large. Raises InputError where it cannot, in this way."""
    if scheme not in get_args(Scheme):
        raise InputError(f"the scheme is '{scheme}'; choose one of {', '.join(get_args(Scheme))}")
    if not SMALLEST_FACTOR <= factor <= LARGEST_FACTOR:
        raise InputError(f"the factor is {factor}; it should be from {SMALLEST_FACTOR} to {LARGEST_FACTOR}")
    levels = [model[k] for k in range(len(model))] if isinstance(model, Ladder) else [need_denoiser(model, "upscaling")]
    told = {
        level.condition.factor: level for level in levels if level.condition is not None and level.condition.has_picture
    }
    if scheme in ("auto", "trained") and factor in told:
        return Way("trained", told[factor])
    if scheme == "trained":
        known = f"it has levels for {' and '.join(map(str, sorted(told)))}" if told else "no level is told a picture"
        raise InputError(f"the scheme is trained, but {known}, and the factor is {factor}; use --scheme projection")
    first = levels[0]
    if first.condition is not None and first.condition.has_picture:
        raise InputError(f"this model is told pictures {first.condition.factor} times as coarse; use that factor")
    if scheme == "published" or first.latents is not None:
        if scheme == "projection":
            raise InputError("projection needs a model of pixels; this one works in latents: use --scheme published")
        if factor not in (2, 4, 8):
            raise InputError(f"the factor is {factor}; the published scheme makes 2, 4 or 8")
        return Way("published", levels[-1] if len(levels) == 1 else first)
    return Way("projection", first)


def superresolve(
    way: Way,
    images: Tensor,
    seeds: Sequence[int],
    factor: int,
    *,
    noise: float | None = None,
    mean: int = 1,
    input: Input = "area",
    request: SamplingRequest = SamplingRequest(),
    labels: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Images float (B, C, factor H, factor W), within [-1, 1], whose small pictures are the given ones (B, C, H, W).

    way: trained or by projection. noise: the share of all timesteps that is noised to; 1 starts from nothing else.
    mean: samples that are averaged: smoother, and nearer to the truth in PSNR. input: how the given pictures were
    made: area, by the mean of squares of pixels, or sample, of one pixel of each. request: its steps are those of a
    noise of 1. labels: float (B, K), a row an image, of a model that has any.
    Raises InputError for images, seeds or settings that cannot be.
    """
    denoiser = way.denoiser
    if input not in get_args(Input):
        raise InputError(f"the input is '{input}'; choose area or sample")
    if not 1 <= mean <= 1000:
        raise InputError(f"the mean of {mean} samples cannot be taken; it should be 1 to 1000")
    noise = NOISE[way.scheme] if noise is None else noise
    check_share(noise, "noise")
    if images.ndim != 4 or images.shape[1] != denoiser.image.channels or len(images) != len(seeds):
        raise InputError(
            f"the images have the shape {tuple(images.shape)}; it should be ({len(seeds)}, {denoiser.image.channels}, "
            "height, width), with a seed for each"
        )
    size = (factor * images.shape[-2], factor * images.shape[-1])
    if min(size) < denoiser.minimum_size:
        raise InputError(
            f"images of {images.shape[-2]}x{images.shape[-1]} are too small: {denoiser.family} needs at least "
            f"{-(-denoiser.minimum_size // factor)} on each side"
        )
    request = resolve(request, denoiser, way.defaults)
    images = images.to(denoiser.device)
    given = Projection(images, factor, input)
    start = given.onto(enlarge(images, factor, size), clip=True)
    if noise == 0:
        return start
    total = torch.zeros_like(start)
    for number in range(mean):
        key = Key.of([seed if number == 0 else mix(seed, Purpose.LEVEL, number) for seed in seeds])
        told = None
        if way.scheme == "trained":
            assert denoiser.condition is not None
            told = in_sampling(denoiser.condition, images, key, size, amount=0.0)  # what is given has no faults
        total += sample(
            denoiser,
            key,
            size,
            request,
            labels=None if labels is None else labels.to(denoiser.device),
            image=None if noise == 1 else start,
            strength=noise,
            condition=told,
            projection=given,
            callback=_of_all(callback, number, mean),
        )
    return given.onto(total / mean, clip=True)


def _of_all(callback: Callback | None, number: int, count: int) -> Callback | None:
    """The callback of one of several samples: told the steps of all, as if they were one run."""
    if callback is None or count == 1:
        return callback

    def report(now: StepInfo) -> Tensor | None:
        return callback(replace(now, step=number * now.steps + now.step, steps=count * now.steps))

    return report
