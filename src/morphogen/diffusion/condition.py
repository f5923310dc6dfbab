"""A coarser picture and a map of classes as a condition.

The picture is shrunk, noised, and enlarged by a fixed filter; of the map each class is a channel.

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

from morphogen.core.condition import UNKNOWN, ConditionConfig
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


def of_map(config: ConditionConfig, maps: Tensor | None, like: Tensor) -> Tensor:
    """The channels (B, classes, H, W) that tell maps: uint8 (B, H, W), the number of each pixel's class, or UNKNOWN.

    like: images (B, C, H, W). None, and what is unknown, are zeros: the model is told nothing.
    """
    shape = (len(like), config.map_channels, *like.shape[-2:])
    if maps is None:
        return like.new_zeros(shape)
    numbers = torch.arange(config.map_channels, device=like.device).view(1, -1, 1, 1)
    return (maps.to(like.device)[:, None] == numbers).to(like.dtype).expand(shape)


def shrink_map(maps: Tensor, factor: int) -> Tensor:
    """Maps uint8 (B, H, W) shrunk to what most pixels of each square are, of equally many the first class.

    Pixels of no class count where there are no others. Squares at the end may be smaller.
    """
    if factor == 1:
        return maps
    found = maps.new_full((len(maps), -(-maps.shape[1] // factor), -(-maps.shape[2] // factor)), UNKNOWN)
    most = torch.zeros(found.shape, device=maps.device)
    beyond = (0, -maps.shape[2] % factor, 0, -maps.shape[1] % factor)
    for number in torch.unique(maps).tolist():
        if number != UNKNOWN:
            share = F.avg_pool2d(F.pad((maps == number).float()[:, None], beyond), factor)[:, 0]
            found, most = found.where(share <= most, number), torch.maximum(share, most)
    return found


def in_training(config: ConditionConfig, images: Tensor, key: Key, maps: Tensor | None = None) -> Tensor:
    """The condition (B, K, H, W) that training tells of images (B, C, H, W): their own, noised by a random amount.

    maps: their maps uint8 (B, H, W), some of which are hidden.
    """
    parts = []
    if config.has_picture:
        drawn = [mix(seed, Purpose.CONDITION_NOISE, key.evaluation) / 2**64 for seed in key.seeds]
        told = noised(shrink(images, config.factor), torch.tensor(drawn) * config.noise, key)
        parts.append(enlarge(told, config.factor, (images.shape[-2], images.shape[-1])))
    if config.classes:
        limit = round(config.dropout * 2**64)
        shown = [mix(seed, Purpose.LABEL_DROPOUT, key.evaluation) >= limit for seed in key.seeds]
        told = of_map(config, maps, images)
        parts.append(told * torch.tensor(shown, device=told.device).view(-1, 1, 1, 1))
    return torch.cat(parts, dim=1)


def in_sampling(
    config: ConditionConfig,
    picture: Tensor,
    key: Key,
    size: tuple[int, int],
    amount: float | None = None,
    at: Span = (0, 0),
    maps: Tensor | None = None,
) -> Tensor:
    """The condition (B, K, *size) that tells a coarser picture (B, C, h, w), with the noise that hides its faults.

    key: of the images, with the place of their first pixel on the canvas where they are a part of one. at: the place
    of the picture on the canvas of coarser pixels. amount: of noise, instead of the model's own. maps: of the same
    pixels as the images, uint8 (B, *size).
    """
    told = _of_picture(config, picture, key, size, amount, at)
    return torch.cat([told, of_map(config, maps, told)], dim=1) if config.classes else told


def of_images(config: ConditionConfig, images: Tensor, key: Key, maps: Tensor | None = None) -> Tensor:
    """The condition (B, K, H, W) that tells real images (B, C, H, W) and their maps uint8 (B, H, W)."""
    if not config.has_picture:
        return of_map(config, maps, images)
    size = (images.shape[-2], images.shape[-1])
    return in_sampling(config, shrink(images, config.factor), key, size, maps=maps)


def without_map(config: ConditionConfig, condition: Tensor) -> Tensor:
    """A condition (B, K, H, W) that tells nothing of its map."""
    kept = config.channels - config.map_channels
    return torch.cat([condition[:, :kept], torch.zeros_like(condition[:, kept:])], dim=1)


def _of_picture(
    config: ConditionConfig, picture: Tensor, key: Key, size: tuple[int, int], amount: float | None, at: Span
) -> Tensor:
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
