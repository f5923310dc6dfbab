"""Filling holes: what is known enters at the noise level of every timestep, and the hole is denoised around it.

After Kalkhof et al., section 3.3 ("inpainting"), with the resampling of RePaint as an option. Only the cells of the
hole and of a context around it update. In latents, a cell is filled where any of its pixels is in the hole, and the
known pixels are put back after decoding. The key stays that of the whole canvas: a model that computes only a part of
it keeps absolute positions, so that noise and fire masks do not depend on what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.known import Known, Resampling
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.request import FROM_IMAGE, resolve
from morphogen.diffusion.sampling import sample
from morphogen.tasks.checks import check_images, need_painting, with_known
from morphogen.tasks.climb import fill_levels


def inpaint(
    model: Model,
    images: Tensor,
    hole: Tensor,
    seeds: Sequence[int] | Key,
    *,
    context: int | None = None,
    resampling: Resampling | None = None,
    request: SamplingRequest = SamplingRequest(),
    labels: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Images float (B, C, H, W), about [-1, 1], filled where `hole` is and exactly as given elsewhere.

    hole: boolean (B, 1, H, W). seeds: one an image, or the key of images that are windows of larger ones. context: how
    many cells around the hole update as well; the model's own `context` by default, with which a model whose cells are
    normalised one by one fills the hole as if all cells updated; 0 is the paper's. Models that are no automata compute
    everything. resampling: slower, and the fill fits better.
    labels: float (B, K), a row an image, of a model that has any.
    Raises InputError for a model that predicts no noise, an empty or full hole, and for images, seeds or settings that
    cannot be.
    """
    denoiser = need_painting(model, "inpainting")
    check_images(model, images, seeds)
    if hole.dtype != torch.bool or hole.shape != (len(images), 1, *images.shape[-2:]):
        raise InputError(
            f"the hole is {hole.dtype} of the shape {tuple(hole.shape)}; it should be boolean of the shape "
            f"{(len(images), 1, *images.shape[-2:])}"
        )
    marked = hole.flatten(1)
    if not marked.any(dim=1).all():
        raise InputError("the hole is empty: there is nothing to fill")
    if marked.all(dim=1).any():
        raise InputError("the hole is the whole image: nothing is known of it; generate one instead")
    if context is not None and context < 0:
        raise InputError(f"the context is {context}; it should be 0 or more")
    key = seeds if isinstance(seeds, Key) else Key.of(seeds)
    if isinstance(model, Ladder):
        rows = None if labels is None else labels.to(denoiser.device)
        images, hole = images.to(denoiser.device), hole.to(denoiser.device)
        filled = fill_levels(model, images, hole, key, context, resampling, request, rows, callback, dilate)
        return filled.where(hole, images)
    request = resolve(request, denoiser, FROM_IMAGE)
    around = denoiser.context if context is None else context
    images, hole = images.to(denoiser.device), hole.to(denoiser.device)
    size = denoiser.grid_size((images.shape[-2], images.shape[-1]))
    seen, cells = images, hole
    if denoiser.latents is not None:
        cells = F.max_pool2d(hole.float(), denoiser.latents.factor) > 0
        seen = denoiser.from_pixels(images.where(~hole, _known_mean(images, hole)))
    filled = sample(
        denoiser,
        key,
        size,
        request,
        labels=None if labels is None else labels.to(denoiser.device),
        clip=denoiser.latents is None,
        known=Known(seen, (~cells).to(seen)),
        active=None if around is None else dilate(cells, around),
        resampling=resampling,
        callback=with_known(callback, seen, cells),
    )
    return denoiser.to_pixels(filled).where(hole, images)


def _known_mean(images: Tensor, hole: Tensor) -> Tensor:
    """The mean colour (B, C, 1, 1) of the known pixels: what an encoder, which reads around, may see in the hole."""
    known = (~hole).to(images)
    return (images * known).sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True)


def dilate(mask: Tensor, cells: int) -> Tensor:
    """A boolean mask (B, 1, H, W) grown by a number of cells in the eight directions."""
    grown = mask.float()
    for kernel in ((2 * cells + 1, 1), (1, 2 * cells + 1)):
        if cells:
            padding = (kernel[0] // 2, kernel[1] // 2)
            padded = F.pad(grown, (padding[1], padding[1], padding[0], padding[0]))
            grown = F.max_pool2d(padded, kernel, stride=1)
    return grown > 0
