"""The channels of a cell, and the states that a grid of cells starts from.

For C image channels a cell's channels are: 0..C-1 the noisy image, which never changes; C..2C-1 the noise output, from
which the prediction is read; 2C.. hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


def seed_state(noisy: Tensor, channels: int) -> Tensor:
    """The state (B, channels, H, W) that starts from a noisy image (B, C, H, W): every other channel is zero."""
    batch, image_channels, height, width = noisy.shape
    rest = noisy.new_zeros(batch, channels - image_channels, height, width)
    return torch.cat([noisy, rest], dim=1).contiguous(memory_format=torch.channels_last)


def read_noise(state: Tensor, image_channels: int) -> Tensor:
    """The predicted noise (B, C, H, W) in a state (B, channels, H, W)."""
    return state[:, image_channels : 2 * image_channels]
