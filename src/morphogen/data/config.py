"""The data to train on and how images become tensors: the `data` branch of the configuration tree."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from morphogen.core.sizes import parse_size

Domain = Literal["photo", "faces", "icons", "texture", "pathology", "microscopy", "satellite"]
Fit = Literal["crop", "stretch", "pad", "random"]
# One literal each, so that a wrong word is answered with one list of the right ones.
DomainOrAuto = Literal["auto", "photo", "faces", "icons", "texture", "pathology", "microscopy", "satellite"]
FitOrAuto = Literal["auto", "crop", "stretch", "pad", "random"]

MIN_SIZE, MAX_SIZE = 8, 4096
UNLABELLED_ROWS = "rows"
"""What `unlabelled` is for the rows of the label table that have no label; ./rows is a folder of that name."""


def _as_size(value: object) -> object:
    """(height, width) from 64, "64" or "64x96"; anything else is returned as it is, for pydantic to judge."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    return parse_size(value) if isinstance(value, str) else value


Side = Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_as_size)]


class DataConfig(BaseModel):
    """Where the images come from and how they are fitted and augmented. Validated with ranges on construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    source: str = Field(min_length=1)
    """A folder, zip, image, slide, folder of slides, `builtin:NAME`, `celeba` or `medmnist:NAME`."""
    size: Size = (64, 64)
    """(height, width) of the training images, 8..4096 each; also one integer or "HxW"."""
    fit: FitOrAuto = "auto"
    """crop: the shorter side is shrunk to fit, then centre crop; stretch; pad: the longer side is shrunk to fit,
    padded with the background; random: random crops at native resolution (after `downscale`); auto: random for
    texture-like domains and for a single image, crop otherwise. No fit ever enlarges an image."""
    domain: DomainOrAuto = "auto"
    """The kind of images, which decides flips and quarter turns; auto: by the source (slides: pathology, ...)."""
    flips: Literal["auto", "none", "horizontal", "both"] = "auto"
    """Mirror images at random; auto: by the domain."""
    turns: bool | None = None
    """Quarter turns at random (half turns only where the size is not square); None: by the domain."""
    background: str = "white"
    """Colour under transparent pixels and around padded images, a CSS name or #rrggbb; rgba images need none."""
    colour: Literal["auto", "rgb", "gray", "rgba"] = "auto"
    """Three channels, one, or four: rgba has transparency as the last, which the colours are multiplied by. auto: for
    training, what most images are (gray only where all are); rgb elsewhere."""
    max_value: int | None = Field(default=None, ge=1, le=65535)
    """The brightest value of images of more than 8 bits, such as 4095 for 12 bits; None: as an OME-TIFF says it uses,
    else the largest that its type can hold. Brighter values are white."""
    downscale: float = Field(default=1.0, ge=1.0, le=1024.0)
    """Shrink images by this factor (area average) before fitting; for slides, relative to full resolution."""
    mpp: float | None = Field(default=None, gt=0, le=1000)
    """Micrometres that a pixel of a patch covers, for slides that say how large theirs are; instead of `downscale`."""
    stain_jitter: float = Field(default=0.0, ge=0.0, le=1.0)
    """How much the amounts of the stains (haematoxylin, eosin, DAB) vary at random: each is multiplied by 1 +- so much,
    and so much optical density is added or taken. 0: not at all; 0.05 is light, 0.2 strong. Colour images only."""
    max_bad: int = Field(default=10, ge=0)
    """How many unreadable or too small images are skipped (and named) before it is an error."""
    max_pixels: int = Field(default=200_000_000, ge=1, le=4_000_000_000)
    """Images of more pixels are refused before they are decoded."""
    split: str = Field(default="auto", min_length=1)
    """auto: the set's official split, else 80/10/10 by image if there are at least 10, else all train; none: all
    train; otherwise the path of a split file."""
    split_seed: int = Field(default=0, ge=0, le=2**64 - 1)
    """Fixes the automatic split; apart from the training seed, so that runs hold out the same images."""
    fold: int | None = Field(default=None, ge=0)
    """Which fold of a k-fold split file is the test part."""
    labels: str = Field(default="auto", min_length=1)
    """auto: the folders are classes, if there are any; none: no labels; otherwise the path of a label table (CSV or
    Parquet: file, and class, or one 0/1 column a label, optional patient, eye and split columns)."""
    maps: str | None = Field(default=None, min_length=1)
    """Maps that say which class each pixel is of: a folder of label images of the same stems, the name of a folder
    inside the source, such as maps; of slides, a GeoJSON or a folder of them; or auto:K, K classes of colour and
    texture that are found by clustering."""
    classes: str | None = Field(default=None, min_length=1)
    """Of the maps: a JSON table of the names of their values ("1") or colours ("#ff0000"), null where nothing is to be
    told; None: every value that there is, named by itself."""
    unlabelled: str | None = Field(default=None, min_length=1)
    """Images without labels to learn from as well: a folder or a zip, or `rows`: those of the label table whose row has
    none. They are of the training part. A batch has as many as their share of all images, at most half."""
    strict_ids: bool = False
    """Refuse ids of patients that are kept apart though they may be one's, such as 007 and 7, instead of saying so."""
    cache_mb: int = Field(default=2048, ge=0)
    """Decoded images are kept in memory up to this many MiB."""
    verify: Literal["full", "headers"] = "full"
    """full: decode every image once at the start; headers: only look at its size, find damage when it is met."""

    @field_validator("background")
    @classmethod
    def _is_colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getrgb(value)
        except ValueError:
            raise ValueError(f"background {value!r} is no colour; use a name such as white or #rrggbb") from None
        return value

    @model_validator(mode="after")
    def _fold_needs_file(self) -> Self:
        if self.fold is not None and self.split in ("auto", "none"):
            raise ValueError(f"fold {self.fold} needs a split file made with --folds; split is {self.split!r}")
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.classes is not None and self.maps is None:
            raise ValueError("classes are those of maps; give maps too, or leave them out")
        if self.maps is not None and self.unlabelled is not None:
            raise ValueError("unlabelled images have no maps; give either maps or unlabelled")
        if self.mpp is not None and self.downscale != 1:
            raise ValueError(
                f"mpp {self.mpp:g} and downscale {self.downscale:g} both say how fine patches are; give one"
            )
        if self.stain_jitter and self.colour in ("gray", "rgba"):
            raise ValueError(f"stain_jitter {self.stain_jitter:g} varies rgb images, and colour is {self.colour!r}")
        return self

    @model_validator(mode="after")
    def _unlabelled_beside_labels(self) -> Self:
        if self.unlabelled is not None and self.labels == "none":
            raise ValueError(
                f"unlabelled {self.unlabelled} stands beside labelled images, and labels is none; put its images "
                "among the others, or leave labels out"
            )
        if self.unlabelled == UNLABELLED_ROWS and self.labels == "auto":
            raise ValueError("unlabelled rows are those of a label table without a label; name one with --labels")
        return self

    @property
    def settled_colour(self) -> Literal["rgb", "gray", "rgba"]:
        """The colour mode that images are read in."""
        return "rgb" if self.colour == "auto" else self.colour

    @property
    def channels(self) -> int:
        """Channels of the images: 3 for rgb, 1 for gray, 4 for rgba."""
        return {"rgb": 3, "gray": 1, "rgba": 4}[self.settled_colour]
