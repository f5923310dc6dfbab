"""Twice as large, by painting the pixels between the known ones (Kalkhof et al., section 3.3, "super-resolution").

Each pixel becomes the upper left one of a square of four, [[1, 0], [0, 0]]; the other three begin with its value. All
is noised to a share of the timesteps and denoised; the known pixels enter at every noise level, and a little of the
enlarged original is blended into the others at every step, which keeps them close to it. In latents, where no cell is a
given pixel, it is blended into all, and the given pixels are put back after decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model, StepInfo
from morphogen.core.random import mix
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.known import Known
from morphogen.diffusion.projection import repeated
from morphogen.diffusion.request import FROM_IMAGE, resolve
from morphogen.diffusion.sampling import sample
from morphogen.tasks.checks import check_images, check_share, need_denoiser, with_known

FACTORS = (2, 4, 8)
BLEND = 0.02  # as published


def upscale(
    model: Model,
    images: Tensor,
    seeds: Sequence[int],
    factor: int = 2,
    *,
    noise: float = 0.9,
    blend: float = BLEND,
    clean: bool = False,
    added_only: bool = False,
    request: SamplingRequest = SamplingRequest(),
    labels: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Images float (B, C, factor * H, factor * W), about [-1, 1]; the pixels [::factor, ::factor] are the given ones.

    factor: 2, or 4 or 8 by repetition. noise: the share of all timesteps that is noised to; 0 leaves the nearest
    pixels. blend: the share of the enlarged original that is blended into the added pixels at each sampling step.
    clean: blend it in without noise. added_only: the cells of given pixels run no NCA steps, the strictest reading of
    the publication; by default all run, which paints much better (docs/upscaling.md). request: its steps are
    those of a noise of 1, for each doubling; a lower noise takes its share of them.
    labels: float (B, K), a row an image, of a model that has any.
    Raises InputError for a model that predicts no noise, and for images, seeds or settings that cannot be.
    """
    denoiser = need_denoiser(model, "upscaling")
    check_factor(factor)
    check_share(noise, "noise")
    check_share(blend, "blend")
    request = resolve(request, denoiser, FROM_IMAGE)
    large = images.to(denoiser.device)
    doublings = FACTORS.index(factor) + 1
    for k in range(doublings):
        # Each doubling has seeds of its own, or its noise would repeat the last one's at the same places.
        own = seeds if k == 0 else [mix(seed, k) for seed in seeds]
        share = _Share(k, doublings, callback)
        report = share.report if callback is not None else None
        large = _double(denoiser, large, own, noise, blend, clean, added_only, request, labels, report)
    return large


def check_factor(factor: int) -> None:
    """Raise InputError unless the factor is 2, 4 or 8."""
    if factor not in FACTORS:
        raise InputError(f"the factor is {factor}; it should be 2, 4 or 8")


def original_pixels(height: int, width: int, factor: int) -> Tensor:
    """Boolean (factor * height, factor * width): which pixels of the large image are the given ones."""
    kept = torch.zeros(factor * height, factor * width, dtype=torch.bool)
    kept[::factor, ::factor] = True
    return kept


class _Share:
    """Counts the steps of all doublings for the callback, as if they were one run."""

    def __init__(self, before: int, doublings: int, callback: Callback | None) -> None:
        self.before, self.doublings, self.callback = before, doublings, callback

    def report(self, now: StepInfo) -> Tensor | None:
        assert self.callback is not None
        step, steps = self.before * now.steps + now.step, self.doublings * now.steps
        return self.callback(replace(now, step=step, steps=steps))


def _double(
    denoiser: Denoiser,
    images: Tensor,
    seeds: Sequence[int],
    noise: float,
    blend: float,
    clean: bool,
    added_only: bool,
    request: SamplingRequest,
    labels: Tensor | None,
    callback: Callback | None,
) -> Tensor:
    check_images(denoiser, images, seeds)
    height, width = images.shape[-2:]
    start = repeated(images, 2)
    added = ~original_pixels(height, width, 2).to(images.device).expand(len(images), 1, -1, -1)
    size = denoiser.grid_size((2 * height, 2 * width))
    if noise == 0:
        return start
    seen, free = start, added
    if denoiser.latents is not None:
        seen = denoiser.from_pixels(start)
        free = torch.ones(len(images), 1, *size, dtype=torch.bool, device=start.device)
    painted = sample(
        denoiser,
        Key.of(seeds),
        size,
        request,
        labels=None if labels is None else labels.to(denoiser.device),
        clip=denoiser.latents is None,
        image=seen,
        strength=noise,
        known=Known(seen, torch.where(free, blend, 1.0), clean),
        active=free if added_only else None,
        callback=with_known(callback, seen, free),
    )
    return denoiser.to_pixels(painted).where(added, start)
