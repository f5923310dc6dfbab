"""The parts of GeCA (see `geca.py`): its settings, its layers, and one NCA step in the plain form."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.automata.condition_embedding import ConditionEmbedding
from morphogen.automata.neighbours import CellGrid, Kernel, attend
from morphogen.core.model import ImageConfig, LabelConfig
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.labels import LabelledConfig, LabelledDenoiser

Heredity = Literal["none", "out", "both", "hidden"]
NORM_EPSILON, LAST_NORM_EPSILON = 1e-5, 1e-6


class GeCAConfig(LabelledConfig):
    """The settings of GeCA; the defaults are those of GeCA-S."""

    width: int = Field(768, ge=8, le=8192, description="numbers in a cell's embedding")
    heads: int = Field(12, ge=1, le=256, description="attention heads; divides the width")
    mlp: int = Field(3072, ge=1, le=65_536, description="width of the block's hidden layer")
    hidden: int = Field(64, ge=1, le=4096, description="hidden channels of a cell")
    nca_steps: int = Field(12, ge=1, le=512, description="NCA steps an evaluation takes (M)")
    fire_rate: float = Field(0.5, gt=0.0, le=1.0, description="probability that a cell updates in a step")
    seed: Literal["released", "printed"] = Field(
        "released", description="the centre cell starts with random output channels; printed: and hidden ones"
    )
    heredity: Heredity = Field(
        "none", description="what a timestep inherits of the last one's cells: none, out, both, hidden (as published)"
    )
    off_grid: Literal["zero", "masked"] = Field(
        "zero", description="neighbours off the grid: zero vectors in the softmax, as released, or left out"
    )
    places: Literal["raster", "2d"] = Field(
        "raster",
        description="raster: by the number of the cell, as released; 2d: by row and column, whatever the size",
    )

    def check(self, image: ImageConfig) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide the width {self.width}")
        if self.width % 4:
            raise ValueError(f"width is {self.width}; the encoding of positions needs a multiple of 4")


class Modulation(NamedTuple):
    """AdaLN's shifts, scales and gates of a block, each (images, width) for one image or all; norms folded in."""

    attention_scale: Tensor
    attention_shift: Tensor
    attention_gate: Tensor
    mlp_scale: Tensor
    mlp_shift: Tensor
    mlp_gate: Tensor
    last_scale: Tensor
    last_shift: Tensor

    def of(self, images: Tensor) -> Modulation:
        """A row for each of some cells, whose images are numbered by `images` (F,); as it is where all share one."""
        return self if len(self.mlp_gate) == 1 else Modulation(*(part.index_select(0, images) for part in self))


class GeCABlock(LabelledDenoiser):
    """The layers and one step of GeCA; `GeCA` runs them."""

    config_class: ClassVar[type[GeCAConfig]] = GeCAConfig
    architecture: GeCAConfig
    attention: Kernel | None = None  # on a GPU

    def __init__(
        self,
        image: ImageConfig,
        architecture: GeCAConfig,
        diffusion: DiffusionConfig,
        labels: LabelConfig = LabelConfig(),  # noqa: B008 (frozen)
        condition_channels: int = 0,
    ) -> None:
        super().__init__(image, architecture, diffusion, labels, condition_channels)
        width = architecture.width
        own = self.outputs + architecture.hidden
        self.conditioning = ConditionEmbedding(width, len(labels), self.null_label)
        self.embed = nn.Linear(self.fixed_channels + own, width)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, architecture.mlp), nn.GELU(), nn.Linear(architecture.mlp, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, own)
        self._initialise()

    @property
    def fixed_channels(self) -> int:
        """How many of a cell's channels no step changes: the noisy image and the condition."""
        return self.image.channels + self.condition_channels

    def _initialise(self) -> None:
        """As released: a block that passes everything on, and an update of nothing."""
        for layer in (self.embed, self.qkv, self.attention_out, self.mlp[0], self.mlp[2]):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in (self.modulation, self.last_modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.conditioning.initialise()

    def modulate(self, condition: Tensor) -> Modulation:
        """The block's modulation by condition vectors (B or 1, width)."""
        condition = F.silu(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        shift3, scale3 = self.last_modulation(condition).chunk(2, dim=1)
        norm1, norm2 = self.attention_norm, self.mlp_norm
        return Modulation(
            *(norm1.weight * (1 + scale1), norm1.bias * (1 + scale1) + shift1, gate1),
            *(norm2.weight * (1 + scale2), norm2.bias * (1 + scale2) + shift2, gate2),
            *(1 + scale3, shift3),
        )

    def fixed_embedding(self, x: Tensor, grid: CellGrid) -> Tensor:
        """The part of the cells' embedding that no step changes (cells, width): noisy image and position."""
        image = F.linear(rows(x), self.embed.weight[:, : self.fixed_channels], self.embed.bias)
        places = encode_places(grid, self.architecture.width, self.architecture.places, x.device).to(image.dtype)
        return (image.view(grid.batch, -1, image.shape[1]) + places).flatten(0, 1)

    def step(self, own: Tensor, fixed: Tensor, modulation: Modulation, fired: Tensor, grid: CellGrid) -> Tensor:
        """One NCA step: the cells' own channels (cells, .), of which those numbered by `fired` have changed."""
        settings, width = self.architecture, self.architecture.width
        image_of = torch.arange(grid.cells, device=own.device) // (grid.height * grid.width)
        embedded = fixed + F.linear(own, self.embed.weight[:, self.fixed_channels :])
        seen = _normalised(embedded, modulation.of(image_of), 0)
        keys, values = F.linear(seen, self.qkv.weight[width:]).chunk(2, dim=1)
        queries = F.linear(seen.index_select(0, fired), self.qkv.weight[:width])
        masked = settings.off_grid == "masked"
        attended = attend(queries, keys, values, fired, grid, settings.heads, masked, self.attention)
        here = modulation.of(image_of.index_select(0, fired))
        block = embedded.index_select(0, fired) + here.attention_gate * self.attention_out(attended)
        block = block + here.mlp_gate * self.mlp(_normalised(block, here, 1))
        return own.index_add(0, fired, self.last(_normalised(block, here, 2)).to(own.dtype))


def rows(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) as rows (B H W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def maps(rows: Tensor, grid: CellGrid) -> Tensor:
    """Rows (B H W, C) as maps (B, C, H, W)."""
    return rows.view(grid.batch, grid.height, grid.width, -1).permute(0, 3, 1, 2)


def _normalised(cells: Tensor, modulation: Modulation, which: int) -> Tensor:
    """Rows (., width), each normalised over its numbers and modulated: 0 before attention, 1 before the MLP, 2 last."""
    scale, shift = modulation[(0, 3, 6)[which]], modulation[(1, 4, 7)[which]]
    epsilon = LAST_NORM_EPSILON if which == 2 else NORM_EPSILON
    return F.layer_norm(cells, cells.shape[-1:], eps=epsilon) * scale + shift


def encode_places(grid: CellGrid, width: int, places: str, device: torch.device) -> Tensor:
    """Encoded positions float32 (height * width, width): sines and cosines by turns, each at a frequency of its own,
    falling to 1/10000, of a cell's number; or, for 2d, half of them of its row and half of its column.
    """
    number = torch.arange(grid.height * grid.width, device=device)
    if places == "raster":
        return _waves(number, width)
    rows, columns = number // grid.width, number % grid.width
    return torch.cat([_waves(rows, width // 2), _waves(columns, width // 2)], dim=1)


def _waves(places: Tensor, width: int) -> Tensor:
    # In float32 and in this order, as released: the angles of a large grid are not known better than to 1e-4.
    angles = places[:, None] * torch.exp(torch.arange(width, device=places.device) * (-math.log(10000.0) / width))
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)
