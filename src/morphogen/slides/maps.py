"""The map of a slide: out of a label image or a GeoJSON onto the disk, so that a worker reads of it what it needs.

Every level has its own, at its own scale; of latents it has a pixel a cell.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphogen.core.condition import UNKNOWN, Classes, class_names
from morphogen.core.errors import InputError
from morphogen.data.maps import read_map
from morphogen.data.polygon_maps import BACKGROUND
from morphogen.diffusion.condition import shrink_map
from morphogen.pyramids.arrays import create_array, open_array
from morphogen.pyramids.geojson import is_geojson, read_class_polygons
from morphogen.pyramids.region import Region, TileGrid

_FILE, _CHUNK = "map.zarr", 512
Read = Callable[[Region], np.ndarray]


def map_size(path: Path, size: tuple[int, int] | None, classes: Classes) -> tuple[int, int]:
    """Height and width of a slide that is painted from a map. size: as asked for, if it was.

    Raises InputError where a label image has another size, and where a GeoJSON, which has none, is given without one.
    """
    if is_geojson(path):
        if size is None:
            raise InputError(f"--map {path} is a GeoJSON, which has no size; give --size too")
        return size
    height, width = read_map(path, classes).shape
    if size is not None and size != (height, width):
        raise InputError(f"--size {size[0]}x{size[1]}: --map {path} is {height}x{width}; leave --size out")
    return height, width


def open_map(path: Path, size: tuple[int, int], classes: Classes) -> Read:
    """The numbers of the classes in a region of a slide, uint8 (height, width), by a label image or the polygons of a
    GeoJSON whose QuPath classes are the model's; of polygons that overlap, the later one counts. What no polygon covers
    is of the class named background, if there is one. Raises InputError.
    """
    if not is_geojson(path):
        found = read_map(path, classes)
        return lambda region: found[region.rows, region.columns]
    names = class_names(classes)
    polygons = read_class_polygons(path, "--map", names)
    outside = names.index(BACKGROUND) if BACKGROUND in names else UNKNOWN

    def read(region: Region) -> np.ndarray:
        values = np.full(region.size, outside, np.uint8)
        for name, polygon in polygons:
            if polygon.touches(region):
                marked = np.zeros(region.size, bool)
                polygon.mark(marked, region)
                values[marked] = names.index(name)
        return values

    return read


def write_map(folder: Path, read: Read, size: tuple[int, int], scale: int) -> None:
    """Write the map of a level into the folder of its work, unless it is there. size: of the finest level, in pixels.
    scale: pixels of that, on a side, that are one of the level's.
    """
    if (folder / _FILE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"{_FILE}-begun"
    shutil.rmtree(staged, ignore_errors=True)
    cells = (-(-size[0] // scale), -(-size[1] // scale))
    array = create_array(staged, (1, *cells), (1, min(_CHUNK, cells[0]), min(_CHUNK, cells[1])), "uint8")
    for region in _blocks(cells):
        whole = region.scaled(scale)
        inside = Region(whole.y, whole.x, min(whole.height, size[0] - whole.y), min(whole.width, size[1] - whole.x))
        values = shrink_map(torch.from_numpy(np.ascontiguousarray(read(inside)))[None], scale)
        array[:, region.rows, region.columns] = values.numpy()
    staged.rename(folder / _FILE)


def read_written(folder: Path, region: Region) -> Tensor:
    """The map in the folder of a work, of a region of its cells: uint8 (1, height, width)."""
    found = open_array(folder / _FILE)[:, region.rows, region.columns]
    return torch.from_numpy(np.ascontiguousarray(found))


def _blocks(cells: tuple[int, int]) -> Iterator[Region]:
    grid = TileGrid(cells, (_CHUNK, _CHUNK))
    return (grid.region(k) for k in range(len(grid)))
