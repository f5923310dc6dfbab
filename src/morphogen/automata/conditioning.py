"""What a model is told about a whole image: its timestep and its labels, as one vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 256


def sinusoids(values: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of values (N,) at width / 2 frequencies from 1 towards 1/10000: float32 (N, width)."""
    half = width // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Conditioning(nn.Module):
    """Timestep and labels as a vector: two layers over sinusoids of the timestep, plus two linear layers, without a
    nonlinearity between, over the labels' row (Elbatel et al., released code; the timestep as in DiT).

    width: of the vector. labels: columns of a row, 0 for a model without labels. null: what an unknown label is.
    """

    def __init__(self, width: int, labels: int, null: float) -> None:
        super().__init__()
        self.columns, self.null = labels, null
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Sequential(nn.Linear(labels, width), nn.Linear(width, width)) if labels else None

    def initialise(self) -> None:
        """Begin as the released code: Xavier's weights for the labels, small ones for the timestep."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """The vectors (B, width), or (1, width) where both are the same for all: t (B or 1,), labels (B, K), or None
        for unknown ones.
        """
        dtype = next(self.parameters()).dtype
        told: Tensor = self.time(sinusoids(t, FREQUENCIES).to(dtype))
        if self.labels is None:
            return told
        if labels is None:
            labels = torch.full((1, self.columns), self.null, device=t.device)
        named: Tensor = self.labels(labels.to(dtype))
        return told + named
