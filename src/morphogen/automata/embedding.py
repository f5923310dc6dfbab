"""Encodings of position, timestep and NCA step, which each cell is conditioned on.

Each input is one number a cell (or one for all cells). `encode` turns n inputs into n * n numbers, as the released
code does: 4 for (timestep, NCA step), 16 for (x, y, timestep, NCA step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Encoding = Literal["released", "sinusoidal"]


def encode(inputs: list[Tensor], encoding: Encoding) -> Tensor:
    """Encode n inputs, each (B or 1, 1, H or 1, W or 1), to (B or 1, n * n, H or 1, W or 1).

    released: linear. Input number i becomes itself times [cos i, sin i] if there are two inputs, and times
    [cos i, cos 0.01i, sin i, sin 0.01i] if there are four.
    sinusoidal: [sin wp, cos wp] of input p at the frequencies w = 10000^(-2k/n) (Vaswani et al., "Attention is all
    you need", section 3.5), which the paper's text names.
    """
    n = len(inputs)
    frequencies = [10000.0 ** (-2 * k / n) for k in range(n // 2)]
    encoded: list[Tensor] = []
    for i, value in enumerate(inputs):
        if encoding == "released":
            encoded += [value * math.cos(i * w) for w in frequencies] + [value * math.sin(i * w) for w in frequencies]
        else:
            encoded += [part for w in frequencies for part in (torch.sin(value * w), torch.cos(value * w))]
    batch, height, width = (max(part.shape[axis] for part in encoded) for axis in (0, 2, 3))
    return torch.cat([part.expand(batch, 1, height, width) for part in encoded], dim=1)


@dataclass(frozen=True)
class Inputs:
    """The embedding inputs of the cells of a batch in each NCA step.

    time: the timestep over T, (B or 1, 1, 1, 1). steps: the number by which a step is divided to make a fraction.
    x, y: positions (1, 1, 1, W) and (1, 1, H, 1), or None for a model that knows no place. labels: of a model with any,
    float (B or 1, 2K): of each whether an image has it, then of each whether that is not known.
    """

    time: Tensor
    steps: int
    encoding: Encoding
    x: Tensor | None = None
    y: Tensor | None = None
    labels: Tensor | None = None

    @property
    def images(self) -> int:
        """How many images have inputs of their own; 1 where all have the same."""
        return max(len(self.time), 1 if self.labels is None else len(self.labels))

    def of_image(self, i: int) -> Inputs:
        """The inputs of an image alone."""
        time = self.time if len(self.time) == 1 else self.time[[i]]
        labels = self.labels if self.labels is None or len(self.labels) == 1 else self.labels[[i]]
        return replace(self, time=time, labels=labels)

    def crop(self, rows: slice, columns: slice) -> Inputs:
        """The inputs of the cells of a rectangle."""
        x = None if self.x is None else self.x[..., columns]
        y = None if self.y is None else self.y[..., rows, :]
        return replace(self, x=x, y=y)

    def at(self, step: int) -> Tensor:
        """The encoded inputs of a step, (B or 1, 4, 1, 1) without positions and (B or 1, 16, H, W) with them."""
        when = [self.time, torch.full_like(self.time, step / self.steps)]
        where = [] if self.x is None or self.y is None else [self.x, self.y]
        return encode([*where, *when], self.encoding)


def positions(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """x (1, 1, 1, W) and y (1, 1, H, 1), each running from 1 at the first cell to 0 at the last."""
    height, width = size
    x = torch.linspace(1.0, 0.0, width, device=device).view(1, 1, 1, -1)
    y = torch.linspace(1.0, 0.0, height, device=device).view(1, 1, -1, 1)
    return x, y
