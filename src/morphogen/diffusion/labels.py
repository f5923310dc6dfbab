"""Labels of images: hiding them in training, and the row that stands for none."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from morphogen.core.keys import Key
from morphogen.core.model import ArchitectureConfig, Prediction
from morphogen.core.random import Purpose, mix
from morphogen.diffusion.denoiser import Denoiser

_NULL = {"own": -1.0, "zeros": 0.0}


class LabelledConfig(ArchitectureConfig):
    """How a model learns from labels. Without labels these settings do nothing."""

    label_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="probability of hiding the labels in a step")
    drop_labels: Literal["sample", "label"] = Field(
        "sample", description="sample: all labels of an image at once; label: each by itself, as released"
    )
    null_label: Literal["own", "zeros"] = Field(
        "own",
        description="what a hidden label is: own, -1, so that no label known is another thing than none of them there; "
        "zeros, as released",
    )


class LabelledDenoiser(Denoiser):
    """Base of the denoisers that can be trained with labels: a subclass implements `evaluate`, where `labels` are rows
    (B, K), null rows where unknown, or None for all null.
    """

    takes_labels: ClassVar[bool] = True
    learns_variance: ClassVar[bool] = True
    config_class: ClassVar[type[LabelledConfig]] = LabelledConfig
    architecture: LabelledConfig

    @property
    def outputs(self) -> int:
        """Channels that the network puts out: the noise, and the variance where that is learned."""
        return self.image.channels * (2 if self.diffusion.variance == "learned" else 1)

    def split(self, output: Tensor, memory: Tensor | None = None) -> Prediction:
        """The output of the network (B, outputs, H, W) as noise and variance."""
        channels = self.image.channels
        return Prediction(output[:, :channels], output[:, channels:] if self.outputs > channels else None, memory)

    @property
    def null_label(self) -> float:
        """The value in a row of a label that is not known."""
        return _NULL[self.architecture.null_label]

    def null_rows(self, count: int) -> Tensor:
        """The rows float (count, K) of images of which no label is known."""
        return torch.full((count, len(self.labels)), self.null_label, device=self.device)

    def hide_labels(self, labels: Tensor, key: Key) -> Tensor:
        """Rows (B, K) with some hidden, as each image's seed has it; those of NaN, which nobody knows, always."""
        settings = self.architecture
        columns = len(self.labels) if settings.drop_labels == "label" else 1
        limit = round(settings.label_dropout * 2**64)
        drawn = [
            [mix(seed, Purpose.LABEL_DROPOUT, key.evaluation, column) < limit for column in range(columns)]
            for seed in key.seeds
        ]
        hidden = torch.tensor(drawn, device=labels.device) | labels.isnan()
        return torch.where(hidden, self.null_rows(1).to(labels), labels)
