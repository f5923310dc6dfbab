"""What each pixel is told beside the noisy image: the settings that `config.json` holds under "condition"."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from morphogen.core.model import ImageConfig

SMALLEST_FACTOR, LARGEST_FACTOR = 2, 8


class ConditionConfig(BaseModel):
    """The condition of a model that was trained with one: float (B, channels, H, W), like the noisy image.

    kind: picture, a coarser picture of the same place, enlarged; its last channel says how much noise is on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["picture"] = Field("picture", description="picture: a coarser one of the same place, enlarged")
    factor: int = Field(4, ge=SMALLEST_FACTOR, le=LARGEST_FACTOR, description="pixels on a side of one of the coarser")
    channels: int = Field(4, ge=2, le=65, description="of the condition: those of the picture, and one more")
    noise: float = Field(
        0.4, ge=0, le=2, description="most noise that training puts on the picture, in units of [-1, 1]"
    )
    sampling_noise: float = Field(
        0.1, ge=0, le=2, description="noise that sampling puts on a painted picture, whose faults it hides"
    )

    @classmethod
    def of_picture(cls, image: ImageConfig, factor: int, **settings: float) -> ConditionConfig:
        """That of a picture `factor` times as coarse as such images."""
        return cls(factor=factor, channels=image.channels + 1, **settings)

    def check(self, image: ImageConfig) -> None:
        """Raise ValueError where it does not belong to such images."""
        if self.channels != image.channels + 1:
            raise ValueError(
                f"condition.channels is {self.channels}; a picture of {image.channels} channels and its noise are "
                f"{image.channels + 1}"
            )

    def coarse(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the coarser picture of an image (height, width)."""
        return -(-size[0] // self.factor), -(-size[1] // self.factor)
