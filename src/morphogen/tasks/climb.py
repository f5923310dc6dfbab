"""Varying and filling pictures by a pyramid: level by level, each told what the one before has painted."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from morphogen.core.keys import Key
from morphogen.core.model import Callback
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.condition import shrink
from morphogen.diffusion.known import Known, Resampling
from morphogen.diffusion.ladder import Ladder, of_all_levels
from morphogen.diffusion.request import FROM_IMAGE, resolve
from morphogen.diffusion.sampling import sample


def vary_levels(
    ladder: Ladder,
    images: Tensor,
    key: Key,
    strength: float,
    request: SamplingRequest,
    labels: Tensor | None,
    callback: Callback | None,
) -> Tensor:
    """As `vary`: every level begins with the image as it looks at its scale, noised as far."""
    size = (images.shape[-2], images.shape[-1])
    painted: Tensor | None = None
    for number, there in enumerate(ladder.sizes(size)):
        painted = sample(
            ladder[number],
            ladder.key(key, number),
            there,
            resolve(request, ladder[number], FROM_IMAGE),
            labels=labels,
            image=shrink(images, ladder.scale(number)),
            strength=strength,
            condition=ladder.condition(number, painted, key, there),
            callback=of_all_levels(callback, number, len(ladder)),
        )
    assert painted is not None
    return painted


def fill_levels(
    ladder: Ladder,
    images: Tensor,
    hole: Tensor,
    key: Key,
    context: int | None,
    resampling: Resampling | None,
    request: SamplingRequest,
    labels: Tensor | None,
    callback: Callback | None,
    grow: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """As `inpaint`: at every level the pixels that the hole touches are filled, from what is known of the others.

    context: of the finest level's cells; coarser ones activate as many of their own. grow: a mask by a number of cells.
    """
    size = (images.shape[-2], images.shape[-1])
    painted: Tensor | None = None
    for number, there in enumerate(ladder.sizes(size)):
        level, scale = ladder[number], ladder.scale(number)
        share = shrink((~hole).to(images), scale)  # of each pixel's area that is known
        known = shrink(images * ~hole, scale) / share.clamp(min=1e-6)
        free = share < 1
        around = level.context if context is None else context
        filled = sample(
            level,
            ladder.key(key, number),
            there,
            resolve(request, level, FROM_IMAGE),
            labels=labels,
            known=Known(known, (~free).to(images)),
            active=None if around is None else grow(free, around),
            resampling=resampling,
            condition=ladder.condition(number, painted, key, there),
            callback=of_all_levels(callback, number, len(ladder)),
        )
        painted = filled.where(free, known)
    assert painted is not None
    return painted
