"""The canvas on disk: two buffers that the sampling steps go between, of noisy images and of what a
sampler that looks back keeps beside them, and the painted image.

All are zarr arrays (channels, height, width) with one chunk a tile, uncompressed, since noise does not compress. A tile
is written by whoever paints it and by nobody else, so workers never write to the same file.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphogen.pyramids.arrays import PixelArray, create_array, open_array
from morphogen.pyramids.region import Region, TileGrid
from morphogen.slides.progress import checksum

BUFFERS = ("canvas-0.zarr", "canvas-1.zarr")
_PAINTED = "painted.zarr"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Canvas:
    """The arrays in a folder; see the module. channels: of the painted image. kept: channels of what a step leaves for
    the next one, the noisy image's and those of the sampler's history. factor: pixels on a side of a cell of the grid.
    """

    def __init__(self, folder: Path, grid: TileGrid, channels: int, kept: int, factor: int = 1) -> None:
        self.folder, self.grid, self.channels, self.kept, self.factor = folder, grid, channels, kept, factor
        self._open: dict[str, PixelArray] = {}

    def create(self, evaluations: int) -> None:
        """Make the arrays that a number of evaluations needs."""
        for name in (*BUFFERS[: evaluations - 1], _PAINTED):
            create_array(self.folder / name, *self.layout(name))

    def layout(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        """The shape, the chunk and the type of one of the arrays."""
        if name != _PAINTED:
            return (self.kept, *self.grid.size), (self.kept, *self.grid.chunk), "float32"
        size, chunk = (tuple(self.factor * side for side in of) for of in (self.grid.size, self.grid.chunk))
        return (self.channels, *size), (self.channels, *chunk), "uint8"

    def bytes_needed(self, evaluations: int, tiles: int) -> int:
        """Bytes of the arrays on disk at most while `tiles` tiles are painted: two buffers of four bytes each, or
        at the last evaluation one and the painted image.
        """
        one, painted = 4 * self.kept, self.channels * self.factor**2
        pixel = {1: painted, 2: one + painted}.get(evaluations, max(2 * one, one + painted))
        return tiles * self.grid.chunk[0] * self.grid.chunk[1] * pixel

    def array(self, name: str) -> PixelArray:
        """One of the arrays."""
        if name not in self._open:
            self._open[name] = open_array(self.folder / name)
        return self._open[name]

    def read(self, i: int, region: Region) -> Tensor:
        """The result of evaluation number i in a region, float32 (1, kept, height, width)."""
        found = self.array(BUFFERS[i % 2])[:, region.rows, region.columns]
        return torch.from_numpy(np.ascontiguousarray(found))[None]

    def write(self, i: int, region: Region, kept: Tensor) -> int:
        """Put what evaluation number i leaves of a tile, (1, kept, height, width), in its place; its checksum."""
        values = kept[0].cpu().numpy()
        self.array(BUFFERS[i % 2])[:, region.rows, region.columns] = values
        return checksum(values)

    def write_painted(self, region: Region, pixels: np.ndarray) -> int:
        """Put a finished tile, uint8 (C, height, width) in pixels, in its place; its checksum."""
        region = region.scaled(self.factor)
        self.painted[:, region.rows, region.columns] = pixels
        return checksum(pixels)

    def checksum_left(self, i: int, index: int, last: bool) -> int | None:
        """The checksum of what lies where evaluation number i left a tile; None where that cannot be read.

        last: of the finished image.
        """
        region = self.grid.region(index)
        try:
            array = self.painted if last else self.array(BUFFERS[i % 2])
            region = region.scaled(self.factor if last else 1)
            return checksum(array[:, region.rows, region.columns])
        except Exception:  # zarr raises errors of many types for damaged chunks and metadata
            return None

    @property
    def painted(self) -> PixelArray:
        """The painted image, uint8 (C, height, width), with one chunk a tile."""
        return self.array(_PAINTED)

    @staticmethod
    def painted_in(folder: Path) -> PixelArray:
        """The painted image in the folder of a canvas, uint8 (C, height, width)."""
        return open_array(folder / _PAINTED)

    def names(self, i: int, evaluations: int) -> list[str]:
        """The arrays that evaluation number i reads and writes; once all are done, the painted image."""
        read = [BUFFERS[(i - 1) % 2]] if 0 < i < evaluations else []
        return [*read, *([BUFFERS[i % 2]] if i + 1 < evaluations else []), _PAINTED]

    def forget(self, i: int, index: int, last: bool) -> None:
        """Remove the file (or what lies in its place) of what evaluation number i left of a tile. last: of the
        finished image.
        """
        row, column = divmod(index, self.grid.columns)
        chunk = self.folder / (_PAINTED if last else BUFFERS[i % 2]) / "c" / "0" / str(row) / str(column)
        if chunk.is_dir() and not chunk.is_symlink():
            shutil.rmtree(chunk)
        chunk.unlink(missing_ok=True)

    def drop(self, i: int) -> None:
        """Free what evaluation number i left."""
        self._open.pop(BUFFERS[i % 2], None)
        shutil.rmtree(self.folder / BUFFERS[i % 2], ignore_errors=True)
