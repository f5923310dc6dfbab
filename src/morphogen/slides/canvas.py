"""The canvas on disk: two buffers of noisy images that the sampling steps go between, and the painted image.

All are zarr arrays (channels, height, width) with one chunk a tile, uncompressed, since noise does not compress. A tile
is written by whoever paints it and by nobody else, so workers never write to the same file.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.slides.region import Region

BUFFERS = ("canvas-0.zarr", "canvas-1.zarr")
_PAINTED = "painted.zarr"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class TileGrid:
    """A canvas (height, width) cut into square tiles from its upper left; the last ones may be smaller."""

    size: tuple[int, int]
    tile: int

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.size[0] // self.tile)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.size[1] // self.tile)

    def __len__(self) -> int:
        return self.rows * self.columns

    def region(self, index: int) -> Region:
        """The tile of a number, counted row by row."""
        y, x = index // self.columns * self.tile, index % self.columns * self.tile
        return Region(y, x, min(self.tile, self.size[0] - y), min(self.tile, self.size[1] - x))

    def around(self, region: Region) -> list[int]:
        """The numbers of the tiles that a region reaches into."""
        rows = range(region.y // self.tile, (region.y + region.height - 1) // self.tile + 1)
        columns = range(region.x // self.tile, (region.x + region.width - 1) // self.tile + 1)
        return [row * self.columns + column for row in rows for column in columns]

    @property
    def chunk(self) -> tuple[int, int]:
        """Height and width of a chunk on the disk."""
        return min(self.tile, self.size[0]), min(self.tile, self.size[1])


def open_array(path: Path) -> Any:
    """An existing zarr array."""
    import zarr

    return zarr.open_array(str(path), mode="r+")


def create_array(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> Any:
    """A new uncompressed zarr array of zeros; chunks that nobody writes take no space."""
    import zarr

    return zarr.create_array(
        str(path), shape=shape, chunks=chunk, dtype=dtype, compressors=None, filters=None, fill_value=0, overwrite=True
    )


class Canvas:
    """The arrays in a folder; see the module. channels: of the image."""

    def __init__(self, folder: Path, grid: TileGrid, channels: int) -> None:
        self.folder, self.grid, self.channels = folder, grid, channels
        self._open: dict[str, Any] = {}

    def create(self, evaluations: int) -> None:
        """Make the arrays that so many evaluations need."""
        shape, chunk = (self.channels, *self.grid.size), (self.channels, *self.grid.chunk)
        for name in BUFFERS[: evaluations - 1]:
            create_array(self.folder / name, shape, chunk, "float32")
        create_array(self.folder / _PAINTED, shape, chunk, "uint8")

    def bytes_needed(self, evaluations: int, tiles: int) -> int:
        """What the arrays take on the disk at most while so many tiles are painted: two buffers of four bytes a number,
        or at the last evaluation one and the painted image.
        """
        chunk = self.channels * self.grid.chunk[0] * self.grid.chunk[1]
        return tiles * chunk * {1: 1, 2: 5}.get(evaluations, 8)

    def array(self, name: str) -> Any:
        """One of the arrays."""
        if name not in self._open:
            self._open[name] = open_array(self.folder / name)
        return self._open[name]

    def read(self, i: int, region: Region) -> Tensor:
        """A region (1, C, height, width), float32, as evaluation number i left it."""
        found = self.array(BUFFERS[i % 2])[:, region.rows, region.columns]
        return torch.from_numpy(np.ascontiguousarray(found))[None]

    def write(self, i: int, region: Region, noisy: Tensor) -> None:
        """Put a tile (1, C, height, width) where evaluation number i leaves it."""
        self.array(BUFFERS[i % 2])[:, region.rows, region.columns] = noisy[0].cpu().numpy()

    def write_painted(self, region: Region, pixels: np.ndarray) -> None:
        """Put a finished tile, uint8 (C, height, width), in its place."""
        self.painted[:, region.rows, region.columns] = pixels

    @property
    def painted(self) -> Any:
        """The painted image, uint8 (C, height, width), with one chunk a tile."""
        return self.array(_PAINTED)

    def drop(self, i: int) -> None:
        """Free what evaluation number i left."""
        self._open.pop(BUFFERS[i % 2], None)
        shutil.rmtree(self.folder / BUFFERS[i % 2], ignore_errors=True)
