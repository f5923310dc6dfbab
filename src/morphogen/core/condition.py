"""What each pixel is told beside the noisy image: the settings that `config.json` holds under "condition"."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from morphogen.core.model import ImageConfig

SMALLEST_FACTOR, LARGEST_FACTOR = 2, 8
MOST_CLASSES = 64
UNKNOWN = 255
"""The number of no class in a map: nothing is told there."""
Classes = dict[str, str | None]
"""What the pixels of a map mean: of each value or colour (#rrggbb) the class's name, None where nothing is told."""


def class_names(classes: Classes) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    return list(dict.fromkeys(name for name in classes.values() if name is not None))


Features = tuple[float, float, float, float]


class Clusters(BaseModel):
    """The classes of maps that follow from pictures alone (`auto:K`): the nearest of some centres."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: float = Field(gt=0, le=1000, description="deviation of the Gaussian in pixels")
    mean: Features = Field(description="of the features of the images: L*, a*, b* and the deviation of L*")
    scale: Features = Field(description="that the features are divided by")
    centres: tuple[Features, ...] = Field(
        min_length=2, max_length=MOST_CLASSES, description="of every class, from dark to bright"
    )


class ConditionConfig(BaseModel):
    """The condition of a model that was trained with one: float (B, channels, H, W), like the noisy image.

    kind: picture, a coarser picture of the same place, enlarged, and a channel that says how much noise is on it; map,
    a channel a class, 1 where a pixel is of it and 0 elsewhere (all 0 where nothing is told); both, in this order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["picture", "map", "both"] = Field(
        "picture",
        description="picture: a coarser one of the same place, enlarged; map: the class of each pixel; both",
    )
    factor: int = Field(4, ge=SMALLEST_FACTOR, le=LARGEST_FACTOR, description="pixels on a side of one of the coarser")
    channels: int = Field(
        4,
        ge=1,
        le=65 + MOST_CLASSES,
        description="of the condition: of the picture and one more, and the classes",
    )
    noise: float = Field(
        0.4, ge=0, le=2, description="most noise that training puts on the picture, in units of [-1, 1]"
    )
    sampling_noise: float = Field(
        0.1, ge=0, le=2, description="noise that sampling puts on a painted picture, whose faults it hides"
    )
    classes: Classes = Field({}, description="of the map: the value or colour of pixels, and the class's name")
    clusters: Clusters | None = Field(None, description="of maps by auto:K, what tells the classes apart")
    dropout: float = Field(0.1, ge=0, lt=1, description="probability of hiding the map in a step of training")

    @classmethod
    def of_picture(cls, image: ImageConfig, factor: int, **settings: float) -> ConditionConfig:
        """That of a picture `factor` times as coarse as such images."""
        return cls(factor=factor, channels=image.channels + 1, **settings)

    def with_map(self, classes: Classes) -> ConditionConfig:
        """The same of a picture, and of a map of classes."""
        more = {"kind": "both", "channels": self.channels + len(class_names(classes)), "classes": classes}
        return ConditionConfig(**{**self.model_dump(), **more})

    @classmethod
    def of_map(cls, classes: Classes, **settings: float) -> ConditionConfig:
        """That of a map of classes."""
        return cls(kind="map", channels=len(class_names(classes)), classes=classes, **settings)

    @property
    def has_picture(self) -> bool:
        """Whether a coarser picture is told."""
        return self.kind != "map"

    @property
    def map_channels(self) -> int:
        """Channels that tell the map: one a class."""
        return len(class_names(self.classes))

    def check(self, image: ImageConfig) -> None:
        """Raise ValueError where it does not belong to such images."""
        wanted = (image.channels + 1) * self.has_picture + self.map_channels
        if self.channels != wanted:
            parts = [f"a picture of {image.channels} channels and its noise"] * self.has_picture
            parts += [f"a map of {self.map_channels} classes"] * (self.kind != "picture")
            raise ValueError(f"condition.channels is {self.channels}; {' and '.join(parts)} are {wanted}")
        if (self.kind == "picture") != (self.map_channels == 0):
            raise ValueError(f"condition.kind is {self.kind}, with {self.map_channels} classes")

    def coarse(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the coarser picture of an image (height, width)."""
        return -(-size[0] // self.factor), -(-size[1] // self.factor)

    def settings(self) -> dict[str, object]:
        """Its table in `config.json`: what belongs to its kind."""
        of_map = {"classes", "dropout", "clusters"} if self.kind == "picture" else set[str]()
        of_picture = {"factor", "noise", "sampling_noise"} if self.kind == "map" else set[str]()
        unknown = {"clusters"} if self.clusters is None else set[str]()
        return self.model_dump(mode="json", exclude=of_map | of_picture | unknown)
