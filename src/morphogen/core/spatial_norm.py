"""A group normalisation over whole images, whose statistics can be heard and replaced."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Statistics = tuple[float, float]
"""Mean and variance."""


class SpatialNorm(nn.GroupNorm):
    """GroupNorm of one group: mean and variance over all channels and cells of an image.

    record: told the statistics of each call, float64. replay: gives those that a call is to use instead of its own, so
    that a part of an image is normalised like the whole.
    """

    record: Callable[[Statistics], None] | None = None
    replay: Callable[[], Statistics] | None = None

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(1, channels, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.record is not None:
            values = hidden.double()
            self.record((float(values.mean()), float(values.var(correction=0))))
        if self.replay is None:
            return super().forward(hidden)
        mean, variance = self.replay()
        scale, shift = (v.view(1, -1, 1, 1) for v in (self.weight, self.bias))
        scaled: Tensor = (hidden - mean) / (variance + self.eps) ** 0.5 * scale + shift
        return scaled
