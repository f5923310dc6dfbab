"""Polygons of a GeoJSON, as QuPath and others write them, and which pixels lie inside.

Drawn by scan lines of our own instead of a geometry library: a tile then costs what the edges beside and on it cost,
however many points a polygon has, rings may cross themselves or stand open, and tiles fit together to the pixel.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphogen.core.console import say
from morphogen.core.errors import InputError
from morphogen.core.files import read_bytes
from morphogen.pyramids.region import Region

_LARGEST = 2**30  # bytes of a file
_FARTHEST = 2.0**31  # pixels from the upper left that a point may lie
_CHUNK = 1024  # edges whose bounding box is looked at before they are
_WITHOUT_INSIDE = {"Point", "MultiPoint", "LineString", "MultiLineString"}
Points = NDArray[np.float64]
"""(points, 2): x and y."""


class Polygon:
    """Which pixels have their centres inside rings, by the even-odd rule: holes are outside, and so is where a ring
    covers itself. rings: closed or open, each (points, 2) of x and y.
    """

    def __init__(self, rings: list[Points]) -> None:
        points = np.concatenate(rings)
        self.low, self.high = points.min(axis=0), points.max(axis=0)
        edges = np.concatenate([np.hstack([ring, np.roll(ring, -1, axis=0)]) for ring in rings])
        edges = edges[edges[:, 1] != edges[:, 3]]  # no line of pixel centres crosses a level edge
        downwards = edges[:, 1] > edges[:, 3]
        edges[downwards] = edges[downwards][:, [2, 3, 0, 1]]
        self._chunks = [
            (part, part[:, 1].min(), part[:, 3].max(), part[:, [0, 2]].min())
            for part in np.array_split(edges, max(1, len(edges) // _CHUNK))
            if len(part)
        ]

    def touches(self, region: Region) -> bool:
        """Whether it may cover any of a region."""
        end = (region.x + region.width, region.y + region.height)
        return bool((self.low < end).all() and (self.high > (region.x, region.y)).all())

    def mark(self, marked: NDArray[np.bool_], region: Region) -> None:
        """Mark what of a region, boolean (height, width), lies inside."""
        top = max(region.y, int(np.floor(self.low[1])))
        left = max(region.x, int(np.floor(self.low[0])))
        bottom = min(region.y + region.height, int(np.ceil(self.high[1])))
        right = min(region.x + region.width, int(np.ceil(self.high[0])))
        height, width = bottom - top, right - left
        if height <= 0 or width <= 0:
            return
        crossings = np.zeros(height * (width + 1), np.int64)
        for edges, lowest, highest, leftmost in self._chunks:
            if lowest < bottom and highest > top and leftmost < right:
                crossings += self._crossings(edges, top, left, height, width)
        inside = (crossings.reshape(height, width + 1).cumsum(axis=1)[:, :width] & 1).astype(bool)
        marked[top - region.y : bottom - region.y, left - region.x : right - region.x] |= inside

    @staticmethod
    def _crossings(edges: Points, top: int, left: int, height: int, width: int) -> NDArray[np.int64]:
        """How often edges cross the lines of pixel centres, by line and by the first centre to the right."""
        first = np.clip(np.ceil(edges[:, 1] - 0.5) - top, 0, height).astype(np.int64)
        end = np.clip(np.ceil(edges[:, 3] - 0.5) - top, 0, height).astype(np.int64)
        counts = end - first
        x0, y0, x1, y1 = np.repeat(edges, counts, axis=0).T
        rows = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(first, counts)
        x = x0 + (rows + top + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.clip(np.ceil(x - 0.5) - left, 0, width).astype(np.int64)
        return np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1))


class Polygons:
    """Which pixels of a region lie inside any of many polygons."""

    def __init__(self, polygons: list[Polygon]) -> None:
        self._polygons = polygons
        self._lows = np.array([polygon.low for polygon in polygons])
        self._highs = np.array([polygon.high for polygon in polygons])

    def __call__(self, region: Region) -> NDArray[np.bool_]:
        marked = np.zeros(region.size, bool)
        end = (region.x + region.width, region.y + region.height)
        near = (self._lows < end).all(axis=1) & (self._highs > (region.x, region.y)).all(axis=1)
        for number in np.flatnonzero(near):
            self._polygons[number].mark(marked, region)
        return marked


def is_geojson(path: Path) -> bool:
    """Whether a file's name is that of a GeoJSON."""
    return path.suffix.lower() in (".geojson", ".json")


def read_class_polygons(path: Path, flag: str, names: Sequence[str] | None = None) -> list[tuple[str, Polygon]]:
    """The polygons of a GeoJSON whose QuPath class is one of these (None: any), each with it, in the file's order.

    Says what has no inside or no class, and is skipped. Raises InputError, naming the flag and the file, for a class
    that is none of these, and if there is no polygon.
    """
    skipped, found = Counter[str](), list[tuple[str, Polygon]]()
    for name, rings in _read(path, flag, skipped):
        if not rings:
            skipped["of fewer than 3 points"] += 1
        elif name is None:
            skipped["of no class"] += 1
        elif names is not None and name not in names:
            raise InputError(f"{flag} {path} has polygons of the class {name!r}; the model's are {', '.join(names)}")
        else:
            found.append((name, Polygon(rings)))
    _say_skipped(path, flag, len(found), skipped)
    return found


def _read(path: Path, flag: str, skipped: Counter[str]) -> list[tuple[str | None, list[Points]]]:
    try:
        content = json.loads(read_bytes(path, f"{flag} ", _LARGEST).decode("utf-8-sig"))
        return list(_polygons(content, f"{flag} {path}", None, skipped))
    except (ValueError, RecursionError):
        raise InputError(f"{flag} {path} is not valid JSON, or nested too deeply") from None


def _say_skipped(path: Path, flag: str, found: int, skipped: Counter[str]) -> None:
    listed = ", ".join(f"{count} {what}" for what, count in sorted(skipped.items()))
    if not found:
        raise InputError(f"{flag} {path} should be GeoJSON with polygons" + (f", but holds {listed}" if listed else ""))
    if listed:
        say(f"{flag} {path}: {found} polygons; skipped {listed}", error=True)


def read_polygons(path: Path, classes: tuple[str, ...] = ()) -> Polygons:
    """The polygons of a GeoJSON file. classes: of QuPath, which alone count; without any, all but those whose names
    end with an asterisk, as Ignore*, which QuPath ignores too.

    Says what has no inside, or another class, and is skipped. Raises InputError, naming it, if there is no polygon.
    """
    skipped, found = Counter[str](), list[Polygon]()
    for name, rings in _read(path, "--mask", skipped):
        if not rings:
            skipped["of fewer than 3 points"] += 1
        elif (name not in classes) if classes else (name or "").endswith("*"):
            skipped[f"of the class {name}" if name else "of no class"] += 1
        else:
            found.append(Polygon(rings))
    _say_skipped(path, "--mask", len(found), skipped)
    return Polygons(found)


def _polygons(
    value: Any, where: str, name: str | None, skipped: Counter[str]
) -> Iterator[tuple[str | None, list[Points]]]:
    """Each polygon's class and rings."""
    if isinstance(value, list):  # a bare list of features is what QuPath writes when told to leave the collection out
        for part in value:
            yield from _polygons(part, where, name, skipped)
        return
    if value is None:
        skipped["without a geometry"] += 1
        return
    kind = str(value.get("type")) if isinstance(value, dict) else type(value).__name__
    if kind in ("FeatureCollection", "GeometryCollection"):
        inside = value.get("features" if kind == "FeatureCollection" else "geometries")
        yield from _polygons(inside if isinstance(inside, list) else [], where, name, skipped)
    elif kind == "Feature":
        yield from _polygons(value.get("geometry"), where, _class_of(value), skipped)
    elif kind == "Polygon":
        yield name, _rings(value.get("coordinates"), where)
    elif kind == "MultiPolygon":
        parts = value.get("coordinates")
        if _depth(parts) == 3:  # of one part, and written as that part
            parts = [parts]
        for part in parts if isinstance(parts, list) else [None]:
            yield name, _rings(part, where)
    elif kind in _WITHOUT_INSIDE:
        skipped[f"of the type {kind}"] += 1
    else:
        raise InputError(f"{where} should be GeoJSON with polygons, but holds the type {kind!r}")


def _class_of(feature: dict[str, object]) -> str | None:
    """QuPath's class of a feature."""
    properties = feature.get("properties")
    found = properties.get("classification") if isinstance(properties, dict) else None
    name = found.get("name") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


def _depth(value: object) -> int:
    """How many lists lie in one another."""
    return 1 + _depth(value[0] if value else None) if isinstance(value, list) else 0


def _rings(rings: Any, where: str) -> list[Points]:
    """A polygon's rings of 3 points and more; none where its outer one, the first, has fewer."""
    found: list[Points] = []
    try:
        for ring in rings:
            points = np.array([point[:2] for point in ring], np.float64).reshape(len(ring), -1)  # the third is depth
            if len(points) and (points.shape[1] != 2 or not (np.abs(points) < _FARTHEST).all()):
                raise ValueError
            if len(points) >= 3:
                found.append(points)
            elif not found:
                break
    except (TypeError, ValueError, IndexError, KeyError):
        raise InputError(f"{where}: a polygon's rings should be lists of points [x, y] in pixels") from None
    return found
