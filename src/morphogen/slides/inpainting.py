"""Inpainting a slide: the tiles that a hole reaches into are painted, and put into a copy; all else keeps its bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import replace_file
from morphogen.core.images import to_float
from morphogen.diffusion.known import Known
from morphogen.slides.canvas import Canvas, TileGrid, create_array, open_array
from morphogen.slides.existing import Existing, open_existing
from morphogen.slides.mask import Mask
from morphogen.slides.pyramid import BLOCK, blocks, shrunk
from morphogen.slides.region import Region
from morphogen.tasks.inpaint import dilate

_HOLE, _TILES = "hole.zarr", "tiles.npy"


class KnownContent:
    """What a worker knows of a slide that it fills. folder: of the work. context: cells around that update too."""

    def __init__(self, folder: Path, source: Path, context: int) -> None:
        self._slide, self._context = open_existing(source), context
        self._hole = open_array(folder / _HOLE)

    def around(self, outer: Region) -> tuple[Known, Tensor]:
        """What is known of a region, and which of its cells update."""
        canvas = self._slide.sizes[0]
        wide = outer.grown(self._context, canvas)
        hole = torch.from_numpy(np.asarray(self._hole[wide.rows, wide.columns]) > 0)[None, None]
        rows, columns = outer.within(wide)
        active = dilate(hole, self._context)[..., rows, columns]
        images = to_float(torch.from_numpy(np.ascontiguousarray(self._slide.read(outer))))[None]
        return Known(images, (~hole[..., rows, columns]).to(images)), active


def mark_tiles(folder: Path, hole: Mask, grid: TileGrid, name: str) -> list[int]:
    """Write down where a slide is to be filled, and which tiles that touches. name: of the hole, for errors.

    Raises InputError where the hole marks nothing of the slide, or all of it.
    """
    if (folder / _TILES).is_file():
        return [int(i) for i in np.load(folder / _TILES)]
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
    buffer = io.BytesIO()
    np.save(buffer, np.array(touched))
    replace_file(folder / _TILES, buffer.getvalue())
    return touched


def write_filled_copy(folder: Path, source: Existing, staged: Path, canvas: Canvas, tiles: list[int]) -> None:
    """A copy of a slide with the painted hole in it, and in its smaller levels what follows from that."""
    copy = source.copy(staged)
    changed = open_array(folder / _HOLE)
    regions = [canvas.grid.region(index) for index in tiles]
    for level, size in enumerate(copy.sizes):
        grid = _Tiles(size, copy.tile[level])
        if level:
            changed, factors = _smaller(folder, copy, level, changed, regions)
            regions = [_shrunk(region, factors, size) for region in regions]
        for tile in sorted({t for region in regions for t in grid.touched(region)}):
            region = grid.region(tile)
            where = np.asarray(changed[region.rows, region.columns]) > 0
            if not where.any():
                continue
            before = copy.read(region, level)
            if level == 0:
                new = np.asarray(canvas.painted[:, region.rows, region.columns])
            else:
                new = _means(copy, level - 1, region, factors)
            copy.write(region, np.where(where, new, before), level)
        copy = open_existing(staged)  # as it has become: the next level is made of this one


def filled_whole(folder: Path, source: Existing, canvas: Canvas) -> Any:
    """The whole slide with the painted hole in it, zarr uint8 (C, height, width), made in the folder of the work."""
    chunk = (source.channels, *(min(BLOCK, side) for side in source.sizes[0]))
    image = create_array(folder / "whole.zarr", (source.channels, *source.sizes[0]), chunk, "uint8")
    hole = open_array(folder / _HOLE)
    for region in blocks(source.sizes[0]):
        where = np.asarray(hole[region.rows, region.columns]) > 0
        pixels = source.read(region)
        if where.any():
            pixels = np.where(where, np.asarray(canvas.painted[:, region.rows, region.columns]), pixels)
        image[:, region.rows, region.columns] = pixels
    return image


class _Tiles:
    """The tiles of a level of a file."""

    def __init__(self, size: tuple[int, int], tile: tuple[int, int]) -> None:
        self.size, self.tile = size, tile

    def touched(self, region: Region) -> list[tuple[int, int]]:
        (high, wide), r = self.tile, region
        rows = range(r.y // high, (r.y + r.height - 1) // high + 1)
        return [(i, j) for i in rows for j in range(r.x // wide, (r.x + r.width - 1) // wide + 1)]

    def region(self, place: tuple[int, int]) -> Region:
        y, x = place[0] * self.tile[0], place[1] * self.tile[1]
        return Region(y, x, min(self.tile[0], self.size[0] - y), min(self.tile[1], self.size[1] - x))


def _smaller(
    folder: Path, slide: Existing, level: int, changed: Any, regions: list[Region]
) -> tuple[Any, tuple[int, int]]:
    """Which pixels of a level depend on changed ones of the level before, and how many of those make one."""
    large, small = slide.sizes[level - 1], slide.sizes[level]
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


def _blocks(array: Any, target: Region, factors: tuple[int, int]) -> np.ndarray:
    """What of a large plane becomes each pixel of a region of a smaller one: (height, fy, width, fx)."""
    (fy, fx), (y, x) = factors, (target.y, target.x)
    part = np.asarray(array[y * fy : (y + target.height) * fy, x * fx : (x + target.width) * fx])
    part = np.pad(part, ((0, target.height * fy - part.shape[0]), (0, target.width * fx - part.shape[1])), mode="edge")
    return part.reshape(target.height, fy, target.width, fx)


def _means(slide: Existing, level: int, target: Region, factors: tuple[int, int]) -> np.ndarray:
    """A region of the level after, uint8 (C, height, width), by means."""
    (fy, fx), size = factors, slide.sizes[level]
    y, x = target.y * fy, target.x * fx
    region = Region(y, x, min(target.height * fy, size[0] - y), min(target.width * fx, size[1] - x))
    return shrunk(slide.read(region, level), factors)
