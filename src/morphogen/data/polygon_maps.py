"""Maps of slides: annotations in GeoJSON, as QuPath exports them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from morphogen.core.condition import MOST_CLASSES, UNKNOWN, Classes, class_names
from morphogen.core.errors import InputError
from morphogen.data.source import ClassMap, Maps, Source
from morphogen.pyramids.geojson import is_geojson, read_class_polygons
from morphogen.pyramids.region import Region

BACKGROUND = "background"


class PolygonMaps(Maps):
    """The polygons of the slides of a source, in its order. What none covers is background; where polygons overlap the
    later one counts; classes that end with an asterisk, as QuPath's Ignore*, tell nothing.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._polygons = [read_class_polygons(file, "--maps") for file in self.files]
        found = {name for polygons in self._polygons for name, _ in polygons if not name.endswith("*")}
        names = [BACKGROUND, *sorted(found - {BACKGROUND})]
        if not 2 <= len(names) <= MOST_CLASSES:
            raise InputError(
                f"--maps {self.files[0]}: its polygons have {len(names) - 1} classes; there should be 1 to "
                f"{MOST_CLASSES - 1}"
            )
        self.table: Classes = {str(k): name for k, name in enumerate(names)}
        self._names = class_names(self.table)

    def read(self, i: int, size: tuple[int, int] | None = None) -> ClassMap:
        raise TypeError("it is read in parts; see `region`")

    def fingerprint(self) -> str:
        total = hashlib.sha256()
        for file in self.files:
            total.update(hashlib.sha256(file.read_bytes()).digest())
        return total.hexdigest()

    def region(self, i: int, region: Region) -> ClassMap:
        """The map of a region of slide i at full resolution, uint8 (height, width)."""
        found = np.zeros(region.size, np.uint8)
        for name, polygon in self._polygons[i]:
            if polygon.touches(region):
                marked = np.zeros(region.size, bool)
                polygon.mark(marked, region)
                found[marked] = UNKNOWN if name.endswith("*") else self._names.index(name)
        return found


def find_polygons(source: Source, maps: Path) -> PolygonMaps:
    """The annotation of each slide of a source: a GeoJSON of its name in a folder, or the file itself for one slide.

    Raises InputError for a slide without one, and as `PolygonMaps`.
    """
    if maps.is_file():
        if len(source) > 1:
            raise InputError(f"--maps {maps} is one annotation for {len(source)} slides; name a folder of them")
        return PolygonMaps([maps])
    if not maps.is_dir():
        raise InputError(f"--maps {maps}: of slides it should be a GeoJSON, or a folder of them of the slides' names")
    there = {re.sub(r"\.(geo)?json$", "", file.name): file for file in sorted(maps.iterdir()) if is_geojson(file)}
    files = []
    for record in source.records:
        name = PurePosixPath(record.name)
        file = there.get(name.name, there.get(name.stem))
        if file is None:
            raise InputError(f"the slide {record.name} has no GeoJSON of its name in {maps}")
        files.append(file)
    return PolygonMaps(files)
