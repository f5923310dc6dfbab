"""Classifier-free guidance (Ho and Salimans): a denoiser that is told the labels and one that isn't, and further on
along the way from the second to the first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Prediction
from morphogen.diffusion.denoiser import Denoiser
from morphogen.diffusion.labels import LabelledDenoiser


class Guided(Denoiser):
    """A labelled denoiser under guidance; it is evaluated once, on twice the batch, under the same keys, so that both
    halves see the same fire masks. Its memory is that of both halves.

    scale: 1 is the denoiser itself, 0 the one without labels; above 1 labels count for more. Raises InputError for a
    model without labels.
    """

    takes_labels = True

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        nn.Module.__init__(self)
        if not isinstance(denoiser, LabelledDenoiser) or not denoiser.labels.names:
            raise InputError(
                f"guidance needs a model that was trained with labels, which this {denoiser.family} is not"
            )
        self.denoiser, self.scale, self.family = denoiser, scale, denoiser.family  # type: ignore[misc]
        self.image, self.labels, self.diffusion = denoiser.image, denoiser.labels, denoiser.diffusion
        self.architecture = denoiser.architecture
        self.train(denoiser.training)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        memory: Any = None,
        active: Tensor | None = None,
        key: Key | None = None,
        nca_steps: int | None = None,
    ) -> Prediction:
        """As `Denoiser.forward`; the variance is that of the half that knows the labels. Raises InputError without
        labels.
        """
        if labels is None:
            raise InputError("guidance needs labels; give them, or no guidance")
        key = key or Key.of(range(len(x)))
        both = self.denoiser(
            torch.cat([x, x]),
            torch.cat([t, t]),
            labels=torch.cat([labels, self.denoiser.null_rows(len(x)).to(labels)]),
            memory=memory,
            active=None if active is None else active.expand(len(x), -1, -1, -1).repeat(2, 1, 1, 1),
            key=replace(key, seeds=key.seeds * 2, origins=key.origins * 2),
            nca_steps=nca_steps,
        )
        told, untold = both.noise.chunk(2)
        noise = torch.lerp(untold, told, self.scale)
        variance = None if both.variance is None else both.variance.chunk(2)[0]
        return Prediction(noise, variance, both.memory)

    def predict(
        self, x: Tensor, t: Tensor, key: Key, active: Tensor | None = None, nca_steps: int | None = None
    ) -> Prediction:
        raise InputError("guidance needs labels; give them, or no guidance")

    @property
    def minimum_size(self) -> int:
        return self.denoiser.minimum_size

    @property
    def receptive_range(self) -> int | None:
        return self.denoiser.receptive_range

    @property
    def inexact_in_tiles(self) -> str | None:
        return self.denoiser.inexact_in_tiles


def guided(denoiser: Denoiser, labels: Tensor | None, scale: float) -> Denoiser:
    """The denoiser under guidance of a scale, or itself for 1.

    Raises InputError for guidance without labels, or a scale that is no number of at least 0.
    """
    if not 0 <= scale < float("inf"):
        raise InputError(f"the guidance scale is {scale:g}; it should be a number of at least 0, 1 for no guidance")
    if scale == 1:
        return denoiser
    if labels is None:
        raise InputError(f"guidance {scale:g} needs labels; name at least one, or leave guidance out")
    return Guided(denoiser, scale)
