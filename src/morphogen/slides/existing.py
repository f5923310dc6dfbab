"""Slides that are there already: reading a region of any level, and a copy in which only some tiles change."""

from __future__ import annotations

import shutil
import stat
import struct
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.slides.region import Region

_LOSSLESS = {1, 8, 32946, 5, 50000}  # none, deflate (two numbers), LZW, Zstandard
_NUMBERS = {3: "H", 4: "I", 13: "I", 16: "Q"}  # types of TIFF tags


class Existing(ABC):
    """A slide of 8-bit pixels with levels, from the largest on.

    sizes: (height, width) of each level. channels: of the image. tile: height and width of each level's tiles.
    """

    sizes: list[tuple[int, int]]
    channels: int
    tile: list[tuple[int, int]]

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def read(self, region: Region, level: int = 0) -> np.ndarray:
        """A region of a level, uint8 (C, height, width)."""

    @abstractmethod
    def write(self, region: Region, pixels: np.ndarray, level: int) -> None:
        """Replace one tile of a level, uint8 (C, height, width); all other tiles keep their bytes."""

    def check_writable(self) -> None:  # noqa: B027 - most are
        """Raise InputError, with the reason, where `write` would change more than what it is given."""

    def copy(self, path: Path) -> Existing:
        """A copy, byte by byte, to be written to, which a write-protected slide's is too."""
        if self.path.is_dir():
            shutil.copytree(self.path, path, copy_function=shutil.copyfile)
            for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
                folder.chmod(folder.stat().st_mode | stat.S_IRWXU)
        else:
            shutil.copyfile(self.path, path)
        return type(self)(path)


def open_existing(path: Path) -> Existing:
    """Open an OME-Zarr folder or a TIFF file. Raises InputError, naming it, for anything else and for what is not
    supported: other than 8 bits, several depths or times.
    """
    if not path.exists():
        raise InputError(f"--inpaint {path} does not exist")
    try:
        return ZarrSlide(path) if path.is_dir() else TiffSlide(path)
    except InputError:
        raise
    except Exception as error:  # whatever zarr's and tifffile's parsers make of a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--inpaint {path} cannot be read as an OME-Zarr or a TIFF: {reason}") from None


def _refuse(path: Path, reason: str) -> InputError:
    return InputError(f"--inpaint {path}: {reason}")


class ZarrSlide(Existing):
    """An OME-Zarr image (OME-NGFF 0.4 or 0.5)."""

    def __init__(self, path: Path) -> None:
        import zarr

        super().__init__(path)
        group = zarr.open_group(str(path), mode="r+")
        attributes = dict(group.attrs)
        attributes = attributes.get("ome", attributes)
        if "multiscales" not in attributes:
            raise _refuse(path, "it is no OME-Zarr image (it has no multiscales)")
        image: Any = attributes["multiscales"][0]
        axes = [axis["name"] for axis in image["axes"]]
        self._arrays: list[Any] = [group[entry["path"]] for entry in image["datasets"]]
        first = self._arrays[0]
        if axes[-2:] != ["y", "x"] or any(first.shape[i] > 1 for i, name in enumerate(axes[:-2]) if name != "c"):
            raise _refuse(path, f"it has the axes {', '.join(axes)}; only flat images (c, y, x) can be inpainted")
        if first.dtype != np.uint8:
            raise _refuse(path, f"its pixels are {first.dtype}; they should have 8 bits")
        self._lead = tuple(slice(None) if name == "c" else 0 for name in axes[:-2])
        self.channels = first.shape[axes.index("c")] if "c" in axes else 1
        self.sizes = [array.shape[-2:] for array in self._arrays]
        self.tile = [(array.shards or array.chunks)[-2:] for array in self._arrays]

    def read(self, region: Region, level: int = 0) -> np.ndarray:
        found = np.asarray(self._arrays[level][(*self._lead, region.rows, region.columns)])
        return found.reshape(self.channels, *region.size)

    def write(self, region: Region, pixels: np.ndarray, level: int) -> None:
        given = pixels if slice(None) in self._lead else pixels[0]
        self._arrays[level][(*self._lead, region.rows, region.columns)] = given


class TiffSlide(Existing):
    """A TIFF in tiles. A tile that changes goes to the end of the file; its compression must then lose nothing."""

    def __init__(self, path: Path) -> None:
        import tifffile
        import zarr

        super().__init__(path)
        self._file = tifffile.TiffFile(path)
        weakref.finalize(self, self._file.close)
        series = self._file.series[0]
        self._pages = [level.keyframe for level in series.levels]
        first = self._pages[0]
        if series.axes not in ("YXS", "YX") or any(page.planarconfig != 1 for page in self._pages):
            raise _refuse(path, f"it has the axes {series.axes}; only RGB and gray images can be inpainted")
        if first.dtype != np.uint8:
            raise _refuse(path, f"its pixels are {first.dtype}; they should have 8 bits")
        if not all(page.is_tiled for page in self._pages):
            raise _refuse(path, "it is not stored in tiles")
        self.sizes = [(page.imagelength, page.imagewidth) for page in self._pages]
        self.tile = [(page.tilelength, page.tilewidth) for page in self._pages]
        self.channels = first.samplesperpixel
        self._arrays = [zarr.open_array(series.aszarr(level=i), mode="r") for i in range(len(self._pages))]

    def check_writable(self) -> None:
        lossy = next((p for p in self._pages if p.compression not in _LOSSLESS), None)
        if lossy is not None:
            raise _refuse(
                self.path,
                f"its tiles are {lossy.compression.name}, which loses a little whenever a tile is written; "
                "give --out a name in .ome.zarr, which keeps every pixel around the hole as it is",
            )

    def read(self, region: Region, level: int = 0) -> np.ndarray:
        found = np.asarray(self._arrays[level][region.rows, region.columns])
        return found.reshape(*region.size, self.channels).transpose(2, 0, 1)

    def write(self, region: Region, pixels: np.ndarray, level: int) -> None:
        import tifffile

        page, (high, wide) = self._pages[level], self.tile[level]
        index = region.y // high * -(-page.imagewidth // wide) + region.x // wide
        missing = ((0, high - region.height), (0, wide - region.width), (0, 0))
        tile = np.ascontiguousarray(np.pad(pixels.transpose(1, 2, 0), missing, mode="edge"))
        if page.predictor != 1:
            tile = np.ascontiguousarray(tifffile.TIFF.PREDICTORS[page.predictor](tile, axis=-2))
        content = tile.tobytes()
        if page.compression != 1:
            content = bytes(tifffile.TIFF.COMPRESSORS[page.compression](content))
        with self.path.open("r+b") as file:
            offset = file.seek(0, 2)
            offset += file.write(bytes(offset % 2))  # begin at an even place, as TIFF has it
            file.write(content)
            for name, value in (("TileOffsets", offset), ("TileByteCounts", len(content))):
                tag = page.tags[name]
                kind = _NUMBERS[int(tag.dtype)]
                if value >= 2 ** (8 * struct.calcsize(kind)):
                    raise _refuse(self.path, "it would grow larger than its kind of TIFF can; make it a BigTIFF first")
                file.seek(tag.valueoffset + index * struct.calcsize(kind))
                file.write(struct.pack(self._file.byteorder + kind, value))
