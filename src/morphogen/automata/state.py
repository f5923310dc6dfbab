"""The channels of a cell, and the states that a grid of cells starts from.

A cell's first F channels never change: the noisy image, and after it its condition,
if anything. Of C channels of the image, F..F+C-1 are the noise output, from which the prediction is read; then hidden
ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


def seed_state(fixed: Tensor, channels: int) -> Tensor:
    """The state (B, channels, H, W) that starts from fixed channels (B, F, H, W): every other channel is zero."""
    batch, count, height, width = fixed.shape
    rest = fixed.new_zeros(batch, channels - count, height, width)
    return torch.cat([fixed, rest], dim=1).contiguous(memory_format=torch.channels_last)


def read_noise(state: Tensor, fixed: int, image_channels: int) -> Tensor:
    """The predicted noise (B, image_channels, H, W) in a state (B, channels, H, W) with `fixed` fixed channels."""
    return state[:, fixed : fixed + image_channels]
