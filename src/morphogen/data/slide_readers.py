"""Slides to draw patches from: by OpenSlide, and what only `pyramids` reads (OME-Zarr, OME-TIFF, large tiled TIFFs)."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.decode import Pixels
from morphogen.data.formats import BadImage
from morphogen.pyramids import Pyramid, Region, open_pyramid

SLIDE_SUFFIXES = frozenset((".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide"))
TIFF_SUFFIXES = frozenset((".tif", ".tiff", ".btf", ".tf8"))
_DICOM_SUFFIXES = frozenset((".dcm", ".dicom"))
_THUMBNAIL = 768
_LARGE = 4096**2  # pixels of a tiled TIFF without levels that is a slide, and no image to be read whole
_STRIP = 2**24  # pixels that are read at once for a thumbnail
_HASHED = 2**20


def import_openslide(name: str) -> Any:
    """OpenSlide's module. Raises InputError where it is not there."""
    try:
        import openslide
    except ImportError as error:
        raise InputError(f'{name} is a slide, which needs OpenSlide: pip install "morphogen[slides]"') from error
    return openslide


class Slide(ABC):
    """An opened slide. Places are pixels of the whole slide, whatever level is read.

    size: (height, width). downsamples: of each level, from 1 on. mpp: micrometres a pixel, down and across, or None.
    channels: 3, or 1.
    """

    size: tuple[int, int]
    downsamples: list[float]
    mpp: tuple[float, float] | None
    channels: int = 3

    @abstractmethod
    def thumbnail(self) -> Pixels:
        """The whole slide, uint8 (H, W, C), no side above 768."""

    @abstractmethod
    def read(self, y: int, x: int, level: int, height: int, width: int) -> Pixels:
        """Pixels of a level, uint8 (height, width, C), from a place of the whole slide on. Raises InputError where they
        are damaged.
        """

    def level_for(self, downsample: float) -> int:
        """The smallest level that is not smaller than the slide by more than this factor."""
        return max((i for i, d in enumerate(self.downsamples) if d <= downsample * 1.001), default=0)


class ScannerSlide(Slide):
    """A slide by OpenSlide. Raises BadImage where it cannot be read."""

    def __init__(self, path: Path, name: str, background: str) -> None:
        self._openslide, self._background = import_openslide(name), background
        try:
            self._slide = self._openslide.OpenSlide(path)
        except (self._openslide.OpenSlideError, OSError) as error:
            raise BadImage(name, f"OpenSlide cannot read this slide: {error}") from error
        width, height = self._slide.dimensions
        self.size = (height, width)
        self.downsamples = list(self._slide.level_downsamples)
        said = self._slide.properties
        try:
            own = float(said["openslide.mpp-y"]), float(said["openslide.mpp-x"])
            self.mpp = own if all(0 < v < float("inf") for v in own) else None
        except (KeyError, ValueError):
            self.mpp = _mpp_of_tiff(path)

    def thumbnail(self) -> Pixels:
        try:
            return np.asarray(self._slide.get_thumbnail((_THUMBNAIL, _THUMBNAIL)).convert("RGB"))
        except self._openslide.OpenSlideError as error:
            raise InputError(f"its thumbnail cannot be read: {error}") from error

    def read(self, y: int, x: int, level: int, height: int, width: int) -> Pixels:
        try:
            region = self._slide.read_region((x, y), level, (width, height))
        except self._openslide.OpenSlideError as error:
            raise InputError(f"its pixels at x={x}, y={y} cannot be read: {error}") from error
        return _on_background(np.asarray(region), self._background)

    def level_for(self, downsample: float) -> int:
        return int(self._slide.get_best_level_for_downsample(downsample * 1.001))


def _on_background(rgba: Pixels, background: str) -> Pixels:
    """Pixels (H, W, 4) with transparency, put on a colour: (H, W, 3)."""
    from PIL import Image

    region = Image.fromarray(rgba)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", region.size, background), region).convert("RGB"))


def _mpp_of_tiff(path: Path) -> tuple[float, float] | None:
    """The scale that OME-XML states, which OpenSlide does not read."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    try:
        return open_pyramid(path).mpp
    except InputError:
        return None


class PyramidSlide(Slide):
    """A slide that `pyramids` reads. Raises BadImage where it cannot be read, or has channels that are no colours."""

    def __init__(self, path: Path, name: str, background: str) -> None:
        self._background = background
        try:
            self._pyramid: Pyramid = open_pyramid(path)
        except InputError as error:
            raise BadImage(name, str(error)) from error
        found = self._pyramid.channels
        if found not in (1, 3, 4):
            raise BadImage(name, f"it has {found} channels; patches need 1 or 3 that are colours")
        self.channels = 1 if found == 1 else 3
        self.size, self.mpp = self._pyramid.levels[0], self._pyramid.mpp
        self.downsamples = [self.size[1] / width for _, width in self._pyramid.levels]

    def thumbnail(self) -> Pixels:
        small = next(
            (i for i, size in reversed(list(enumerate(self._pyramid.levels))) if max(size) >= _THUMBNAIL),
            0,
        )
        height, width = self._pyramid.levels[small]
        factor = -(-max(height, width) // _THUMBNAIL)
        rows = max(_STRIP // (width * factor), 1) * factor
        strips = []
        for y in range(0, height - height % factor or height, rows):
            strip = self._read(Region(y, 0, min(rows, height - y), width), small)
            high, wide = max(len(strip) // factor, 1), max(width // factor, 1)
            part = strip[: high * factor, : wide * factor].astype(np.float32)
            blocks = part.reshape(high, -1, wide, part.shape[1] // wide, self.channels)
            strips.append(blocks.mean(axis=(1, 3)).round().astype(np.uint8))
        return np.concatenate(strips)

    def read(self, y: int, x: int, level: int, height: int, width: int) -> Pixels:
        high, wide = self._pyramid.levels[level]
        down, across = self.size[0] / high, self.size[1] / wide
        top, left = min(round(y / down), high - 1), min(round(x / across), wide - 1)
        region = Region(top, left, min(height, high - top), min(width, wide - left))
        missing = ((0, height - region.height), (0, width - region.width), (0, 0))
        return np.pad(self._read(region, level), missing, mode="edge")

    def _read(self, region: Region, level: int) -> Pixels:
        values = self._pyramid.read_region(region, level)
        return values if values.shape[2] == self.channels else _on_background(values, self._background)


def open_slide(path: Path, name: str, config: DataConfig) -> Slide:
    """A slide by the reader that suits it. Raises BadImage where it cannot be read."""
    if path.is_dir() or (path.suffix.lower() in TIFF_SUFFIXES and not _is_scanned(path)):
        return PyramidSlide(path, name, config.background)
    return ScannerSlide(path, name, config.background)


def slides_among(root: Path, names: list[str], stores: list[str], scaled: bool) -> list[str]:
    """The slides among files and folders: OME-Zarr stores; files with a scanner's suffix; TIFFs with smaller levels in
    them; tiled ones without, if they are large or, where patches of a scale are wanted, if they say theirs; DICOM
    slides, of whose files the first in a folder stands for all.

    names: of files below root; stores: of folders that are Zarr groups. Of a folder that has slides, all tiled TIFFs
    are slides.
    """
    certain = list(stores) + [n for n in names if Path(n).suffix.lower() in SLIDE_SUFFIXES]
    tiffs = {n: _tiff_kind(root / n, scaled) for n in names if Path(n).suffix.lower() in TIFF_SUFFIXES}
    certain += [n for n, kind in tiffs.items() if kind == "slide"]
    folders = {str(Path(n).parent): n for n in reversed(names) if Path(n).suffix.lower() in _DICOM_SUFFIXES}
    certain += [n for n in folders.values() if _is_scanned(root / n)]
    if certain:
        certain += [n for n, kind in tiffs.items() if kind == "tiled"]
    return sorted(certain)


def _is_scanned(path: Path) -> bool:
    """Whether OpenSlide knows a file as a scanner's, or as a TIFF with levels."""
    try:
        import openslide
    except ImportError:  # then it is read as an ordinary TIFF, and refused by name where it is too large
        return False
    kind = openslide.OpenSlide.detect_format(path)
    if kind is None:
        return False
    try:
        with openslide.OpenSlide(path) as slide:
            return bool(slide.level_count > 1 or kind != "generic-tiff")
    except openslide.OpenSlideError:
        return False


def _tiff_kind(path: Path, scaled: bool) -> str:
    """slide; tiled, which is one among others; or image."""
    if _is_scanned(path):
        return "slide"
    try:
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            page = series.keyframe
            if page.dtype != np.uint8 or series.axes not in ("YX", "YXS", "SYX", "CYX"):
                return "image"
            levels, tiled = len(series.levels), page.is_tiled
            large = page.imagelength * page.imagewidth > _LARGE
    except Exception:  # damaged files raise errors of many types; decoding says what is wrong
        return "image"
    if levels > 1 or (tiled and large):
        return "slide"
    if scaled and _mpp_of_tiff(path) is not None:
        return "slide"
    return "tiled" if tiled else "image"


def slide_content(path: Path) -> bytes:
    """What tells a slide from others without reading gigabytes: a file's length, first and last MiB; of a store the
    names and lengths of its files, its metadata, and its smallest chunks.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            first = file.read(_HASHED)
            file.seek(max(length - _HASHED, 0))
            return length.to_bytes(8, "little") + first + file.read(_HASHED)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    said = [f"{p.relative_to(path).as_posix()}\0{p.stat().st_size}".encode("utf-8", "surrogateescape") for p in files]
    small = sorted(files, key=lambda p: (p.stat().st_size, p))
    total = hashlib.sha256(b"\n".join(said))
    read = 0
    for file_path in small:
        read += file_path.stat().st_size
        if read > _HASHED:
            break
        total.update(hashlib.sha256(file_path.read_bytes()).digest())
    return total.digest()
