"""The conditioning of a whole image, its timestep and its labels, as one vector."""

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


class LabelEmbedding(nn.Sequential):
    """Two linear layers, without a nonlinearity between, over the row of labels (Elbatel et al., released code).

    width: of the vector. labels: columns of a row. null: what an unknown label is.
    """

    def __init__(self, width: int, labels: int, null: float) -> None:
        super().__init__(nn.Linear(labels, width), nn.Linear(width, width))
        self.columns, self.null = labels, null

    def forward(self, labels: Tensor | None, device: torch.device) -> Tensor:  # type: ignore[override]
        """The vectors float (B, width) of rows (B, K), or (1, width) for None: all labels unknown."""
        if labels is None:
            labels = torch.full((1, self.columns), self.null, device=device)
        embedded: Tensor = super().forward(labels.to(next(self.parameters()).dtype))  # type: ignore[no-untyped-call]
        return embedded


class ConditionEmbedding(nn.Module):
    """Timestep and labels as a vector: two layers over sinusoids of the timestep, as in DiT, plus the labels' own.

    width: of the vector. labels: columns of a row, 0 for a model without labels. null: what an unknown label is.
    """

    def __init__(self, width: int, labels: int, null: float) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = LabelEmbedding(width, labels, null) if labels else None

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
        embedded: Tensor = self.time(sinusoids(t, FREQUENCIES).to(next(self.parameters()).dtype))
        return embedded if self.labels is None else embedded + self.labels(labels, t.device)
