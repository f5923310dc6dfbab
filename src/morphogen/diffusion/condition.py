"""A coarser picture as a condition: shrinking, the noise put on it, and enlarging it by a fixed filter.

Enlarging is linear between the centres of the coarser pixels, by weights that depend on a pixel's place in its coarser
pixel alone; so a part of a canvas is told what the whole is told, bit for bit. It reads one coarser pixel around. The
noise is that of "conditioning augmentation" (Ho et al., "Cascaded diffusion models for high fidelity image generation",
2022, section 4): a model that has learnt from noised pictures bears what a coarser model really paints.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.condition import ConditionConfig
from morphogen.core.keys import Key
from morphogen.core.random import Purpose, mix

Span = tuple[int, int]
"""First row (or column) and the one after the last."""


def shrink(images: Tensor, factor: int) -> Tensor:
    """Images (B, C, H, W) shrunk by the mean of squares of `factor` pixels; those at the end may be smaller."""
    height, width = images.shape[-2:]
    beyond = (0, -width % factor, 0, -height % factor)
    if not any(beyond):
        return F.avg_pool2d(images, factor)
    sums, inside = (F.avg_pool2d(F.pad(x, beyond), factor) for x in (images, images.new_ones(1, 1, height, width)))
    return sums / inside


def reads(span: Span, factor: int, length: int) -> Span:
    """The coarser rows that enlarging reads for rows of an image. length: coarser rows of the whole canvas."""
    first = math.floor((span[0] + 0.5) / factor - 0.5)
    last = math.floor((span[1] - 0.5) / factor - 0.5) + 1
    return max(0, first), min(length, last + 1)


def enlarge(
    picture: Tensor, factor: int, size: tuple[int, int], begin: Span = (0, 0), at: Span = (0, 0), of: Span | None = None
) -> Tensor:
    """A coarser picture (B, C, h, w) enlarged to images (B, C, *size).

    begin: the first row and column of the images on their canvas. at: of the picture on the coarser canvas, whose
    height and width are `of`, by default the picture's own.
    """
    of = of or (picture.shape[-2], picture.shape[-1])
    for axis in (0, 1):
        places = torch.arange(begin[axis], begin[axis] + size[axis], device=picture.device)
        phase = (2 * places + 1 - factor) % (2 * factor)  # in halves of a pixel, from the centre before
        lower = (2 * places + 1 - factor).div(2 * factor, rounding_mode="floor")
        before, after = (k.clamp(0, of[axis] - 1) - at[axis] for k in (lower, lower + 1))
        share = (phase.to(picture.dtype) / (2 * factor)).view((-1, 1) if axis == 0 else (-1,))
        dim = axis - 2
        # Products and sums apart: each is rounded once, whatever a processor could fuse.
        picture = (picture.index_select(dim, before) * (1 - share)) + (picture.index_select(dim, after) * share)
    return picture


def noised(picture: Tensor, amounts: Tensor, key: Key) -> Tensor:
    """A coarser picture (B, C, h, w) with noise of `amounts` (B,), and a channel that tells them.

    key: on the canvas of coarser pixels.
    """
    noise = key.normals(Purpose.CONDITION_NOISE, picture.shape[1], (picture.shape[2], picture.shape[3]), picture.device)
    amounts = amounts.to(picture).view(-1, 1, 1, 1)
    return torch.cat([picture + noise * amounts, amounts.expand(-1, 1, *picture.shape[-2:])], dim=1)


def in_training(config: ConditionConfig, images: Tensor, key: Key) -> Tensor:
    """The condition (B, K, H, W) that training tells of images (B, C, H, W): their own, noised by a random amount."""
    drawn = [mix(seed, Purpose.CONDITION_NOISE, key.evaluation) / 2**64 for seed in key.seeds]
    told = noised(shrink(images, config.factor), torch.tensor(drawn) * config.noise, key)
    return enlarge(told, config.factor, (images.shape[-2], images.shape[-1]))


def in_sampling(
    config: ConditionConfig,
    picture: Tensor,
    key: Key,
    size: tuple[int, int],
    amount: float | None = None,
    at: Span = (0, 0),
) -> Tensor:
    """The condition (B, K, *size) that tells a coarser picture (B, C, h, w), with the noise that hides its faults.

    key: of the images, with the place of their first pixel on the canvas where they are a part of one. at: the place
    of the picture on the canvas of coarser pixels. amount: of noise, instead of the model's own.
    """
    amount = config.sampling_noise if amount is None else amount
    canvas = key.canvas or size
    coarse = replace(key.at(0), origins=(at,) * len(key), canvas=config.coarse(canvas))
    told = noised(picture, torch.full((len(key),), float(amount)), coarse)
    begins = set(key.placed())
    if len(begins) > 1:
        parts = zip(told.chunk(len(told)), key.placed(), strict=True)
        return torch.cat(
            [enlarge(part, config.factor, size, begin, at, config.coarse(canvas)) for part, begin in parts]
        )
    return enlarge(told, config.factor, size, begins.pop(), at, config.coarse(canvas))
