"""Random patches over the tissue of whole-slide images, through OpenSlide."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.core.random import integers
from morphogen.data.config import DataConfig
from morphogen.data.decode import Pixels
from morphogen.data.formats import BadImage
from morphogen.data.source import PatchSource, Record, label_records, to_colour

SLIDE_SUFFIXES = frozenset((".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide"))
_TIFF_SUFFIXES = frozenset((".tif", ".tiff"))
_THUMBNAIL = 768
_GLASS = 0.1
_OPEN_SLIDES = 16
_HASHED = 2**20


def _openslide(name: str) -> Any:
    try:
        import openslide
    except ImportError as error:
        raise InputError(f'{name} is a slide, which needs OpenSlide: pip install "morphogen[slides]"') from error
    return openslide


def slides_among(root: Path, names: list[str]) -> list[str]:
    """The slides among files: those with a slide scanner's suffix, and TIFFs that hold a pyramid."""
    return [n for n in names if Path(n).suffix.lower() in SLIDE_SUFFIXES or _is_pyramid(root / n)]


def _is_pyramid(path: Path) -> bool:
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        return False
    try:
        import openslide
    except ImportError:  # then it is read as an ordinary TIFF, and refused by name where it is too large
        return False
    if openslide.OpenSlide.detect_format(path) is None:
        return False
    try:
        with openslide.OpenSlide(path) as slide:
            return bool(slide.level_count > 1 or slide.detect_format(path) != "generic-tiff")
    except openslide.OpenSlideError:
        return False


class SlideSource(PatchSource):
    """Slides below a folder; `patch` draws patches of which at least half is tissue."""

    domain = "pathology"

    def __init__(self, config: DataConfig, root: Path, records: list[Record]) -> None:
        super().__init__(config, records)
        self.root = root.absolute()
        self._opened: tuple[int, OrderedDict[int, Any]] = (os.getpid(), OrderedDict())
        self._places: dict[int, tuple[NDArray[np.int32], float]] = {}

    @classmethod
    def of(cls, config: DataConfig, root: Path, names: list[str]) -> SlideSource:
        """The slides `names` below root. Raises InputError where OpenSlide is missing."""
        _openslide(config.source)
        return cls(config, root, label_records(sorted(names)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (0, OrderedDict()), "_places": {}}

    def _slide(self, i: int) -> Any:
        """The open slide i; a process opens its own, and keeps the last few."""
        name = self.records[i].name
        openslide = _openslide(name)
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), OrderedDict())
        slides = self._opened[1]
        slide = slides.pop(i, None)
        try:
            slides[i] = slide = slide or openslide.OpenSlide(self.root / name)
        except (openslide.OpenSlideError, OSError) as error:
            raise BadImage(name, f"OpenSlide cannot read this slide: {error}") from error
        if len(slides) > _OPEN_SLIDES:
            slides.popitem(last=False)
        return slide

    def content(self, i: int) -> bytes:
        """The slide's length, first and last MiB: enough to tell slides apart without reading gigabytes."""
        name = self.records[i].name
        try:
            with (self.root / name).open("rb") as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(0)
                first = file.read(_HASHED)
                file.seek(max(length - _HASHED, 0))
                return length.to_bytes(8, "little") + first + file.read(_HASHED)
        except OSError as error:
            raise BadImage(name, f"the file cannot be read: {error.strerror}") from error

    def size(self, i: int, content: bytes) -> tuple[int, int]:
        width, height = self._slide(i).dimensions
        return (height, width)

    def prepare(self, i: int) -> None:
        self._tissue(i)
        self.patch(i, 0)

    def _shrinking(self, i: int) -> tuple[float, float]:
        """How many pixels of slide i, down and right, become one of a patch."""
        wanted = self.config.mpp
        if wanted is None:
            return (self.config.downscale, self.config.downscale)
        name, said = self.records[i].name, self._slide(i).properties
        try:
            own = float(said["openslide.mpp-y"]), float(said["openslide.mpp-x"])
            if not all(0 < v < math.inf for v in own):
                raise ValueError
        except (KeyError, ValueError):
            reason = "it does not say how many micrometres its pixels are, which --mpp needs; use --downscale"
            raise BadImage(name, reason) from None
        if wanted < 0.99 * min(own):
            raise BadImage(name, f"its pixels are {max(own):g} micrometres, and --mpp {wanted:g} would enlarge them")
        return (max(wanted / own[0], 1.0), max(wanted / own[1], 1.0))

    def _footprint(self, i: int) -> tuple[float, float]:
        """(height, width) at full resolution of what becomes one patch of slide i."""
        (height, width), (down, right) = self.config.size, self._shrinking(i)
        return (height * down, width * right)

    def _tissue(self, i: int) -> tuple[NDArray[np.int32], float]:
        """Where patches may begin, (M, 2) in thumbnail pixels (y, x), and how many slide pixels one of these is."""
        if i in self._places:
            return self._places[i]
        name, slide, (high, wide) = self.records[i].name, self._slide(i), self._footprint(i)
        width, height = slide.dimensions
        if width < wide or height < high:
            reason = f"{width}x{height} is smaller than a patch, which covers {wide:.0f}x{high:.0f} of its pixels"
            raise BadImage(name, reason, "too small")
        openslide = _openslide(name)
        try:
            thumbnail = np.asarray(slide.get_thumbnail((_THUMBNAIL, _THUMBNAIL)).convert("RGB"))
        except openslide.OpenSlideError as error:
            raise BadImage(name, f"its thumbnail cannot be read: {error}") from error
        scale = width / thumbnail.shape[1]
        share = _window_mean(tissue_mask(thumbnail), max(round(high / scale), 1), max(round(wide / scale), 1))
        places = np.argwhere(share >= 0.5).astype(np.int32)
        if not len(places):
            raise BadImage(name, "it shows no tissue: no patch is at least half covered")
        self._places[i] = (places, scale)
        return self._places[i]

    def patch(self, i: int, key: int) -> Pixels:
        from PIL import Image

        name, slide, openslide = self.records[i].name, self._slide(i), _openslide(self.records[i].name)
        places, scale = self._tissue(i)
        cell, down, right = integers(key, 3)
        y, x = (
            (int(v) + jitter / 2**64) * scale
            for v, jitter in zip(places[cell % len(places)], (down, right), strict=True)
        )
        (high, wide), (height, width) = self._footprint(i), self.config.size
        y, x = int(min(y, slide.dimensions[1] - high)), int(min(x, slide.dimensions[0] - wide))
        level = slide.get_best_level_for_downsample(min(high / height, wide / width) * 1.001)
        factor = slide.level_downsamples[level]
        box = (0.0, 0.0, wide / factor, high / factor)
        if abs(box[2] - width) < 0.01 * width and abs(box[3] - height) < 0.01 * height:
            box = (0.0, 0.0, float(width), float(height))  # the level is what is wanted
        try:
            region = slide.read_region((x, y), level, (math.ceil(box[2]), math.ceil(box[3])))
        except openslide.OpenSlideError as error:
            raise BadImage(name, f"its pixels at x={x}, y={y} cannot be read: {error}") from error
        flat = Image.alpha_composite(Image.new("RGBA", region.size, self.config.background), region).convert("RGB")
        if box[2:] != (width, height):
            flat = flat.resize((width, height), Image.Resampling.BOX, box=box)
        return to_colour(np.asarray(flat), self.config.settled_colour)


def tissue_mask(thumbnail: Pixels) -> NDArray[np.bool_]:
    """Where a slide's thumbnail (H, W, 3) shows tissue: more saturated than Otsu's threshold. Boolean (H, W)."""
    from skimage.color import rgb2hsv
    from skimage.filters import threshold_otsu

    saturation = rgb2hsv(thumbnail)[..., 1]
    # Where tissue fills the whole slide Otsu would part pale from dark tissue; glass is hardly ever above 0.1.
    mask: NDArray[np.bool_] = saturation > min(float(threshold_otsu(saturation)), _GLASS)
    return mask


def _window_mean(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.float64]:
    """Mean of the mask over every window that lies within it, by the window's first row and column."""
    total = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    mean: NDArray[np.float64] = sums / (height * width)
    return mean
