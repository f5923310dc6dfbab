"""Smaller levels of an image, each half as large as the one before, block by block."""

from __future__ import annotations

import shutil
from functools import reduce
from pathlib import Path

import numpy as np

from morphogen.pyramids.arrays import PixelArray, create_array
from morphogen.pyramids.region import Region, TileGrid

BLOCK = 512


def shrink(pixels: np.ndarray, factors: tuple[int, int]) -> np.ndarray:
    """Means of `factors` rows and columns, uint8 (C, H, W), a half rounded up; at the end the last ones count again."""
    (fy, fx), (_, height, width) = factors, pixels.shape
    full = np.pad(pixels, ((0, 0), (0, -height % fy), (0, -width % fx)), mode="edge").astype(np.uint32)
    rows = reduce(np.add, (full[:, i::fy] for i in range(fy)))
    sums = reduce(np.add, (rows[:, :, i::fx] for i in range(fx)))
    return ((2 * sums + fy * fx) // (2 * fy * fx)).astype(np.uint8)


def halve(pixels: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels; see `shrink`."""
    return shrink(pixels, (2, 2))


def blocks(size: tuple[int, int], side: int = BLOCK) -> TileGrid:
    """The squares of a grid over an image (height, width), row by row."""
    return TileGrid(size, (side, side))


def level_sizes(size: tuple[int, int], smallest: int) -> list[tuple[int, int]]:
    """The sizes of all levels: halved, rounded up, until no side is above `smallest`."""
    found = [size]
    while max(found[-1]) > smallest:
        found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
    return found


def halve_region(large: PixelArray, small: PixelArray, region: Region) -> None:
    """Fill a region of a level, zarr (C, height, width), from the level twice as large."""
    source = large[:, 2 * region.y : 2 * (region.y + region.height), 2 * region.x : 2 * (region.x + region.width)]
    small[:, region.rows, region.columns] = halve(source)


def make_levels(folder: Path, image: PixelArray, smallest: int) -> list[PixelArray]:
    """The image, zarr (C, height, width), and its smaller levels, made in a folder; see `level_sizes`."""
    levels = [image]
    channels, height, width = image.shape
    for number, size in enumerate(level_sizes((height, width), smallest)[1:], 1):
        path = folder / f"level-{number}.zarr"
        shutil.rmtree(path, ignore_errors=True)
        levels.append(create_array(path, (channels, *size), (channels, *blocks(size).chunk), "uint8"))
        for region in blocks(size):
            halve_region(levels[-2], levels[-1], region)
    return levels
