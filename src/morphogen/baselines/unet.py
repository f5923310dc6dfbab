"""The U-Nets that the automata are compared with: `diffusers.UNet2DModel` as a denoiser.

The published four are unet-s, -m, -b and -l (Kalkhof et al., table 2); any other is a matter of widths.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.evaluation import Evaluation
from morphogen.core.model import ArchitectureConfig, ImageConfig, Prediction
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.denoiser import Denoiser

Width = Annotated[int, Field(ge=4, le=4096)]


class UNetConfig(ArchitectureConfig):
    """Widths and depth of a U-Net."""

    widths: tuple[Width, ...] = Field((32, 64), min_length=1, max_length=8, description="channels of each level")
    layers: int = Field(1, ge=1, le=8, description="residual blocks of a level")
    attention: tuple[int, ...] = Field((), description="levels with self-attention, 0 the finest")
    groups: int = Field(32, ge=1, le=128, description="groups of the group normalisation; divides every width")

    def check(self, image: ImageConfig) -> None:
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"groups is {self.groups}, which does not divide the width {width}")
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ValueError(f"attention names the level {level}, but there are levels 0 to {len(self.widths) - 1}")


def make_unet(image: ImageConfig, architecture: UNetConfig, inputs: int, outputs: int, **settings: object) -> Any:
    """diffusers' U-Net with fresh weights, for such images. inputs, outputs: channels. settings: more of its own."""
    from diffusers import UNet2DModel

    levels, attention = range(len(architecture.widths)), architecture.attention
    return UNet2DModel(
        sample_size=(image.height, image.width),
        in_channels=inputs,
        out_channels=outputs,
        layers_per_block=architecture.layers,
        block_out_channels=architecture.widths,
        down_block_types=tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(levels)),
        norm_num_groups=architecture.groups,
        **settings,
    )


def run_unet(net: Any, x: Tensor, t: Tensor, recompute: bool, **inputs: Any) -> Tensor:
    """The output of a U-Net for images of any size: sides that its levels do not divide are padded and cut back."""
    if recompute != bool(net.is_gradient_checkpointing):
        (net.enable_gradient_checkpointing if recompute else net.disable_gradient_checkpointing)()
    height, width = x.shape[-2:]
    step = 2 ** (len(net.config.block_out_channels) - 1)
    padded = F.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
    made: Tensor = net(padded, t, return_dict=False, **inputs)[0][..., :height, :width]
    return made


class UNet(Denoiser):
    """A U-Net conditioned on the timestep. It computes every cell, whichever are active, and works at any size: sides
    that its levels do not divide are padded by repeating the border and cut back.
    """

    family: ClassVar[str] = "unet"
    config_class: ClassVar[type[UNetConfig]] = UNetConfig
    architecture: UNetConfig

    def __init__(
        self, image: ImageConfig, architecture: UNetConfig, diffusion: DiffusionConfig, condition_channels: int = 0
    ) -> None:
        super().__init__(image, architecture, diffusion, condition_channels=condition_channels)
        self.net: Any = make_unet(image, architecture, image.channels + condition_channels, image.channels)

    def evaluate(self, x: Tensor, t: Tensor, evaluation: Evaluation) -> Prediction:
        return Prediction(run_unet(self.net, self.with_condition(x, evaluation), t, self.recompute))

    @property
    def minimum_size(self) -> int:
        return 2

    @property
    def receptive_range(self) -> int | None:
        return None

    @property
    def inexact_in_tiles(self) -> str | None:
        return "its group normalisation and the attention of its middle read the whole image"

    def compile_steps(self) -> None:
        self.net.compile()
