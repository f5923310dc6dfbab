"""A small autoencoder that is learnt on the user's own images: cells then diffuse in its latents.

Convolutions only, with neither attention nor normalisation over space, so that what a pixel becomes depends on a stated
neighbourhood and any part of an image can be decoded alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import ArchitectureConfig, Batch, ImageConfig, Model
from morphogen.core.random import Purpose
from morphogen.core.validation import table, validate

_SCALES = 3  # of the gradients that are compared: at 1, 1/2 and 1/4 of the size
_FLOOR = 1e-6  # of a variance whose logarithm is taken


class AutoencoderConfig(ArchitectureConfig):
    """The networks of a learnt autoencoder and what trains them."""

    factor: Literal[2, 4, 8] = Field(4, description="pixels on a side of a latent cell")
    channels: int = Field(8, ge=1, le=64, description="numbers in a latent cell")
    width: int = Field(64, ge=8, le=512, multiple_of=4, description="channels of the layers at the latents' size")
    blocks: int = Field(3, ge=1, le=16, description="residual blocks at the latents' size, in encoder and decoder each")
    latent_noise: float = Field(
        0.1,
        ge=0,
        le=1,
        description="mean deviation of the noise that training adds to latents, so that errors in them do little",
    )
    gradient_weight: float = Field(
        1.0, ge=0, le=100, description="weight of the error of the images' gradients, at three scales, beside L1"
    )
    prior_weight: float = Field(
        0.01, ge=0, le=100, description="weight of what keeps every latent channel at mean 0 and variance 1"
    )

    def check(self, image: ImageConfig) -> None:
        """Raise ValueError where the factor does not divide the images."""
        if image.height % self.factor or image.width % self.factor:
            raise ValueError(f"the size {image.height}x{image.width} is not divisible by the factor {self.factor}")


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        if self.second.bias is not None:
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        found: Tensor = x + self.second(F.silu(self.first(F.silu(x))))
        return found


class LearnedAutoencoder(Model):
    """Images float (B, C, H, W) of the scale [-1, 1] <-> latents float (B, channels, H / factor, W / factor).

    The loss is L1, plus the error of the gradients at three scales, which keeps edges sharp, plus the divergence of the
    latents' channels from a standard normal; noise in the latents makes small errors in them decode well.
    """

    family = "autoencoder"

    def __init__(self, image: ImageConfig, architecture: AutoencoderConfig) -> None:
        super().__init__()
        architecture.check(image)
        self.image, self.architecture = image, architecture
        width, halvings = architecture.width, int(math.log2(architecture.factor))
        # Half the width at the first of several sizes, and a quarter at the images' own: that is where pixels are many.
        narrow = width // 2 if halvings > 1 else width
        down: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * image.channels, narrow, 3, padding=1)]
        for _ in range(halvings - 1):
            down += [ResidualBlock(narrow), nn.SiLU(), nn.Conv2d(narrow, width, 3, stride=2, padding=1)]
            narrow = width
        down += [ResidualBlock(width) for _ in range(architecture.blocks)]
        self.encoder = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(width, architecture.channels, 1))
        up: list[nn.Module] = [nn.Conv2d(architecture.channels, width, 3, padding=1)]
        up += [ResidualBlock(width) for _ in range(architecture.blocks)]
        for i in range(halvings):
            finer = width // 2 if i < halvings - 1 else width // 4
            up += [nn.Conv2d(width, 4 * finer, 1), nn.PixelShuffle(2), ResidualBlock(finer)]
            width = finer
        self.decoder = nn.Sequential(*up, nn.SiLU(), nn.Conv2d(width, image.channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images whose size the factor divides; no noise is drawn."""
        found: Tensor = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return found

    def decode(self, latents: Tensor) -> Tensor:
        """Images, about [-1, 1]."""
        found: Tensor = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        return found

    @property
    def decoder_reach(self) -> int:
        """How many latent cells away the decoder reads at most."""
        halvings = int(math.log2(self.architecture.factor))
        cells: float = 1 + 2 * self.architecture.blocks + sum(2 / 2**i for i in range(1, halvings + 1))
        return math.ceil(cells + 1 / self.architecture.factor)

    def training_loss(self, batch: Batch, key: Key) -> Tensor:
        settings, images = self.architecture, batch.images
        latents = self.encode(images).float()
        size = (latents.shape[2], latents.shape[3])
        noise = key.normals(Purpose.TRAINING_NOISE, latents.shape[1], size, images.device)
        # From none to twice the mean, by image: latents of a sampler are off by little here and by more there.
        spread = key.normals(Purpose.TASK_NOISE, 1, (1, 1), images.device).abs().clamp(max=2.5)
        decoded = self.decode(latents + settings.latent_noise * spread * noise).float()
        loss = (decoded - images).abs().mean()
        if settings.gradient_weight:
            loss = loss + settings.gradient_weight * gradient_error(decoded, images)
        if settings.prior_weight:
            mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3), correction=0).clamp(min=_FLOOR)
            loss = loss + settings.prior_weight * (mean.square() + variance - 1 - variance.log()).mean()
        return loss

    def generate(self, key: Key, size: tuple[int, int] | None = None, *args: object, **options: object) -> Tensor:
        """Raises InputError: an autoencoder paints nothing by itself."""
        raise InputError(
            "this is an autoencoder, which paints nothing by itself; use the model that works in its latents"
        )

    def sampling(self, sampler: str | None, steps: int | None) -> tuple[str, int]:
        """Raises InputError, as `generate`."""
        raise InputError("this is an autoencoder, which has no samplers; use the model that works in its latents")

    @property
    def minimum_size(self) -> int:
        return self.architecture.factor

    @property
    def receptive_range(self) -> int | None:
        return self.decoder_reach * self.architecture.factor

    @property
    def inexact_in_tiles(self) -> str | None:
        return None

    @classmethod
    def from_config(cls, config: Mapping[str, object], where: str) -> Self:
        table(config, where, ("family", "image", "architecture"))
        image = validate(ImageConfig, config.get("image", {}), f"{where}: image")
        architecture = validate(AutoencoderConfig, config.get("architecture", {}), f"{where}: architecture")
        try:
            return cls(image, architecture)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None

    def config_dict(self) -> dict[str, object]:
        return {
            "family": self.family,
            "image": self.image.model_dump(mode="json"),
            "architecture": self.architecture.model_dump(mode="json"),
        }


def gradient_error(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean absolute error of the differences between neighbours, at the images' size, a half and a quarter of it
    (as far as they are two pixels wide).
    """
    errors = []
    for scale in range(_SCALES):
        if scale:
            if min(found.shape[2:]) < 4:
                break
            found, wanted = F.avg_pool2d(found, 2), F.avg_pool2d(wanted, 2)
        error = found - wanted
        errors.append(error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    return torch.stack(errors).mean()
