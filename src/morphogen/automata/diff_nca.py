"""Diff-NCA (Kalkhof et al., section 3.1): an image NCA that predicts the noise, knowing nothing beyond its range."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from morphogen.automata.embedding import Encoding, encode
from morphogen.automata.state import read_noise, seed_state
from morphogen.automata.update_rule import Norm, UpdateRule
from morphogen.core.keys import Key
from morphogen.core.model import ArchitectureConfig, ImageConfig, Prediction
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser

_EMBEDDING_INPUTS = 2  # timestep, NCA step
_EMBEDDING = 2


class NCAConfig(ArchitectureConfig):
    """The settings that Diff-NCA and FourierDiff-NCA share."""

    channels: int = Field(96, ge=4, le=1024, description="numbers in a cell (c)")
    hidden: int = Field(512, ge=4, le=8192, description="width of the update rule's hidden layer (h)")
    nca_steps: int = Field(20, ge=1, le=512, description="NCA steps an evaluation takes (s)")
    fire_rate: float = Field(0.9, gt=0.0, le=1.0, description="probability that a cell updates in a step")
    norm: Norm = Field("cell", description="cell: over the channels of each cell; group: GroupNorm(1, h)")
    encoding: Encoding = Field("released", description="how the embedding inputs are encoded")

    def check(self, image: ImageConfig) -> None:
        if self.channels < 2 * image.channels:
            raise ValueError(
                f"channels is {self.channels}, but images of {image.channels} channels need at least "
                f"{2 * image.channels}: the noisy image and the predicted noise"
            )


def conditioned(fire: list[Tensor], active: Tensor | None) -> list[Tensor]:
    """The fire masks, restricted to active cells where only those may update."""
    return fire if active is None else [mask & active for mask in fire]


class DiffNCA(Denoiser):
    """One update rule over the image. It is told the timestep and the NCA step, not the position, so it is the same
    everywhere, at any size, and reads at most `nca_steps` cells around.
    """

    family: ClassVar[str] = "diff-nca"
    config_class: ClassVar[type[NCAConfig]] = NCAConfig
    architecture: NCAConfig

    def __init__(self, image: ImageConfig, architecture: NCAConfig, diffusion: DiffusionConfig) -> None:
        super().__init__(image, architecture, diffusion)
        self.rule = UpdateRule(
            architecture.channels,
            architecture.hidden,
            inputs=_EMBEDDING_INPUTS**2,
            embedding=_EMBEDDING,
            norm=architecture.norm,
            padding="reflect",
            fixed=list(range(image.channels)),
        )

    def predict(
        self, x: Tensor, t: Tensor, key: Key, active: Tensor | None = None, nca_steps: int | None = None
    ) -> Prediction:
        steps = nca_steps or self.architecture.nca_steps
        time = self.time_fraction(t)

        def encoded(step: int) -> Tensor:
            return encode([time, torch.full_like(time, step / steps)], self.architecture.encoding)

        fire = key.fire_masks(steps, self.architecture.fire_rate, (x.shape[-2], x.shape[-1]), x.device)
        state = seed_state(x, self.architecture.channels)
        state = self.rule.run(state, encoded, conditioned(fire, active), self.recompute)
        return Prediction(read_noise(state, self.image.channels))

    @property
    def minimum_size(self) -> int:
        return 2  # reflection needs a neighbour

    @property
    def receptive_range(self) -> int | None:
        return self.architecture.nca_steps if self.exact_in_tiles else None

    @property
    def inexact_in_tiles(self) -> str | None:
        if self.architecture.norm == "group":
            return "its group normalisation averages over all cells of the image"
        return None

    def compile_steps(self) -> None:
        self.rule.compile_step()

    def deployed_parameter_count(self) -> int:
        return self.parameter_count() - self.rule.gain_count()
