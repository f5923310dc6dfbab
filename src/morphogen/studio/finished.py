"""Finished slides as pyramids to look at: OME-Zarr, OME-TIFF and DeepZoom."""

from __future__ import annotations

import re
import threading
import weakref
import xml.etree.ElementTree as ElementTree
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError

_LARGEST_CHUNK = 2**26  # pixels that one chunk may hold, since it is read whole
_LARGEST_XML = 2**20
_EXTRA = 'pip install "morphogen[slides]"'
Pixels = NDArray[np.uint8]


class FinishedSlide(ABC):
    """A pyramid on disk. levels: (height, width) of each, full resolution first."""

    levels: list[tuple[int, int]]

    @abstractmethod
    def read(self, level: int, top: int, left: int, height: int, width: int) -> Pixels:
        """A region that lies within a level, uint8 (height, width, 1 or 3). Raises InputError where it is damaged."""


class ArraySlide(FinishedSlide):
    """Levels that are zarr arrays, whose axes are named by letters; of time and depth the first is shown."""

    def __init__(self, path: Path, arrays: list[Any], axes: str) -> None:
        self._path, self._arrays, self._axes = path, arrays, axes
        self._lock = threading.Lock()
        for array in arrays:
            if array.ndim != len(axes) or array.dtype != np.uint8 or "y" not in axes or "x" not in axes:
                raise InputError(
                    f"{path}: {array.dtype} with the axes '{axes}'; slides are uint8 with rows and columns"
                )
            chunk = dict(zip(axes, array.chunks, strict=True))
            if chunk["y"] * chunk["x"] > _LARGEST_CHUNK:
                raise InputError(f"{path} is not stored in tiles, so that a part of it can only be read with the rest")
            channels = dict(zip(axes, array.shape, strict=True)).get(self._colour, 1)
            if channels not in (1, 3, 4):
                raise InputError(f"{path} has {channels} channels; a picture has 1 or 3")
        self.levels = [(a.shape[axes.index("y")], a.shape[axes.index("x")]) for a in arrays]

    @property
    def _colour(self) -> str:
        return "s" if "s" in self._axes else "c"

    def read(self, level: int, top: int, left: int, height: int, width: int) -> Pixels:
        places = {"y": slice(top, top + height), "x": slice(left, left + width), self._colour: slice(None)}
        try:
            with self._lock:
                values = np.asarray(self._arrays[level][tuple(places.get(axis, 0) for axis in self._axes)])
        except Exception as error:  # damaged chunks raise errors of many types
            raise InputError(f"{self._path} cannot be read at row {top}, column {left}: {error}") from None
        kept = [axis for axis in self._axes if axis in places]
        if self._colour not in kept:
            return values.transpose([kept.index(axis) for axis in "yx"])[..., None]
        ordered = values.transpose([kept.index(axis) for axis in ("y", "x", self._colour)])
        return np.ascontiguousarray(ordered[..., :3] if ordered.shape[2] > 1 else ordered)


class DeepZoomSlide(FinishedSlide):
    """The tiles of a .dzi file."""

    def __init__(self, path: Path) -> None:
        root = _xml(path)
        sizes = [element for element in root if element.tag.endswith("Size")]
        try:
            if not root.tag.endswith("Image") or not sizes:
                raise ValueError
            self._tile, self._overlap = int(root.attrib["TileSize"]), int(root.attrib["Overlap"])
            width, height = int(sizes[0].attrib["Width"]), int(sizes[0].attrib["Height"])
            if not (1 <= self._tile <= 8192 and 0 <= self._overlap <= self._tile and min(width, height) >= 1):
                raise ValueError
        except (KeyError, ValueError):
            raise InputError(f"{path} is not a DeepZoom file: it lacks a tile size, an overlap or a size") from None
        self._format = root.attrib.get("Format", "")
        if not re.fullmatch("[A-Za-z]{1,5}", self._format):
            raise InputError(f"{path}: its tiles have no known format ({self._format!r})")
        self._folder = path.with_name(path.stem + "_files")
        if not self._folder.is_dir():
            raise InputError(f"{path}: the folder {self._folder.name} with its tiles is not beside it")
        self._highest = (max(width, height) - 1).bit_length()
        self.levels = [(-(-height // 2**n), -(-width // 2**n)) for n in range(self._highest + 1)]

    def read(self, level: int, top: int, left: int, height: int, width: int) -> Pixels:
        side = self._tile
        rows = range(top // side, (top + height - 1) // side + 1)
        columns = range(left // side, (left + width - 1) // side + 1)
        strips = [np.concatenate([self._part(level, row, column) for column in columns], axis=1) for row in rows]
        whole = np.concatenate(strips, axis=0)
        y, x = top - rows[0] * side, left - columns[0] * side
        return np.ascontiguousarray(whole[y : y + height, x : x + width])

    def _part(self, level: int, row: int, column: int) -> Pixels:
        """A tile without its overlap, uint8 (H, W, 3)."""
        from morphogen.data.decode import decode

        file = self._folder / str(self._highest - level) / f"{column}_{row}.{self._format}"
        try:
            pixels = decode(file.read_bytes(), file.name, max_pixels=_LARGEST_CHUNK)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
        height, width = self.levels[level]
        y, x = (self._overlap if n else 0 for n in (row, column))
        high, wide = min(self._tile, height - row * self._tile), min(self._tile, width - column * self._tile)
        part = pixels[y : y + high, x : x + wide]
        if part.shape[:2] != (high, wide):
            raise InputError(f"{file} is {pixels.shape[1]}x{pixels.shape[0]} pixels, which is not what its slide says")
        return part


def is_slide(path: Path) -> bool:
    """Whether a path is named as a finished slide is."""
    return path.suffix.lower() in (".zarr", ".tif", ".tiff", ".dzi")


def open_finished(path: Path) -> FinishedSlide:
    """Open a finished slide. Raises InputError, naming it, where it is missing, damaged or of another kind."""
    if not path.exists():
        raise InputError(f"the slide {path} does not exist")
    if path.suffix.lower() == ".dzi":
        return DeepZoomSlide(path)
    return _open_zarr(path) if path.suffix.lower() == ".zarr" else _open_tiff(path)


def _xml(path: Path) -> ElementTree.Element:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_XML)
        if b"<!" in text.replace(b"<!--", b""):  # entities that multiply
            raise ElementTree.ParseError
        return ElementTree.fromstring(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ElementTree.ParseError:
        raise InputError(f"{path} is not a DeepZoom file") from None


def _open_zarr(path: Path) -> FinishedSlide:
    try:
        import zarr
    except ImportError:
        raise InputError(f"{path} is an OME-Zarr, which needs zarr: {_EXTRA}") from None
    try:
        group = zarr.open_group(path, mode="r")
        attributes = dict(group.attrs)
        found: Any = attributes.get("ome", attributes)
        scales = found["multiscales"][0]
        axes = "".join(axis if isinstance(axis, str) else axis["name"] for axis in scales["axes"])
        names = [dataset["path"] for dataset in scales["datasets"]]
        if not names or not all(isinstance(n, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", n) for n in names):
            raise ValueError("its levels have no names")
        arrays = [group[name] for name in names]
        if not all(isinstance(array, zarr.Array) for array in arrays):
            raise ValueError("a level is no array")
    except InputError:
        raise
    except Exception as error:  # damaged stores raise errors of many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not an OME-Zarr image: {reason}") from None
    return ArraySlide(path, arrays, axes.lower())


def _open_tiff(path: Path) -> FinishedSlide:
    try:
        import tifffile
        import zarr
    except ImportError as error:
        raise InputError(f"{path} is a TIFF slide, which needs {error.name}: {_EXTRA}") from None
    tiff = None
    try:
        tiff = tifffile.TiffFile(path)
        series = tiff.series[0]
        arrays = [zarr.open_array(series.aszarr(level=n), mode="r") for n in range(len(series.levels))]
        slide = ArraySlide(path, arrays, series.axes.lower())
    except Exception as error:  # damaged files raise errors of many types
        if tiff is not None:
            tiff.close()
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a TIFF that can be read: {reason}") from None
    weakref.finalize(slide, tiff.close)
    return slide
