"""Where a slide is to be filled: a mask image, or polygons in GeoJSON, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.files import LARGEST_IMAGE, read_bytes
from morphogen.pyramids.geojson import is_geojson, read_polygons
from morphogen.pyramids.region import Region

Mask = Callable[[Region], np.ndarray]
"""Which pixels of a region are to be filled, boolean (height, width)."""


def open_mask(path: Path, size: tuple[int, int], classes: tuple[str, ...] = (), value: int | None = None) -> Mask:
    """The hole that a file marks in a slide (height, width): white in an image as large as the slide or a whole
    fraction of it, or the insides of the polygons of a GeoJSON, whose coordinates are pixels, x before y.

    classes: of QuPath, whose polygons alone count. value: what counts in an image instead of white. Raises InputError,
    naming it, where it is neither.
    """
    if is_geojson(path):
        if value is not None:
            raise InputError(f"--mask-value is of an image, and --mask {path} is a GeoJSON; --class chooses there")
        return read_polygons(path, classes)
    if classes:
        raise InputError(f"--class chooses among the polygons of a GeoJSON, which --mask {path} is not")
    return _picture(path, size, value)


def _picture(path: Path, size: tuple[int, int], value: int | None) -> Mask:
    from morphogen.data.decode import open_picture
    from morphogen.data.formats import BadImage
    from morphogen.tasks.masks import as_mask

    try:
        picture = open_picture(read_bytes(path, "--mask ", LARGEST_IMAGE), f"--mask {path}")
    except BadImage as error:
        raise InputError(str(error)) from None
    assert isinstance(picture, Image.Image)
    width, height = picture.size
    factor = _factor(size, (height, width))
    if factor is None:
        raise InputError(
            f"--mask {path} is {height}x{width}, but the slide is {size[0]}x{size[1]} (height x width); it should be "
            "as large, or a half, a third, ... rounded up"
        )
    marked = as_mask(picture, (height, width), f"--mask {path}", value).numpy()

    def mask(region: Region) -> np.ndarray:
        rows = np.arange(region.y, region.y + region.height) // factor
        columns = np.arange(region.x, region.x + region.width) // factor
        found: np.ndarray = marked[rows[:, None], columns[None, :]]
        return found

    return mask


def _factor(large: tuple[int, int], small: tuple[int, int]) -> int | None:
    """By what number one size divided and rounded up is the other; where several do, a power of two."""
    side, part = max(zip(large, small, strict=True))
    last = -(-side // (part - 1)) - 1 if part > 1 else side
    fits = [f for f in range(-(-side // part), last + 1) if tuple(-(-n // f) for n in large) == small]
    return min(fits, key=lambda f: (f.bit_count() > 1, f), default=None)
