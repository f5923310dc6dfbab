"""Counter-based random numbers that are a function of coordinates.

Every number is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) of a 128-bit
counter, the absolute 64-bit position (y, x) on the canvas, under a 64-bit key made of everything else: the image's
seed, the purpose, the evaluation counter, the NCA step and the channel. So a cell gets the same number whichever
batch, tile, worker or device computes it. Bits are exact integer arithmetic on every device; normals are computed
in float64 and rounded once to float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_ROUNDS = 10
_BAND_CELLS = 2**20
MAX_SEED = _MASK64


class Purpose(IntEnum):
    """The purpose of a random number; part of its key, so that uses never share numbers."""

    SAMPLE = 1  # which training image, crop, flip and timestep
    INITIAL_NOISE = 2  # the noise that sampling starts from
    TRAINING_NOISE = 3  # the noise added to a training image
    SAMPLER_NOISE = 4  # the noise a stochastic sampler adds after an evaluation
    FIRE = 5  # which cells update in an NCA step
    SEED_STATE = 6  # random channels of a seed state
    TASK_NOISE = 7  # noise that tasks put on known pixels
    RESAMPLING_NOISE = 8  # noise that resampling adds to go back in time
    LABEL_DROPOUT = 9  # which labels a training step hides
    CONDITION_NOISE = 10  # noise put on the picture that a model is told
    LEVEL = 11  # what a level of a pyramid paints


def mix(*words: int) -> int:
    """Hash integers (each taken modulo 2**64) into one 64-bit integer; a chain of SplitMix64 finalisers."""
    state = 0x243F6A8885A308D3
    for word in words:
        state = (state ^ (word & _MASK64)) & _MASK64
        state = (state + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def fire_threshold(rate: float) -> int:
    """The threshold below which a 32-bit word lies with probability `rate`."""
    return round(rate * 2**32)


def philox(keys: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10. `keys` int64 (2, ...) and the four counter words int64 hold values below 2**32 and broadcast.

    Returns four int64 tensors of values below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = keys[0], keys[1]
    for i in range(_ROUNDS):
        if i:
            k0 = (k0 + _WEYL_0) & _MASK32
            k1 = (k1 + _WEYL_1) & _MASK32
        # An int64 product wraps modulo 2**64, and the mask after the shift drops the copied sign bits: both exact.
        p0 = c0 * _MULTIPLIER_0
        p1 = c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
    return c0, c1, c2, c3


def words(
    keys: Sequence[int],
    origins: Sequence[tuple[int, int]],
    size: tuple[int, int],
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words for every cell of a batch of grids.

    keys: one 64-bit key an image. origins: the absolute (y, x) of each image's first cell. size: (height, width).
    Returns four int64 tensors (B, 1, H, W) of values below 2**32.
    """
    height, width = size
    key = torch.tensor([[k & _MASK32 for k in keys], [(k >> 32) & _MASK32 for k in keys]], dtype=torch.int64)
    origin = torch.tensor(origins, dtype=torch.int64)
    key, origin = key.to(device), origin.to(device)
    y = origin[:, 0].view(-1, 1, 1, 1) + torch.arange(height, device=device).view(1, 1, -1, 1)
    x = origin[:, 1].view(-1, 1, 1, 1) + torch.arange(width, device=device).view(1, 1, 1, -1)
    counter = (x & _MASK32, (x >> 32) & _MASK32, y & _MASK32, (y >> 32) & _MASK32)
    return philox(key.view(2, -1, 1, 1, 1), counter)


def normals(
    keys: Sequence[int],
    origins: Sequence[tuple[int, int]],
    channels: int,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers float32 (B, channels, H, W), a function of key, channel and absolute position only."""
    device = torch.device(device)
    height, width = size
    if height > 1 and height * width > _BAND_CELLS:  # in bands, since what leads to a number takes ten times its memory
        whole = torch.empty(len(keys), channels, height, width, device=device)  # where it cannot be, that shows now
        rows = max(1, _BAND_CELLS // width)
        for top in range(0, height, rows):
            band = whole[:, :, top : top + rows]
            there = [(y + top, x) for y, x in origins]
            band.copy_(normals(keys, there, channels, (band.shape[2], width), device))
        return whole
    where = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    planes: list[Tensor] = []
    for group in range((channels + 3) // 4):
        first = words([mix(k, group) for k in keys], origins, size, where)
        for a, b in ((first[0], first[1]), (first[2], first[3])):
            # Box-Muller in float64 on (0, 1): 2**-33 bounds the radius at 6.8.
            radius = torch.sqrt(-2.0 * torch.log((a.double() + 0.5) * 2.0**-32))
            angle = (b.double() + 0.5) * (2.0 * math.pi * 2.0**-32)
            planes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.cat(planes[:channels], dim=1).float().to(device)


def integers(key: int, count: int) -> list[int]:
    """`count` 64-bit integers from one key, for choices that are not tied to a cell (an image, a crop, a flip)."""
    return [mix(key, i) for i in range(count)]
