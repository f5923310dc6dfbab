"""Where a slide is to be filled: a mask image, or polygons in GeoJSON, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.pyramids.region import Region

_FARTHEST = 2.0**31  # pixels from the upper left that a point may lie
Mask = Callable[[Region], np.ndarray]
"""Which pixels of a region are to be filled, boolean (height, width)."""


def open_mask(path: Path, size: tuple[int, int]) -> Mask:
    """The hole that a file marks in a slide (height, width): white in an image as large as the slide or a whole
    fraction of it, or the insides of the polygons of a GeoJSON, whose coordinates are pixels, x before y.

    Raises InputError, naming it, where it is neither.
    """
    return _polygons(path, size) if path.suffix.lower() in (".geojson", ".json") else _picture(path, size)


def _picture(path: Path, size: tuple[int, int]) -> Mask:
    from morphogen.data.decode import open_picture
    from morphogen.data.formats import BadImage
    from morphogen.tasks.masks import as_mask

    try:
        picture = open_picture(path.read_bytes(), f"--mask {path}")
    except OSError as error:
        raise InputError(f"--mask {path} cannot be read: {error.strerror or error}") from None
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
    marked = as_mask(picture, (height, width), f"--mask {path}").numpy()

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


def _rings(value: Any, path: Path) -> Iterator[list[np.ndarray]]:
    """Each polygon's rings, the outer one first, as float (points, 2) of x and y."""
    kind = value.get("type") if isinstance(value, dict) else None
    parts = {"FeatureCollection": "features", "GeometryCollection": "geometries"}.get(str(kind))
    inside = value.get(parts) if parts else value
    if isinstance(inside, list):  # a bare list of features is what QuPath writes when told to leave the collection out
        for part in inside:
            yield from _rings(part, path)
    elif kind == "Feature":
        yield from _rings(value.get("geometry"), path)
    elif kind in ("Polygon", "MultiPolygon"):
        polygons = [value.get("coordinates")] if kind == "Polygon" else value.get("coordinates")
        try:
            for polygon in polygons:
                rings = [np.array([[float(p[0]), float(p[1])] for p in ring]) for ring in polygon]
                if not rings or any(len(ring) < 4 or not (np.abs(ring) < _FARTHEST).all() for ring in rings):
                    raise ValueError
                yield rings
        except (TypeError, ValueError, IndexError):
            raise InputError(
                f"--mask {path}: a polygon's rings should be lists of at least 4 points [x, y] in pixels"
            ) from None
    else:
        raise InputError(f"--mask {path} should be GeoJSON with polygons, but holds the type {kind!r}")


def _polygons(path: Path, size: tuple[int, int]) -> Mask:
    from skimage.draw import polygon as inside

    polygons = list(_rings(read_json(path), path))
    lows = np.array([rings[0].min(axis=0) for rings in polygons]).reshape(-1, 2)
    highs = np.array([rings[0].max(axis=0) for rings in polygons]).reshape(-1, 2)

    def mask(region: Region) -> np.ndarray:
        marked = np.zeros(region.size, bool)
        end = (region.x + region.width, region.y + region.height)
        near = (lows < end).all(axis=1) & (highs > (region.x, region.y)).all(axis=1)
        for rings in (polygons[i] for i in np.flatnonzero(near)):
            part = np.zeros(region.size, bool)
            for number, ring in enumerate(rings):  # a pixel is inside where its centre is
                rows, columns = inside(ring[:, 1] - region.y - 0.5, ring[:, 0] - region.x - 0.5, region.size)
                part[rows, columns] = number == 0
            marked |= part
        return marked

    return mask
