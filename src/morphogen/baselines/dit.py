"""DiT-S (Peebles and Xie, "Scalable diffusion models with transformers") with the label embedding of Elbatel et al.,
built from diffusers' parts; its own model takes integer classes only.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from morphogen.automata.condition_embedding import ConditionEmbedding
from morphogen.core.evaluation import Evaluation
from morphogen.core.model import ImageConfig, LabelConfig, Prediction
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.labels import LabelledConfig, LabelledDenoiser

_EPSILON = 1e-6


class DiTConfig(LabelledConfig):
    """The settings of a DiT; the defaults are those of DiT-S/2."""

    width: int = Field(384, ge=8, le=8192, description="numbers in a token")
    depth: int = Field(12, ge=1, le=256, description="blocks")
    heads: int = Field(6, ge=1, le=256, description="attention heads; divides the width")
    patch: int = Field(2, ge=1, le=64, description="pixels, or latent cells, on a side of a token")

    def check(self, image: ImageConfig) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide the width {self.width}")
        if self.width % 4:
            raise ValueError(f"width is {self.width}; the encoding of positions needs a multiple of 4")


class Block(nn.Module):
    """Attention among all tokens and a hidden layer, both modulated (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        from diffusers.models.attention import FeedForward
        from diffusers.models.attention_processor import Attention

        self.attention: Any = Attention(width, heads=heads, dim_head=width // heads, bias=True)
        self.mlp: Any = FeedForward(width, mult=4, activation_fn="gelu-approximate")
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens: (B, N, width). condition: (B or 1, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attention(_modulated(tokens, shift1, scale1))
        following: Tensor = tokens + gate2 * self.mlp(_modulated(tokens, shift2, scale2))
        return following


class DiT(LabelledDenoiser):
    """The transformer. It computes every cell, whichever are active, and at other sizes counts positions on."""

    family: ClassVar[str] = "dit"
    config_class: ClassVar[type[DiTConfig]] = DiTConfig
    architecture: DiTConfig

    def __init__(
        self,
        image: ImageConfig,
        architecture: DiTConfig,
        diffusion: DiffusionConfig,
        labels: LabelConfig = LabelConfig(),  # noqa: B008 (frozen)
        condition_channels: int = 0,
    ) -> None:
        super().__init__(image, architecture, diffusion, labels, condition_channels)
        width, patch = architecture.width, architecture.patch
        self.conditioning = ConditionEmbedding(width, len(labels), self.null_label)
        self.embed = nn.Conv2d(image.channels + condition_channels, width, patch, patch)
        own = (-(-image.height // patch), -(-image.width // patch))
        # Never trained; a parameter because the published count has it.
        self.places = nn.Parameter(self._encode_places(own), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, architecture.heads) for _ in range(architecture.depth))
        self.last_modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, patch * patch * self.outputs)
        self._grid = own
        self._initialise()

    def _initialise(self) -> None:
        """As published: blocks that pass everything on, and an output of nothing."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zeroed = [self.last_modulation, self.last, *(block.modulation for block in self.blocks)]
        for layer in zeroed:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.conditioning.initialise()

    def _encode_places(self, grid: tuple[int, int]) -> Tensor:
        from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid

        rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))  # x first, as published
        found: Tensor = get_2d_sincos_pos_embed_from_grid(self.architecture.width, places[:, None], output_type="pt")
        return found.float()[None]

    def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
        height, width = x.shape[-2:]
        patch = self.architecture.patch
        maps = self.embed(
            F.pad(self.with_condition(x, evaluation), (0, -width % patch, 0, -height % patch), mode="replicate")
        )
        grid = (maps.shape[-2], maps.shape[-1])
        places = self.places if grid == self._grid else self._encode_places(grid).to(x.device)
        tokens = maps.flatten(2).transpose(1, 2) + places
        condition = F.silu(self.conditioning(t, evaluation.labels))
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, condition)
        tokens = self.last(_modulated(tokens, *self.last_modulation(condition)[:, None].chunk(2, dim=-1)))
        squares = tokens.view(len(x), *grid, patch, patch, self.outputs).permute(0, 5, 1, 3, 2, 4)
        made = squares.reshape(len(x), self.outputs, grid[0] * patch, grid[1] * patch)[..., :height, :width]
        return self.split(made)

    @property
    def minimum_size(self) -> int:
        return self.architecture.patch

    @property
    def receptive_range(self) -> int | None:
        return None

    @property
    def inexact_in_tiles(self) -> str | None:
        return "its attention reads the whole image"

    def compile_steps(self) -> None:
        for block in self.blocks:
            block.compile()


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=_EPSILON) * (1 + scale) + shift
