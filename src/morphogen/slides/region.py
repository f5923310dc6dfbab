"""One sampling step of a region of a canvas, exactly as the run of the whole canvas would take it.

A model that knows nothing beyond its `receptive_range` needs that many cells around a region (the halo), read as the
step before left them. Where the canvas ends there is no halo: there the model's own border is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.known import Known
from morphogen.diffusion.samplers import Stepper


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels of a canvas: its first row and column, its height and width."""

    y: int
    x: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def rows(self) -> slice:
        """Its rows of the canvas."""
        return slice(self.y, self.y + self.height)

    @property
    def columns(self) -> slice:
        """Its columns of the canvas."""
        return slice(self.x, self.x + self.width)

    def grown(self, pixels: int, canvas: tuple[int, int]) -> Region:
        """The region and so many pixels around it, as far as the canvas (height, width) reaches."""
        top, left = max(0, self.y - pixels), max(0, self.x - pixels)
        bottom = min(canvas[0], self.y + self.height + pixels)
        right = min(canvas[1], self.x + self.width + pixels)
        return Region(top, left, bottom - top, right - left)

    def within(self, outer: Region) -> tuple[slice, slice]:
        """Its rows and columns in an array that holds `outer`."""
        y, x = self.y - outer.y, self.x - outer.x
        return slice(y, y + self.height), slice(x, x + self.width)


def halo_of(denoiser: Denoiser) -> int:
    """How many pixels around a region a step reads. Raises InputError, with the reason, where tiles are not exact."""
    if denoiser.inexact_in_tiles is not None or denoiser.receptive_range is None:
        reason = denoiser.inexact_in_tiles or "it reads the whole image"
        raise InputError(f"this {denoiser.family} cannot be painted in tiles exactly: {reason}")
    return denoiser.receptive_range


def with_halo(denoiser: Denoiser, region: Region, canvas: tuple[int, int]) -> Region:
    """What a step of a region reads: the region and its halo, in whole cells of the model, within the canvas."""
    cell, outer = denoiser.cell_size, region.grown(halo_of(denoiser), canvas)
    top, left = -(-outer.y // cell) * cell, -(-outer.x // cell) * cell
    bottom, right = outer.y + outer.height, outer.x + outer.width
    bottom -= bottom % cell if bottom < canvas[0] else 0
    right -= right % cell if right < canvas[1] else 0
    return Region(top, left, bottom - top, right - left)


def check_steps_alone(stepper: Stepper) -> None:
    """Raise InputError for a sampler whose steps cannot be taken by themselves."""
    if stepper.sampler.history:
        from morphogen.diffusion.samplers import SAMPLERS

        alone = ", ".join(name for name, known in SAMPLERS.items() if not known.history)
        raise InputError(
            f"the sampler {stepper.name} needs what its earlier steps left behind, which tiles don't keep; "
            f"choose one of {alone}"
        )


@torch.no_grad()
def step_region(
    stepper: Stepper,
    i: int,
    seed: int,
    region: Region,
    canvas: tuple[int, int],
    noisy: Tensor | None,
    known: Known | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """A region (1, C, height, width) after evaluation number i.

    canvas: (height, width) of the whole. noisy: float (1, C, …), the region `with_halo` as the evaluation before
    left it; None to make it, for the first. known, active: of the same larger region.
    """
    outer = with_halo(stepper.denoiser, region, canvas)
    key = Key((seed,), i, ((outer.y, outer.x),), canvas)
    if noisy is None:
        noisy = stepper.begin(key.at(0), outer.size)
    after = stepper.step(i, noisy, key, known=known, active=active).x
    rows, columns = region.within(outer)
    return after[..., rows, columns]
