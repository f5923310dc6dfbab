"""The exponential moving average of the weights, which is what a run hands out."""

from __future__ import annotations

import copy

import numpy as np
import torch

from morphogen.core.model import Model
from morphogen.training.config import AveragingConfig


def relative_exponent(width: float) -> float:
    """The exponent g of a power-function average whose standard deviation is `width` of the time so far.

    Karras et al., "Analyzing and improving the training dynamics of diffusion models", equation 126:
    width^2 = (g + 1) / ((g + 2)^2 (g + 3)).
    """
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class EMA:
    """A copy of the model, in evaluation mode, whose weights follow the trained ones on average."""

    def __init__(self, model: Model, config: AveragingConfig) -> None:
        self.config = config
        self.exponent = relative_exponent(config.width)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay(self, step: int) -> float:
        """How much of the average step number `step` (from 1) keeps."""
        if self.config.kind == "constant":
            return self.config.decay
        return float((1 - 1 / step) ** (self.exponent + 1))

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Move the average towards the weights after step number `step` (from 1)."""
        averaged, now = self.model.state_dict(), model.state_dict()
        torch._foreach_lerp_(list(averaged.values()), [now[name] for name in averaged], 1 - self.decay(step))
