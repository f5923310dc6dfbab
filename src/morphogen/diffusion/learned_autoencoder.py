"""A small autoencoder that is learnt on the user's own images: cells then diffuse in its latents.

Convolutions only, with neither attention nor normalisation over space, so that what a pixel becomes depends on a stated
neighbourhood and any part of an image can be decoded alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import ArchitectureConfig, Batch, Callback, ImageConfig, Model
from morphogen.core.random import Purpose
from morphogen.core.request import Precision, PrecisionChoice, SamplingRequest

_SCALES = 3  # of the gradients that are compared: at 1, 1/2 and 1/4 of the size
_FLOOR = 1e-6  # of a variance whose logarithm is taken
_CHANNELS = {2: 4, 4: 8, 8: 16}


class AutoencoderSettings(ArchitectureConfig):
    """The networks of a learnt autoencoder and what trains them, but for the factor."""

    channels: int | None = Field(
        None, ge=1, le=64, description="numbers in a latent cell; null: 4, 8 or 16 for the factors 2, 4 and 8"
    )
    width: int = Field(64, ge=8, le=512, multiple_of=4, description="channels of the layers at the latents' size")
    blocks: int = Field(3, ge=1, le=16, description="residual blocks at the latents' size, in encoder and decoder each")
    latent_noise: float = Field(
        0.1,
        ge=0,
        le=1,
        description="scale of the noise that training adds to latents, which makes them robust",
    )
    gradient_weight: float = Field(
        1.0, ge=0, le=100, description="weight of the error of the images' gradients, at three scales, beside L1"
    )
    prior_weight: float = Field(
        0.01, ge=0, le=100, description="weight of what keeps every latent channel at mean 0 and variance 1"
    )


class AutoencoderConfig(AutoencoderSettings):
    """What `architecture` of an autoencoder's `config.json` holds."""

    factor: Literal[2, 4, 8] = Field(4, description="pixels on a side of a latent cell")

    def check(self, image: ImageConfig) -> None:
        if image.height % self.factor or image.width % self.factor:
            raise ValueError(f"the size {image.height}x{image.width} is not divisible by the factor {self.factor}")


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        for weight in self.second.parameters():
            nn.init.zeros_(weight)

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
    config_class: ClassVar[type[AutoencoderConfig]] = AutoencoderConfig
    architecture: AutoencoderConfig

    def __init__(self, image: ImageConfig, architecture: AutoencoderConfig) -> None:
        super().__init__()
        architecture.check(image)
        self.image, self.architecture = image, architecture
        self.channels = architecture.channels or _CHANNELS[architecture.factor]
        self.autocast = False
        width, halvings = architecture.width, architecture.factor.bit_length() - 1
        # Narrower where pixels are many: half the width before the last of several halvings, a quarter at full size.
        narrow = width // 2 if halvings > 1 else width
        down: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * image.channels, narrow, 3, padding=1)]
        for _ in range(halvings - 1):
            down += [ResidualBlock(narrow), nn.SiLU(), nn.Conv2d(narrow, width, 3, stride=2, padding=1)]
            narrow = width
        down += [ResidualBlock(width) for _ in range(architecture.blocks)]
        self.encoder = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(width, self.channels, 1))
        up: list[nn.Module] = [nn.Conv2d(self.channels, width, 3, padding=1)]
        up += [ResidualBlock(width) for _ in range(architecture.blocks)]
        now = width
        for i in range(halvings):
            finer = width // 2 if i < halvings - 1 else width // 4
            up += [nn.Conv2d(now, 4 * finer, 1), nn.PixelShuffle(2), ResidualBlock(finer)]
            now = finer
        self.decoder = nn.Sequential(*up, nn.SiLU(), nn.Conv2d(now, image.channels, 3, padding=1))

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images whose size the factor divides; no noise is drawn."""
        found: Tensor = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return found

    def decode(self, latents: Tensor) -> Tensor:
        """Images, about [-1, 1]."""
        found: Tensor = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        return found

    @property
    def encoder_reach(self) -> int:
        """How many pixels away from its own a latent cell reads at most."""
        first = -2 * self.architecture.blocks  # the first row that the cell of row 0 reads, at each size in turn
        for _ in range(self.architecture.factor.bit_length() - 2):
            first = 2 * first - 1 - 2
        return -2 * (first - 1)

    @property
    def decoder_reach(self) -> int:
        """How many latent cells away from its own a pixel reads at most."""
        first = -1  # the first row that the pixel of row 0 reads, at each size in turn
        for _ in range(self.architecture.factor.bit_length() - 1):
            first = (first - 2) // 2
        return 1 + 2 * self.architecture.blocks - first

    def training_loss(self, batch: Batch, key: Key) -> Tensor:
        settings, images = self.architecture, batch.images
        with torch.autocast(images.device.type, torch.bfloat16, self.autocast):
            latents = self.encode(images).float()
        size = (latents.shape[2], latents.shape[3])
        noise = key.normals(Purpose.TRAINING_NOISE, latents.shape[1], size, images.device)
        # Another strength for each image: a sampler's latents are off by little here and by more there.
        strength = key.normals(Purpose.TASK_NOISE, 1, (1, 1), images.device).abs().clamp(max=2.5)
        with torch.autocast(images.device.type, torch.bfloat16, self.autocast):
            decoded = self.decode(latents + settings.latent_noise * strength * noise).float()
        loss = (decoded - images).abs().mean()
        if settings.gradient_weight:
            loss = loss + settings.gradient_weight * gradient_error(decoded, images)
        if settings.prior_weight:
            mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3), correction=0).clamp(min=_FLOOR)
            loss = loss + settings.prior_weight * (mean.square() + variance - 1 - variance.log()).mean()
        return loss

    def generate(
        self,
        key: Key,
        size: tuple[int, int] | None = None,
        request: SamplingRequest = SamplingRequest(),
        labels: Tensor | None = None,
        callback: Callback | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        """Raises InputError: an autoencoder paints nothing by itself."""
        raise _paints_nothing()

    def resolve(self, request: SamplingRequest) -> SamplingRequest:
        """Raises InputError, as `generate`."""
        raise _paints_nothing()

    def compute_in(self, precision: PrecisionChoice | None = "auto") -> str | None:
        """Train in a precision from now on; `encode` and `decode` stay in that of their input."""
        self.autocast = precision == "bfloat16"
        return None

    @property
    def precision(self) -> Precision:
        return "bfloat16" if self.autocast else "float32"

    @property
    def minimum_size(self) -> int:
        return self.architecture.factor

    @property
    def receptive_range(self) -> int:
        return self.decoder_reach * self.architecture.factor + self.encoder_reach

    @property
    def cell_size(self) -> int:
        return self.architecture.factor

    @property
    def inexact_in_tiles(self) -> str | None:
        return None


def _paints_nothing() -> InputError:
    return InputError("this is an autoencoder, which paints nothing by itself; use the model that works in its latents")


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
