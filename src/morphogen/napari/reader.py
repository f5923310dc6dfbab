"""Slides as napari opens them: every resolution, of which only what is in sight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.napari.work import LayerData
from morphogen.pyramids import Pyramid, Region, is_pyramid, open_pyramid

_READ = 1024
"""Pixels a side, at least, that are read at once: a slide of a million tiles is too many pieces to keep count of."""


def find_reader(path: str | list[str]) -> Callable[[str], list[LayerData]] | None:
    """The function that opens a slide, or None for what is no slide, or several files."""
    return open_slide if isinstance(path, str) and is_pyramid(Path(path)) else None


def open_slide(path: str) -> list[LayerData]:
    """A slide's layer, or one a channel where it has neither one nor three.

    Raises InputError, naming it, where it cannot be read.
    """
    pyramid = open_pyramid(path)
    if pyramid.ignored:
        from napari.utils.notifications import show_warning

        axes = ", ".join(f"{name} ({count})" for name, count in pyramid.ignored.items())
        show_warning(f"{path} has further axes, of which the first plane is shown: {axes}")
    return [slide_layer(pyramid)]


def slide_layer(pyramid: Pyramid) -> LayerData:
    """The layer of a pyramid."""
    levels = [level_array(pyramid, level) for level in range(len(pyramid.levels))]
    name = pyramid.path.name
    settings: dict[str, Any] = {"name": name, "multiscale": True}
    if pyramid.mpp is not None:
        settings |= {"scale": pyramid.mpp, "units": ("um", "um")}
    if pyramid.channels == 3:
        settings["rgb"] = True
    elif pyramid.channels == 1:
        levels = [level[..., 0] for level in levels]
        settings |= {"rgb": False, "contrast_limits": (0, 255)}
    else:
        names = [f"{name} {channel}" for channel in range(pyramid.channels)]
        settings |= {"name": names, "channel_axis": 2, "contrast_limits": [(0, 255)] * pyramid.channels}
    return levels, settings, "image"


def level_array(pyramid: Pyramid, level: int) -> Any:
    """A level as a dask array uint8 (height, width, channels), whose pieces are whole tiles."""
    import dask.array

    def along(size: int, tile: int) -> tuple[int, ...]:
        piece = tile * -(-_READ // tile)
        return tuple(min(piece, size - start) for start in range(0, size, piece))

    def read(block_info: Any = None) -> np.ndarray:
        (top, bottom), (left, right), _ = block_info[None]["array-location"]
        return pyramid.read_region(Region(top, left, bottom - top, right - left), level)

    size, tile = pyramid.levels[level], pyramid.tiles[level]
    chunks = (along(size[0], tile[0]), along(size[1], tile[1]), (pyramid.channels,))
    return dask.array.map_blocks(read, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
