"""One sampling step of a region of a canvas, exactly as the run of the whole canvas would take it.

A model that knows nothing beyond its `receptive_range` needs that many cells around a region (the halo), read as the
step before left them. Where the canvas ends there is no halo: there the model's own border is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.diffusion.known import Known
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.sampling import Stepper
from morphogen.pyramids.region import Region


def halo_of(denoiser: NoisePredictor) -> int:
    """How many pixels around a region a step reads. Raises InputError, with the reason, where tiles are not exact."""
    if denoiser.inexact_in_tiles is not None or denoiser.receptive_range is None:
        reason = denoiser.inexact_in_tiles or "it reads the whole image"
        raise InputError(f"this {denoiser.family} cannot be painted in tiles exactly: {reason}")
    return denoiser.receptive_range


def with_halo(denoiser: NoisePredictor, region: Region, canvas: tuple[int, int]) -> Region:
    """The input of a step of a region: the region and its halo, in whole cells of the model, within the canvas."""
    cell, outer = denoiser.cell_size, region.grown(halo_of(denoiser), canvas)
    top, left = -(-outer.y // cell) * cell, -(-outer.x // cell) * cell
    bottom, right = outer.y + outer.height, outer.x + outer.width
    bottom -= bottom % cell if bottom < canvas[0] else 0
    right -= right % cell if right < canvas[1] else 0
    return Region(top, left, bottom - top, right - left)


def decoded_from(denoiser: NoisePredictor, region: Region, canvas: tuple[int, int], block: int | None = None) -> Region:
    """The cells of a canvas of latents that decoding a region of it, in blocks of so many cells, reads."""
    (top, bottom), (left, right) = (
        denoiser.decoding_reads((first, first + count), length, block)
        for first, count, length in ((region.y, region.height, canvas[0]), (region.x, region.width, canvas[1]))
    )
    return Region(top, left, bottom - top, right - left)


@torch.no_grad()
def step_region(
    stepper: Stepper,
    i: int,
    seed: int,
    region: Region,
    canvas: tuple[int, int],
    kept: Tensor | None,
    known: Known | None = None,
    active: Tensor | None = None,
    condition: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The result of evaluation number i in a region: the noisy images and, of a sampler that looks back, its
    history, float (1, `stepper.kept_channels`, height, width).

    canvas: (height, width) of the whole. kept: the same of the region `with_halo` after the evaluation before; None for
    the first. known, active, condition: of the same larger region. noise: what the first begins with, likewise, instead
    of the seed's.
    """
    outer = with_halo(stepper.denoiser, region, canvas)
    key = Key((seed,), i, ((outer.y, outer.x),), canvas)
    if kept is None:
        noisy, history = stepper.begin(key.at(0), outer.size) if noise is None else noise, None
    else:
        noisy, history = stepper.resume(i, kept)
    after = stepper.keep(stepper.step(i, noisy, Evaluation(key, active=active, condition=condition), history, known))
    rows, columns = region.within(outer)
    return after[..., rows, columns]
