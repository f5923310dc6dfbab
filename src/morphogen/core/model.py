"""The contract of every model: what training, sampling, tasks and the command line may rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from morphogen.core.keys import Key


class ImageConfig(BaseModel):
    """The images a model was made for: height and width in pixels, and the number of channels (3 RGB, 1 gray)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(64, ge=2, le=16384)
    width: int = Field(64, ge=2, le=16384)
    channels: int = Field(3, ge=1, le=64)


class ArchitectureConfig(BaseModel):
    """Base of every model's own settings; a subclass lists them with their ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, image: ImageConfig) -> None:
        """Raise ValueError where these settings cannot work with such images."""


class Batch(NamedTuple):
    """Training images float (B, C, H, W) on the scale [-1, 1], and their labels float (B, K) or None."""

    images: Tensor
    labels: Tensor | None = None


class Prediction(NamedTuple):
    """What a denoiser says about a noisy image."""

    noise: Tensor
    """Predicted noise (B, C, H, W), like the input; a model trained on v has converted it."""
    variance: Tensor | None = None
    """Learned log-variance interpolation (B, C, H, W), or None."""
    memory: Any = None
    """What may be carried to the next evaluation, or None."""


@dataclass(frozen=True)
class Progressing:
    """What `generate` tells its `callback` after each sampling step."""

    step: int
    """Steps done, from 1 to `steps`."""
    steps: int
    """Steps in all."""
    images: Tensor
    """The images as they are now, float (B, C, H, W), noise included."""
    clean: Tensor
    """What the model now takes them to become, float (B, C, H, W), about [-1, 1]."""


Callback = Callable[[Progressing], None]


class Model(nn.Module, ABC):
    """A generative image model. A subclass takes its whole configuration in the constructor and builds itself."""

    family: ClassVar[str]
    """The name under which files and the command line know this kind of model."""
    predicts_noise: ClassVar[bool] = False
    """Whether the model is a denoiser, which inpainting, upscaling and varying need."""

    image: ImageConfig

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """Everything needed to build this model again, as JSON types: what `config.json` holds."""

    @abstractmethod
    def training_loss(self, batch: Batch, key: Key) -> Tensor:
        """The loss of a batch, a mean over its images, as a tensor without dimensions.

        The key has one seed an image; noise, timesteps and fire masks follow from it alone.
        """

    @abstractmethod
    def generate(
        self,
        key: Key,
        size: tuple[int, int] | None = None,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        labels: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Images float (B, C, height, width), about [-1, 1], one for each seed of the key."""

    @property
    @abstractmethod
    def minimum_size(self) -> int:
        """The smallest height and width in pixels that the model can work at."""

    @property
    @abstractmethod
    def receptive_range(self) -> int | None:
        """How many cells away one evaluation reads at most, or None where it reads the whole image."""

    @property
    @abstractmethod
    def inexact_in_tiles(self) -> str | None:
        """Why a tile with a halo differs from the same region of the whole, or None where it does not."""

    @property
    def exact_in_tiles(self) -> bool:
        """Whether a tile with a halo of `receptive_range` equals the same region of the whole."""
        return self.inexact_in_tiles is None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(p.numel() for p in self.parameters())

    def deployed_parameter_count(self) -> int:
        """Numbers left when what can be folded into others has been."""
        return self.parameter_count()
