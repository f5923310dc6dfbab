"""Inpainting a slide: the tiles that a hole reaches into are painted, and put into a copy; all else keeps its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.images import to_float
from morphogen.diffusion.known import Known
from morphogen.pyramids.arrays import PixelArray, create_array, open_array
from morphogen.pyramids.levels import blocks, shrink
from morphogen.pyramids.opening import open_pyramid
from morphogen.pyramids.pyramid import Pixels, Pyramid, WritablePyramid
from morphogen.pyramids.region import Region, TileGrid
from morphogen.slides.canvas import Canvas
from morphogen.slides.mask import Mask
from morphogen.tasks.inpaint import dilate

_HOLE = "mask.zarr"


class KnownContent:
    """The known content of a slide that is filled. folder: of the work. context: cells around that update too."""

    def __init__(self, folder: Path, source: Path, context: int) -> None:
        self._slide, self._context = open_pyramid(source), context
        self._hole = open_array(folder / _HOLE)

    def around(self, outer: Region) -> tuple[Known, Tensor]:
        """The known content of a region, and which of its cells update."""
        canvas = self._slide.levels[0]
        wide = outer.grown(self._context, canvas)
        hole = torch.from_numpy(np.asarray(self._hole[wide.rows, wide.columns]) > 0)[None, None]
        rows, columns = outer.within(wide)
        active = dilate(hole, self._context)[..., rows, columns]
        pixels = np.ascontiguousarray(self._slide.read_region(outer).transpose(2, 0, 1))
        images = to_float(torch.from_numpy(pixels))[None]
        return Known(images, (~hole[..., rows, columns]).to(images)), active


def mark_tiles(folder: Path, hole: Mask, grid: TileGrid, name: str) -> list[int]:
    """Write down, anew at every start, where a slide is to be filled; the tiles that this touches. name: for errors.

    Raises InputError where the hole marks nothing of the slide, or all of it.
    """
    array = create_array(folder / _HOLE, grid.size, grid.chunk, "uint8")
    touched, marked = [], 0
    for index in range(len(grid)):
        region = grid.region(index)
        part = hole(region)
        if part.any():
            array[region.rows, region.columns] = part.astype(np.uint8)
            touched.append(index)
            marked += int(part.sum())
    if not touched:
        raise InputError(f"{name} marks nothing of the slide; coordinates are pixels of its largest level, x before y")
    if marked == grid.size[0] * grid.size[1]:
        raise InputError(f"{name} marks the whole slide, so nothing is known of it; leave out --inpaint")
    return touched


def write_filled_copy(folder: Path, source: WritablePyramid, staged: Path, canvas: Canvas, tiles: list[int]) -> None:
    """A copy of a slide with the painted hole in it, and in its smaller levels what follows from that."""
    copy = source.copy(staged)
    changed = open_array(folder / _HOLE)
    regions = [canvas.grid.region(index) for index in tiles]
    for level, size in enumerate(copy.levels):
        grid = TileGrid(size, copy.tiles[level])
        if level:
            changed, factors = _smaller(folder, copy, level, changed, regions)
            regions = [_shrunk(region, factors, size) for region in regions]
        for index in sorted({index for region in regions for index in grid.touched(region)}):
            region = grid.region(index)
            where = np.asarray(changed[region.rows, region.columns]) > 0
            if not where.any():
                continue
            before = copy.read_region(region, level)
            new = _painted(canvas, region) if level == 0 else _means(copy, level - 1, region, factors)
            copy.write_tile(region, np.where(where[..., None], new, before), level)
        copy = type(source)(staged)  # as it has become: the next level is made of this one


def filled_whole(folder: Path, source: Pyramid, canvas: Canvas) -> PixelArray:
    """The whole slide with the painted hole in it, zarr uint8 (C, height, width), made in the folder of the work."""
    grid = blocks(source.levels[0])
    image = create_array(folder / "whole.zarr", (source.channels, *grid.size), (source.channels, *grid.chunk), "uint8")
    hole = open_array(folder / _HOLE)
    for region in grid:
        where = np.asarray(hole[region.rows, region.columns]) > 0
        pixels = source.read_region(region)
        if where.any():
            pixels = np.where(where[..., None], _painted(canvas, region), pixels)
        image[:, region.rows, region.columns] = pixels.transpose(2, 0, 1)
    return image


def _painted(canvas: Canvas, region: Region) -> Pixels:
    """Finished pixels of a region, uint8 (height, width, C)."""
    return np.asarray(canvas.painted[:, region.rows, region.columns]).transpose(1, 2, 0)


def _smaller(
    folder: Path, slide: Pyramid, level: int, changed: PixelArray, regions: list[Region]
) -> tuple[PixelArray, tuple[int, int]]:
    """Which pixels of a level depend on changed ones of the level before, and how many of those make one."""
    large, small = slide.levels[level - 1], slide.levels[level]
    factors = (max(1, round(large[0] / small[0])), max(1, round(large[1] / small[1])))
    if any(not abs(a - b * f) < f for a, b, f in zip(large, small, factors, strict=True)):
        raise InputError(
            f"--inpaint {slide.path}: its level of {small[0]}x{small[1]} pixels is no whole fraction of the one before"
        )
    chunk = tuple(min(512, side) for side in small)
    found = create_array(folder / f"changed-{level}.zarr", small, chunk, "uint8")
    for region in regions:
        target = _shrunk(region, factors, small)
        found[target.rows, target.columns] = _blocks(changed, target, factors).max(axis=(1, 3))
    return found, factors


def _shrunk(region: Region, factors: tuple[int, int], size: tuple[int, int]) -> Region:
    top, left = min(region.y // factors[0], size[0] - 1), min(region.x // factors[1], size[1] - 1)
    bottom = min(size[0], -(-(region.y + region.height) // factors[0]))
    right = min(size[1], -(-(region.x + region.width) // factors[1]))
    return Region(top, left, max(1, bottom - top), max(1, right - left))


def _blocks(array: PixelArray, target: Region, factors: tuple[int, int]) -> np.ndarray:
    """The block of a large plane under each pixel of a region of a smaller one: (height, fy, width, fx)."""
    (fy, fx), (y, x) = factors, (target.y, target.x)
    part = np.asarray(array[y * fy : (y + target.height) * fy, x * fx : (x + target.width) * fx])
    part = np.pad(part, ((0, target.height * fy - part.shape[0]), (0, target.width * fx - part.shape[1])), mode="edge")
    return part.reshape(target.height, fy, target.width, fx)


def _means(slide: Pyramid, level: int, target: Region, factors: tuple[int, int]) -> Pixels:
    """A region of the level after, uint8 (height, width, C), by means."""
    (fy, fx), size = factors, slide.levels[level]
    y, x = target.y * fy, target.x * fx
    region = Region(y, x, min(target.height * fy, size[0] - y), min(target.width * fx, size[1] - x))
    return shrink(slide.read_region(region, level).transpose(2, 0, 1), factors).transpose(1, 2, 0)
