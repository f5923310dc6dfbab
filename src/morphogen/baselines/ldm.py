"""LDM-B: a U-Net of diffusers that takes labels, by the same embedding as GeCA, and can learn its variance.

Its widths were not published; these are those of U-Net B, which with the labels has the published 17.3 million numbers.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from morphogen.automata.condition_embedding import LabelEmbedding
from morphogen.baselines.unet import UNetConfig, make_unet, run_unet
from morphogen.core.evaluation import Evaluation
from morphogen.core.model import ImageConfig, LabelConfig, Prediction
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.labels import LabelledConfig, LabelledDenoiser


class LDMConfig(UNetConfig, LabelledConfig):
    """The settings of the U-Net, and how it learns from labels."""


class LDM(LabelledDenoiser):
    """A U-Net conditioned on the timestep and the labels. It computes every cell, whichever are active."""

    family: ClassVar[str] = "ldm"
    config_class: ClassVar[type[LDMConfig]] = LDMConfig
    architecture: LDMConfig

    def __init__(
        self,
        image: ImageConfig,
        architecture: LDMConfig,
        diffusion: DiffusionConfig,
        labels: LabelConfig = LabelConfig(),  # noqa: B008 (frozen)
        condition_channels: int = 0,
    ) -> None:
        super().__init__(image, architecture, diffusion, labels, condition_channels)
        settings: dict[str, object] = {"class_embed_type": "identity"} if labels.names else {}
        self.net: Any = make_unet(image, architecture, image.channels + condition_channels, self.outputs, **settings)
        width = 4 * architecture.widths[0]  # of diffusers' embedding of the timestep
        self.conditioning = LabelEmbedding(width, len(labels), self.null_label) if labels.names else None

    def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
        labels = None
        if self.conditioning is not None:
            labels = self.conditioning(evaluation.labels, t.device).expand(len(x), -1)
        return self.split(
            run_unet(self.net, self.with_condition(x, evaluation), t, self.recompute, class_labels=labels)
        )

    @property
    def minimum_size(self) -> int:
        return 2

    @property
    def receptive_range(self) -> int | None:
        return None

    @property
    def inexact_in_tiles(self) -> str | None:
        return "its group normalisation and attention read the whole image"

    def compile_steps(self) -> None:
        self.net.compile()
