"""Rectangles of pixels, and an image cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels of a canvas: its first row and column, its height and width."""

    y: int
    x: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def rows(self) -> slice:
        """Its rows of the canvas."""
        return slice(self.y, self.y + self.height)

    @property
    def columns(self) -> slice:
        """Its columns of the canvas."""
        return slice(self.x, self.x + self.width)

    def grown(self, pixels: int, canvas: tuple[int, int]) -> Region:
        """The region and a border of `pixels` around it, as far as the canvas (height, width) reaches."""
        top, left = max(0, self.y - pixels), max(0, self.x - pixels)
        bottom = min(canvas[0], self.y + self.height + pixels)
        right = min(canvas[1], self.x + self.width + pixels)
        return Region(top, left, bottom - top, right - left)

    def scaled(self, factor: int) -> Region:
        """The same place where each pixel has become `factor` x `factor`."""
        return Region(self.y * factor, self.x * factor, self.height * factor, self.width * factor)

    def within(self, outer: Region) -> tuple[slice, slice]:
        """Its rows and columns in an array that holds `outer`."""
        y, x = self.y - outer.y, self.x - outer.x
        return slice(y, y + self.height), slice(x, x + self.width)


@dataclass(frozen=True)
class TileGrid:
    """An image (height, width) cut into tiles (height, width) from its upper left; the last ones may be smaller."""

    size: tuple[int, int]
    tile: tuple[int, int]

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.size[0] // self.tile[0])

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.size[1] // self.tile[1])

    def __len__(self) -> int:
        return self.rows * self.columns

    def __iter__(self) -> Iterator[Region]:
        return (self.region(index) for index in range(len(self)))

    def region(self, index: int) -> Region:
        """The tile of a number, counted row by row."""
        y, x = index // self.columns * self.tile[0], index % self.columns * self.tile[1]
        return Region(y, x, min(self.tile[0], self.size[0] - y), min(self.tile[1], self.size[1] - x))

    def touched(self, region: Region) -> list[int]:
        """The numbers of the tiles that a region reaches into."""
        (high, wide), columns = self.tile, self.columns
        across = range(region.x // wide, (region.x + region.width - 1) // wide + 1)
        down = range(region.y // high, (region.y + region.height - 1) // high + 1)
        return [row * columns + column for row in down for column in across]

    @property
    def chunk(self) -> tuple[int, int]:
        """Height and width of a stored chunk: a tile, or the image where that is smaller."""
        return min(self.tile[0], self.size[0]), min(self.tile[1], self.size[1])
