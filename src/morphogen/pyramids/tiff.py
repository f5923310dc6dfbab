"""TIFF pyramids: OME-TIFF with its levels in SubIFDs, and the TIFFs of scanners that tifffile reads.

The tags that are rewritten here are those of "TIFF, Revision 6.0" (Adobe, 1992), of "TIFF Technical Note 1: TIFF Trees"
(Adobe, 1995; SubIFDs) and of BigTIFF (the libtiff project, 2008).
"""

from __future__ import annotations

import re
import struct
import threading
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from morphogen.core.errors import InputError, first_line
from morphogen.pyramids.ome_zarr import EXTRA
from morphogen.pyramids.pyramid import Pixels, WritablePyramid, as_mpp, check_tiled
from morphogen.pyramids.region import Region, TileGrid

# Compression (tag 259) that loses nothing: none, Adobe deflate and its older number, LZW, Zstandard.
_LOSSLESS = {1, 8, 32946, 5, 50000}
# Field types of offsets and counts (TIFF 6.0, section 2): SHORT, LONG, IFD; BigTIFF adds LONG8.
_NUMBERS = {3: "H", 4: "I", 13: "I", 16: "Q"}
_OME_UNITS = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0}


class Tiff(WritablePyramid):
    """The first image of a TIFF. A tile that changes goes to the end of the file.

    Raises InputError, naming it, where it is none, damaged, or its pixels have more than 8 bits.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import tifffile
            import zarr
        except ImportError as error:
            raise InputError(f"{path} is a TIFF slide, which needs {error.name}: {EXTRA}") from None
        try:
            self._file = tifffile.TiffFile(path)
            weakref.finalize(self, self._file.close)
            series = self._file.series[0]
            self._pages = [level.keyframe for level in series.levels]
            opened = [zarr.open(series.aszarr(level=i), mode="r") for i in range(len(self._pages))]
            self.axes = "".join("c" if axis == "s" else axis for axis in series.axes.lower())
            self.mpp = _find_mpp(self._file)
        except Exception as error:  # damaged files raise errors of many types
            raise InputError(f"{path} is not a TIFF that can be read: {first_line(error)}") from None
        self._arrays: list[Any] = opened
        self._interleaved = series.axes.lower()[-1:] == "s"
        for array in self._arrays:
            if array.ndim != len(self.axes) or array.dtype != np.uint8 or not {"y", "x"} <= set(self.axes):
                raise InputError(
                    f"{path}: {array.dtype} with the axes '{series.axes}'; its pixels should have 8 bits (uint8), "
                    "rows and columns"
                )
        rows, columns = self.axes.index("y"), self.axes.index("x")
        self.levels = [(array.shape[rows], array.shape[columns]) for array in self._arrays]
        for array in self._arrays:
            check_tiled(path, (array.chunks[rows], array.chunks[columns]))
        self.tiles = [(array.chunks[rows], array.chunks[columns]) for array in self._arrays]
        lengths = dict(zip(self.axes, self._arrays[0].shape, strict=True))
        self.channels = lengths.get("c", 1)
        self.ignored = {name: count for name, count in lengths.items() if name not in "cyx" and count > 1}
        self._lock = threading.Lock()

    def read_region(self, region: Region, level: int = 0) -> Pixels:
        places = {"y": region.rows, "x": region.columns, "c": slice(None)}
        try:
            with self._lock:
                values = np.asarray(self._arrays[level][tuple(places.get(axis, 0) for axis in self.axes)])
        except Exception as error:  # damaged tiles raise errors of many types
            where = f"row {region.y}, column {region.x}"
            raise InputError(f"{self.path} cannot be read at {where}: {first_line(error)}") from None
        kept = [axis for axis in self.axes if axis in "cyx"]
        values = values.transpose([kept.index(axis) for axis in "yxc" if axis in kept])
        return np.ascontiguousarray(values if "c" in kept else values[..., None])

    def check_writable(self) -> None:
        if self.axes not in ("yx", "yxc") or any(page.planarconfig != 1 for page in self._pages):
            raise InputError(f"{self.path} has the axes {self.axes.upper()}; only RGB and gray images can be inpainted")
        if not all(page.is_tiled for page in self._pages):
            raise InputError(f"{self.path} is not stored in tiles")
        lossy = next((p for p in self._pages if p.compression not in _LOSSLESS), None)
        if lossy is not None:
            raise InputError(
                f"{self.path}: its tiles are {lossy.compression.name}, which lose a little whenever they are written; "
                "give --out a name in .ome.zarr, which keeps every pixel around the hole as it is"
            )

    def write_tile(self, region: Region, pixels: Pixels, level: int) -> None:
        import tifffile

        page, (high, wide) = self._pages[level], self.tiles[level]
        # Tiles are numbered from left to right, then from top to bottom, and all have the same size, filled up at the
        # edges (TIFF 6.0, section 15, "Tiled Images").
        (index,) = TileGrid(self.levels[level], (high, wide)).touched(region)
        missing = ((0, high - region.height), (0, wide - region.width), (0, 0))
        tile = np.ascontiguousarray(np.pad(pixels, missing, mode="edge"))
        if page.predictor != 1:  # section 14, "Differencing Predictor"
            tile = np.ascontiguousarray(tifffile.TIFF.PREDICTORS[page.predictor](tile, axis=-2))
        content = tile.tobytes()
        if page.compression != 1:
            content = bytes(tifffile.TIFF.COMPRESSORS[page.compression](content))
        with self.path.open("r+b") as file:
            offset = file.seek(0, 2)
            offset += file.write(bytes(offset % 2))  # on a word boundary, as section 2 wants values and directories
            file.write(content)
            # TileOffsets (324) and TileByteCounts (325) hold a number for each tile; a single one that fits stands in
            # the directory's entry itself (section 2, "Value/Offset"), which tifffile's `valueoffset` allows for.
            for name, value in (("TileOffsets", offset), ("TileByteCounts", len(content))):
                tag = page.tags[name]
                kind = _NUMBERS[int(tag.dtype)]
                if value >= 2 ** (8 * struct.calcsize(kind)):
                    raise InputError(
                        f"{self.path} would grow larger than its kind of TIFF can; make it a BigTIFF first"
                    )
                file.seek(tag.valueoffset + index * struct.calcsize(kind))
                file.write(struct.pack(self._file.byteorder + kind, value))


def _find_mpp(file: Any) -> tuple[float, float] | None:
    """Micrometres a pixel: by OME-XML, by Aperio's description, or by the resolution where that is in centimetres (one
    in inches is mostly a default of 72 or 96 that nobody measured).
    """
    page = file.pages[0]
    if file.is_ome:
        pixels = next(e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("}Pixels"))

        def along(axis: str) -> float | None:
            said, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
            return float(said) * _OME_UNITS[unit] if said is not None and unit in _OME_UNITS else None

        return as_mpp(along("Y"), along("X"))
    aperio = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", str(page.description or ""))
    if aperio is not None:
        return as_mpp(float(aperio[1]), float(aperio[1]))
    # XResolution (282), YResolution (283), ResolutionUnit (296): 3 is the centimetre (TIFF 6.0, section 8).
    tags = page.tags
    if "ResolutionUnit" in tags and int(tags["ResolutionUnit"].value) == 3 and "YResolution" in tags:
        ratios = [tags[name].value for name in ("YResolution", "XResolution")]
        return as_mpp(*(1e4 * below / above if above else None for above, below in ratios))
    return None


def chain_levels(path: Path) -> None:
    """Let the smaller levels of a BigTIFF, which OME-TIFF keeps beneath the image, also follow it as pages: OpenSlide
    and others look for them there.

    The levels are in SubIFDs (tag 330, Technical Note 1). A directory of BigTIFF is a count of 8 bytes, entries of 20,
    and the offset of the next directory, 8 bytes, 0 after the last one; that offset is what is rewritten.
    """
    import os

    import tifffile

    with tifffile.TiffFile(path) as file:
        first = file.pages[0]
        below = first.tags.get("SubIFDs")
        offsets = [first.offset, *(below.value if below is not None else ())]
    with path.open("r+b") as raw:
        for offset, following in zip(offsets, [*offsets[1:], 0], strict=True):
            raw.seek(offset)
            (count,) = struct.unpack("<Q", raw.read(8))
            raw.seek(offset + 8 + 20 * count)
            raw.write(struct.pack("<Q", following))
        raw.flush()
        os.fsync(raw.fileno())
