"""The variational automaton (VNCA) of Palm et al., "Variational neural cellular automata", as a baseline.

The doubling variant at the size that Kalkhof et al. compare with (9,732,416 parameters at 64x64): an encoder of five
convolutions, a decoder whose one update rule grows a 2x2 grid by five doublings, and a discretised logistic mixture of
one component on the first channels of each cell (Salimans et al., "PixelCNN++"). It predicts no noise.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from morphogen.core.errors import InputError, NonFiniteError
from morphogen.core.keys import Key
from morphogen.core.model import ArchitectureConfig, Batch, Callback, ImageConfig, Model, StepInfo
from morphogen.core.random import Purpose
from morphogen.core.request import SamplingRequest

SEED_SIDE = 2  # cells on a side before the first doubling
_ENCODER_WIDTHS = (32, 64, 128, 256, 512)
_ENCODER_STRIDES = (1, 2, 2, 2, 2)
_RESIDUAL_BLOCKS = 4
_LEVELS = 255  # steps between the darkest and the lightest value
_SMALLEST_LOG_SCALE = -7.0  # as in PixelCNN++: a logistic narrower than this is all in one of the 256 values


class VNCAConfig(ArchitectureConfig):
    """The settings of VNCA."""

    latent: int = Field(256, ge=16, le=4096, description="numbers in a cell, and in the latent vector (z)")
    nca_steps: int = Field(8, ge=1, le=64, description="NCA steps before the first doubling and after each")

    def check(self, image: ImageConfig) -> None:
        side = image.height
        if image.width != side or side < 16 or side & (side - 1):
            raise ValueError(
                f"the size {image.height}x{image.width} is not possible for VNCA, which grows by doubling: "
                "16x16, 32x32, 64x64 and so on are"
            )
        if image.channels not in (1, 3):
            raise ValueError(f"VNCA makes images of 1 or 3 channels, not {image.channels}")


class VNCA(Model):
    """A variational autoencoder whose decoder is an automaton. The loss is the negative evidence lower bound, in bits
    a dimension; samplers are `mean` (each pixel's expected value) and `draw` (a value drawn from its mixture).
    """

    family: ClassVar[str] = "vnca"
    predicts_noise: ClassVar[bool] = False
    config_class: ClassVar[type[VNCAConfig]] = VNCAConfig
    architecture: VNCAConfig

    def __init__(self, image: ImageConfig, architecture: VNCAConfig) -> None:
        super().__init__()
        architecture.check(image)
        self.image, self.architecture = image, architecture
        latent = architecture.latent
        layers: list[nn.Module] = []
        before = image.channels
        for width, stride in zip(_ENCODER_WIDTHS, _ENCODER_STRIDES, strict=True):
            layers += [nn.Conv2d(before, width, 5, stride, padding=2), nn.ELU()]
            before = width
        smallest = image.height // math.prod(_ENCODER_STRIDES)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * smallest**2, 2 * latent))
        self.perceive = nn.Conv2d(latent, latent, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(latent, latent, 1), nn.ELU(), nn.Conv2d(latent, latent, 1))
            for _ in range(_RESIDUAL_BLOCKS)
        )
        self.output = nn.Conv2d(latent, latent, 1)
        nn.init.zeros_(self.output.weight)
        if self.output.bias is not None:
            nn.init.zeros_(self.output.bias)

    # -------------------------------------------------------------------------------------------- training

    def training_loss(self, batch: Batch, key: Key) -> Tensor:
        mean, log_variance = self.encode(batch.images)
        noise = key.normals(Purpose.TRAINING_NOISE, mean.shape[1], (1, 1), mean.device).flatten(1)
        cells = self.decode(mean + noise * (log_variance / 2).exp())
        nats = log_likelihood(cells.float(), batch.images).sum()
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
        return (divergence - nats) / (batch.images.numel() * math.log(2))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each float (B, latent), of the latent vectors of images (B, C, H, W)."""
        if images.shape[-2:] != (self.image.height, self.image.width):
            raise InputError(self._size_refusal((images.shape[-2], images.shape[-1])))
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 20)

    def decode(self, latent: Tensor, callback: Callback | None = None) -> Tensor:
        """Grow latent vectors (B, latent) into cells (B, latent, H, W)."""
        cells = latent[:, :, None, None].expand(-1, -1, SEED_SIDE, SEED_SIDE)
        cells = cells.contiguous(memory_format=torch.channels_last)
        doublings = (self.image.height // SEED_SIDE).bit_length() - 1
        for stage in range(doublings + 1):
            if stage:
                cells = F.interpolate(cells, scale_factor=2.0, mode="nearest")
            for _ in range(self.architecture.nca_steps):
                if self.recompute and torch.is_grad_enabled():
                    cells = checkpoint(self.step, cells, use_reentrant=False, preserve_rng_state=False)
                else:
                    cells = self.step(cells)
            if callback is not None:
                side = (self.image.height, self.image.width)
                shown = F.interpolate(means(cells.float(), self.image.channels), size=side, mode="nearest")
                callback(StepInfo(stage + 1, doublings + 1, shown, shown))
        return cells

    def step(self, cells: Tensor) -> Tensor:
        """One NCA step: the next cells (B, latent, h, w). Every cell updates."""
        hidden = self.perceive(cells)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        following: Tensor = cells + self.output(hidden)
        return following

    def compile_steps(self) -> None:
        self.step = torch.compile(self.step)  # type: ignore[method-assign]

    # -------------------------------------------------------------------------------------------- sampling

    def resolve(self, request: SamplingRequest) -> SamplingRequest:
        """The sampler is `mean` or `draw`. Raises InputError for guidance, sampling steps or NCA steps."""
        if request.guidance != 1:
            raise InputError(f"{self.family} takes no labels")
        if request.nca_steps is not None:
            raise InputError(f"{self.family} takes its NCA steps as it was trained; leave nca_steps out")
        if request.sampler not in (None, "mean", "draw"):
            raise InputError(f"{self.family} has the samplers mean and draw, not '{request.sampler}'")
        if request.steps not in (None, 1):
            raise InputError(f"{self.family} makes an image in one pass and takes no sampling steps")
        return replace(request, sampler=request.sampler or "mean", steps=1)

    @torch.no_grad()
    def generate(
        self,
        key: Key,
        size: tuple[int, int] | None = None,
        request: SamplingRequest = SamplingRequest(),
        labels: Tensor | None = None,
        callback: Callback | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        """Images float (B, C, H, W), about [-1, 1].

        Raises InputError for labels, a request that `resolve` refuses, or a size that is not the model's.
        """
        if maps is not None:
            self.check_maps(maps, len(key), size)
        if labels is not None:
            raise InputError(f"{self.family} takes no labels")
        request = self.resolve(request)
        own = (self.image.height, self.image.width)
        if size not in (None, own):
            raise InputError(self._size_refusal(size or own))
        latent = key.normals(Purpose.INITIAL_NOISE, self.architecture.latent, (1, 1), self.device).flatten(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the switch itself is set
            # oneDNN orders a convolution's sums by the batch; without it an image is the same in every batch.
            with torch.backends.mkldnn.flags(enabled=False):
                cells = self.decode(latent, callback).float()
        channels = self.image.channels
        images = means(cells, channels)
        if request.sampler == "draw":
            images = draws(cells, key.normals(Purpose.SAMPLER_NOISE, channels, own, self.device))
        if not torch.isfinite(images).all():
            raise NonFiniteError("sampling overflowed: the images are not finite")
        return images

    def _size_refusal(self, size: tuple[int, int]) -> str:
        own = f"{self.image.height}x{self.image.width}"
        return f"the size {size[0]}x{size[1]} is not possible: this {self.family} makes images of {own} only"

    @property
    def minimum_size(self) -> int:
        return self.image.height

    @property
    def receptive_range(self) -> int | None:
        return None

    @property
    def inexact_in_tiles(self) -> str | None:
        return "it grows the whole image from one latent vector"


# ------------------------------------------------------------------------------------------------ the mixture


def _parameters(cells: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means and log-scales (B, C, H, W), and for colour the three coefficients (B, 3, H, W) by which green depends on
    red and blue on both, out of the first channels: one mixture weight (of no effect with one component), then these.
    """
    values = cells[:, 1:]
    mean, log_scale = values[:, :channels], values[:, channels : 2 * channels].clamp(min=_SMALLEST_LOG_SCALE)
    return mean, log_scale, values[:, 2 * channels : 2 * channels + 3].tanh()


def _conditioned(mean: Tensor, coefficients: Tensor, earlier: Tensor) -> Tensor:
    """The means of green and blue given the earlier channels' values (B, 3, H, W); red's stays."""
    if mean.shape[1] == 1:
        return mean
    green = mean[:, 1] + coefficients[:, 0] * earlier[:, 0]
    blue = mean[:, 2] + coefficients[:, 1] * earlier[:, 0] + coefficients[:, 2] * earlier[:, 1]
    return torch.stack([mean[:, 0], green, blue], dim=1)


def log_likelihood(cells: Tensor, images: Tensor) -> Tensor:
    """Natural log-probability (B, C, H, W) of the 256 values that images on [-1, 1] stand for (PixelCNN++, eq. 2)."""
    mean, log_scale, coefficients = _parameters(cells, images.shape[1])
    centred = images - _conditioned(mean, coefficients, images)
    inverse = (-log_scale).exp()
    above, below = inverse * (centred + 1 / _LEVELS), inverse * (centred - 1 / _LEVELS)
    inside = above.sigmoid() - below.sigmoid()
    density = inverse * centred - log_scale - 2 * F.softplus(inverse * centred) - math.log(_LEVELS / 2)
    # The difference vanishes far from the mean; there the density at the middle of the bin stands for it.
    middle = torch.where(inside > 1e-5, inside.clamp(min=1e-12).log(), density)
    middle = torch.where(images < -0.999, F.logsigmoid(above), middle)
    return torch.where(images > 0.999, -F.softplus(below), middle)


def means(cells: Tensor, channels: int) -> Tensor:
    """The expected images (B, C, H, W), held within [-1, 1]."""
    mean, _, coefficients = _parameters(cells, channels)
    red = mean[:, :1].clamp(-1, 1)
    if channels == 1:
        return red
    green = (mean[:, 1:2] + coefficients[:, :1] * red).clamp(-1, 1)
    blue = (mean[:, 2:3] + coefficients[:, 1:2] * red + coefficients[:, 2:3] * green).clamp(-1, 1)
    return torch.cat([red, green, blue], dim=1)


def draws(cells: Tensor, normals: Tensor) -> Tensor:
    """Images (B, C, H, W) drawn from the mixture by standard normals (B, C, H, W), held within [-1, 1]."""
    mean, log_scale, coefficients = _parameters(cells, normals.shape[1])
    wide = (normals.cpu() if normals.device.type == "mps" else normals).double()  # MPS has no float64
    uniform = torch.special.ndtr(wide).clamp(1e-9, 1 - 1e-9)
    noise = log_scale.exp() * uniform.logit().float().to(normals.device)
    images = [(mean[:, :1] + noise[:, :1]).clamp(-1, 1)]
    for channel in range(1, normals.shape[1]):
        earlier = torch.cat([*images, *[images[0]] * (3 - len(images))], dim=1)
        centre = _conditioned(mean, coefficients, earlier)[:, channel : channel + 1]
        images.append((centre + noise[:, channel : channel + 1]).clamp(-1, 1))
    return torch.cat(images, dim=1)
