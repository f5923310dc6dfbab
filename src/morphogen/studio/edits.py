"""What a brush does to an endless slide: strokes of a class, and places that get another seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from morphogen._version import VERSION
from morphogen.core.condition import UNKNOWN
from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.validation import table, validate
from morphogen.pyramids.region import Region

MOST_PIXELS = 512
"""Height and width that a stroke may cover at most."""
LARGEST_SIDE = 2048
"""Height and width of what is saved of a painting at most."""
_Coordinate = Annotated[float, Field(ge=-(2.0**40), le=2.0**40)]


class Edit(BaseModel):
    """One stroke of a round brush along a line of points (x, y), in pixels of full resolution from the canvas' middle.

    what: class, what lies below it is of the class `name` from now on (None: nothing is told there any more); seed: it
    begins with the noise of another seed, and so becomes another picture. radius: of the brush, in pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Literal["class", "seed"]
    points: tuple[tuple[_Coordinate, _Coordinate], ...] = Field(min_length=1, max_length=4096)
    radius: float = Field(ge=0.5, le=256)
    name: str | None = None
    seed: int = Field(0, ge=0, le=2**53)

    def area(self) -> Region:
        """The pixels that it can cover. Raises InputError where they are too many."""
        places = np.array(self.points)
        low, high = np.floor(places.min(axis=0) - self.radius), np.ceil(places.max(axis=0) + self.radius)
        (left, top), (width, height) = low.astype(int), (high - low).astype(int)
        if max(width, height) > MOST_PIXELS:
            raise InputError(f"the stroke covers {width}x{height} pixels; it may cover {MOST_PIXELS}x{MOST_PIXELS}")
        return Region(int(top), int(left), int(height), int(width))

    def covers(self, region: Region) -> NDArray[np.bool_]:
        """Which pixels of a region have their centres below the brush, boolean (height, width)."""
        covered = np.zeros(region.size, bool)
        lines = list(zip(self.points, self.points[1:], strict=False)) or [(self.points[0], self.points[0])]
        for (x0, y0), (x1, y1) in lines:
            top, bottom = _within(region.y, region.height, min(y0, y1) - self.radius, max(y0, y1) + self.radius)
            left, right = _within(region.x, region.width, min(x0, x1) - self.radius, max(x0, x1) + self.radius)
            if top >= bottom or left >= right:
                continue
            y = np.arange(region.y + top, region.y + bottom)[:, None] + 0.5
            x = np.arange(region.x + left, region.x + right)[None] + 0.5
            along, length = (x - x0) * (x1 - x0) + (y - y0) * (y1 - y0), (x1 - x0) ** 2 + (y1 - y0) ** 2
            share = np.clip(along / length, 0, 1) if length else np.zeros_like(along)
            away = np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0))
            covered[top:bottom, left:right] |= away <= self.radius
        return covered


class PaintingFile(BaseModel):
    """A painting as a file: what is looked at (its upper left pixel, from the middle), and how it came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["morphogen-painting-1"] = "morphogen-painting-1"
    morphogen: str = VERSION
    model: str
    seed: int = Field(ge=0, lt=2**64)
    sampler: str
    sampling_steps: int
    x: int
    y: int
    width: int = Field(ge=1, le=LARGEST_SIDE)
    height: int = Field(ge=1, le=LARGEST_SIDE)
    edits: tuple[Edit, ...] = ()


def _within(first: int, count: int, low: float, high: float) -> tuple[int, int]:
    """The first and last row (or column) of a region that lie between two places."""
    return max(0, int(np.floor(low)) - first), min(count, int(np.ceil(high)) + 1 - first)


def map_of(edits: list[Edit], region: Region, names: list[str]) -> NDArray[np.uint8]:
    """The map that strokes have made of a region: the numbers of classes, UNKNOWN where nothing is told."""
    found = np.full(region.size, UNKNOWN, np.uint8)
    for edit in edits:
        if edit.what == "class":
            found[edit.covers(region)] = UNKNOWN if edit.name is None else names.index(edit.name)
    return found


def read_painting(path: Path) -> PaintingFile:
    """A painting that the page of `serve` has saved. Raises InputError for what is none."""
    return validate(PaintingFile, table(read_json(path), str(path)), str(path))
