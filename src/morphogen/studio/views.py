"""The views of the page, cut into tiles: an endless slide or a finished one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.pyramids.encoding import encoded
from morphogen.pyramids.levels import shrink
from morphogen.pyramids.pyramid import Pyramid
from morphogen.pyramids.region import Region
from morphogen.studio.endless import EndlessLevel
from morphogen.studio.painting import TILES, Painting, middle_of, tile_side

PLACEHOLDERS = 3
"""How many levels one may zoom out beyond those that are computed."""


@dataclass(frozen=True)
class Tile:
    """A tile of a view: the level, 0 being full resolution, and column and row from the top left corner."""

    level: int
    column: int
    row: int


class View(ABC):
    """Something to look at in tiles. title: for the page. tile: their height and width."""

    title: str
    tile: int
    levels: Sequence[tuple[int, int]]
    """(height, width) at each level, 0 being full resolution."""
    mpp: float | None = None
    """Micrometres a pixel at full resolution, across, where they are known."""

    def has(self, tile: Tile) -> bool:
        """Whether there is such a tile."""
        if not 0 <= tile.level < len(self.levels):
            return False
        height, width = self.levels[tile.level]
        return 0 <= tile.column < -(-width // self.tile) and 0 <= tile.row < -(-height // self.tile)

    def description(self) -> dict[str, object]:
        """The description of the view that the page asks for."""
        (height, width), *_ = self.levels
        scales = [level_width / width for _, level_width in self.levels]
        size = {"tile": self.tile, "height": height, "width": width, "scales": scales, "mpp": self.mpp}
        return {"title": self.title, **size}

    @abstractmethod
    def pixels_of(self, tile: Tile) -> int:
        """How many pixels must be found for a tile: what it costs."""

    @abstractmethod
    def pictures(self, tiles: Sequence[Tile], stop: Callable[[], bool]) -> list[bytes]:
        """The tiles as PNG files. Raises Stopped once `stop()` is true."""


class EndlessView(View):
    """An endless slide. levels: finest first; a level is computed for what is looked at from as far as it paints, and
    zoomed out of further by at most `zoom_out` halvings. Beyond the coarsest of a single model stands the average
    colour; the coarsest level of a pyramid is where one can zoom out to. seed: of the whole.
    """

    def __init__(
        self, levels: Sequence[EndlessLevel], title: str, zoom_out: int, seed: int = 0, tile: int = 64
    ) -> None:
        self.slide, self.title, self.seed = levels[0].slide, title, seed
        self.tile = tile_side(levels, tile)
        self._from: list[tuple[EndlessLevel, int]] = []  # what each level of the view is painted by, and shrunk by
        for number, level in enumerate(levels):
            last = number + 1 == len(levels)
            halvings = range(zoom_out + 1) if last else range(8)
            factors = [1 << k for k in halvings if last or level.scale << k < levels[number + 1].scale]
            self._from += [(level, factor) for factor in factors]
        self.computed, self.mpp = len(self._from), self.slide.mpp
        scales = [level.scale * factor for level, factor in self._from]
        if len(levels) == 1:
            scales += [scales[-1] << k for k in range(1, PLACEHOLDERS + 1)]
        side = self.tile * TILES
        self.levels = [(side // scale, side // scale) for scale in scales]
        self.painting = Painting(levels, middle_of(levels, tile))
        self._placeholder: bytes | None = None

    def description(self) -> dict[str, object]:
        return {
            **super().description(),
            "endless": True,
            "computed": self.computed,
            "seed": str(self.seed),  # which may be more than JavaScript's numbers hold
            "classes": self.painting.names,
            "sampler": self.slide.sampler,
            "sampling_steps": self.slide.steps,
        }

    def pixels_of(self, tile: Tile) -> int:
        return (self.tile * self._from[tile.level][1]) ** 2 if tile.level < self.computed else 0

    def pictures(self, tiles: Sequence[Tile], stop: Callable[[], bool]) -> list[bytes]:
        found: dict[Tile, bytes] = {}
        for number in sorted({tile.level for tile in tiles}):
            here = [tile for tile in tiles if tile.level == number]
            if number >= self.computed:
                found |= dict.fromkeys(here, self._coarse(stop))
                continue
            level, factor = self._from[number]
            side, own = self.tile * factor, self.painting.levels.index(level)
            regions = [Region(tile.row * side, tile.column * side, side, side) for tile in here]
            pictures = level.slide.pictures(regions, stop)
            for tile, region, pixels in zip(here, regions, pictures, strict=True):
                found[tile] = _small(self.painting.over(own, region, pixels), factor)
        return [found[tile] for tile in tiles]

    def _coarse(self, stop: Callable[[], bool]) -> bytes:
        """A tile in the average colour of the middle of the canvas."""
        if self._placeholder is None:
            middle = self.tile * (TILES // 2 - 1)
            (pixels,) = self.slide.pictures([Region(middle, middle, 2 * self.tile, 2 * self.tile)], stop)
            colour = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
            self._placeholder = png(np.broadcast_to(colour, (self.tile, self.tile, len(colour))))
        return self._placeholder


def _small(pixels: NDArray[np.uint8], factor: int) -> bytes:
    """Pixels shrunk by a factor, as a PNG."""
    return png(shrink(pixels.transpose(2, 0, 1), (factor, factor)).transpose(1, 2, 0))


class FinishedView(View):
    """A finished slide."""

    def __init__(self, slide: Pyramid, title: str, tile: int = 256) -> None:
        if slide.channels not in (1, 3, 4):
            raise InputError(f"{slide.path} has {slide.channels} channels; a picture has 1 or 3")
        self.slide, self.title, self.tile, self.levels = slide, title, tile, slide.levels
        self.mpp = slide.mpp[1] if slide.mpp else None

    def description(self) -> dict[str, object]:
        return {**super().description(), "endless": False, "computed": len(self.levels)}

    def pixels_of(self, tile: Tile) -> int:
        return self.tile**2

    def pictures(self, tiles: Sequence[Tile], stop: Callable[[], bool]) -> list[bytes]:
        return [self._picture(tile) for tile in tiles]

    def _picture(self, tile: Tile) -> bytes:
        height, width = self.levels[tile.level]
        top, left = tile.row * self.tile, tile.column * self.tile
        region = Region(top, left, min(self.tile, height - top), min(self.tile, width - left))
        return png(self.slide.read_region(region, tile.level))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 1, 3 or 4) as a PNG file, made quickly rather than small."""
    return encoded(pixels, "PNG", compress_level=1)
