"""Scanners' files that OpenSlide reads, DICOM among them."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, first_line
from morphogen.pyramids.ome_zarr import EXTRA
from morphogen.pyramids.pyramid import Pixels, Pyramid, as_mpp
from morphogen.pyramids.region import Region

SUFFIXES = frozenset((".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi"))


class OpenSlide(Pyramid):
    """A slide by OpenSlide, RGB; what the scanner left out is white.

    Raises InputError, naming it, where OpenSlide is missing or cannot read it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import openslide
        except ImportError:
            raise InputError(f"{path} is a slide, which needs OpenSlide: {EXTRA}") from None
        try:
            self._slide: Any = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise InputError(f"{path} cannot be read by OpenSlide: {first_line(error)}") from None
        weakref.finalize(self, self._slide.close)
        self.levels = [(height, width) for width, height in self._slide.level_dimensions]
        self.channels = 3
        said = self._slide.properties

        def number(name: str) -> int | float | None:
            try:
                return float(said[name])
            except (KeyError, ValueError):
                return None

        self.mpp = as_mpp(number("openslide.mpp-y"), number("openslide.mpp-x"))
        sides = [
            [number(f"openslide.level[{i}].tile-{side}") or 256 for side in ("height", "width")]
            for i in range(len(self.levels))
        ]
        self.tiles = [(int(high), int(wide)) for high, wide in sides]
        self._lock = threading.Lock()

    def read_region(self, region: Region, level: int = 0) -> Pixels:
        from PIL import Image

        factor = self._slide.level_downsamples[level]
        place = (round(region.x * factor), round(region.y * factor))  # in pixels of the largest level
        try:
            with self._lock:
                found = self._slide.read_region(place, level, (region.width, region.height))
        except Exception as error:  # of OpenSlide and of ctypes
            raise InputError(
                f"{self.path} cannot be read at row {region.y}, column {region.x}: {first_line(error)}"
            ) from None
        background = Image.new("RGBA", found.size, "white")
        return np.asarray(Image.alpha_composite(background, found).convert("RGB"))
