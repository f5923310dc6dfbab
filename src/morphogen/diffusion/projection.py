"""Holding what is sampled to a small picture of it (DDNM: Wang, Yu and Zhang, "Zero-shot image restoration using
denoising diffusion null-space model", ICLR 2023, equation 10): x0 <- x0 - A+ (A x0 - y), with A what made the small
picture y, and A+ the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morphogen.diffusion.condition import shrink

Input = Literal["area", "sample"]


def repeated(images: Tensor, factor: int) -> Tensor:
    """Images (..., H, W) enlarged by repeating every pixel."""
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


@dataclass(frozen=True, eq=False)
class Projection:
    """The clean images nearest to given ones of which the small picture is exactly what is known.

    small: float (B, C, h, w). input: how it was made of the large one: area, the mean of squares of `factor` pixels, or
    sample, the upper left pixel of each.
    """

    small: Tensor
    factor: int
    input: Input = "area"

    def small_of(self, clean: Tensor) -> Tensor:
        """A: the small pictures of clean images (B, C, factor h, factor w)."""
        return shrink(clean, self.factor) if self.input == "area" else clean[..., :: self.factor, :: self.factor]

    def onto(self, clean: Tensor, clip: bool) -> Tensor:
        """Clean images (B, C, H, W) projected; within [-1, 1], where they are clipped."""
        if self.input == "sample":
            clean = clean.clone()
            clean[..., :: self.factor, :: self.factor] = self.small
            return clean.clamp(-1, 1) if clip else clean
        clean = clean + repeated(self.small - shrink(clean, self.factor), self.factor)
        if not clip:
            return clean
        # What clipping has taken from a square is given to its pixels in proportion to the room that each has left.
        clean = clean.clamp(-1, 1)
        lacking = self.small - shrink(clean, self.factor)
        room = torch.where(repeated(lacking, self.factor) > 0, 1 - clean, 1 + clean)
        share = lacking / shrink(room, self.factor).clamp(min=1e-6)
        return (clean + room * repeated(share, self.factor)).clamp(-1, 1)
