"""Random patches over the tissue of whole-slide images."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.core.random import integers
from morphogen.data.config import DataConfig
from morphogen.data.decode import Pixels
from morphogen.data.formats import BadImage
from morphogen.data.maps import resized_map
from morphogen.data.polygon_maps import PolygonMaps
from morphogen.data.reduced_slide import ReducedSlide, reduced
from morphogen.data.slide_readers import (
    SLIDE_SUFFIXES,
    ScannerSlide,
    Slide,
    import_openslide,
    open_slide,
    slide_content,
)
from morphogen.data.source import ClassMap, Look, PatchSource, Record, label_records, to_colour
from morphogen.pyramids.region import Region

_GLASS = 0.1
_OPEN_SLIDES = 16


class SlideSource(PatchSource):
    """Slides below a folder; `patch` draws patches of which at least half is tissue.

    Of gray slides, and of those that no scanner's program has written and that show no tissue, any place will do.
    """

    domain = "pathology"

    def __init__(self, config: DataConfig, root: Path, records: list[Record]) -> None:
        super().__init__(config, records)
        self.root = root.absolute()
        self._opened: tuple[int, OrderedDict[int, Slide]] = (os.getpid(), OrderedDict())
        self._places: dict[int, tuple[NDArray[np.int32], float]] = {}

    @classmethod
    def of(cls, config: DataConfig, root: Path, names: list[str]) -> SlideSource:
        """The slides `names` below root. Raises InputError where OpenSlide is missing and needed."""
        if any(Path(name).suffix.lower() in SLIDE_SUFFIXES for name in names):
            import_openslide(config.source)
        return cls(config, root, label_records(sorted(names)))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": (0, OrderedDict()), "_places": {}}

    def _slide(self, i: int) -> Slide:
        """The open slide i; a process opens its own, and keeps the last few."""
        name = self.records[i].name
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), OrderedDict())
        slides = self._opened[1]
        found = slides.pop(i, None)
        if found is None:
            found = open_slide(self.root / name, name, self.config)
            try:
                found = reduced(found, min(self._factors(found, name)))
            except InputError as error:
                raise BadImage(name, str(error)) from error
        slides[i] = found
        if len(slides) > _OPEN_SLIDES:
            slides.popitem(last=False)
        return found

    def content(self, i: int) -> bytes:
        """Enough to tell slides apart without reading gigabytes; see `slide_content`."""
        name = self.records[i].name
        try:
            return slide_content(self.root / name)
        except OSError as error:
            raise BadImage(name, f"the file cannot be read: {error.strerror}") from error

    def size(self, i: int, content: bytes) -> tuple[int, int]:
        return self._slide(i).size

    def look(self, i: int) -> Look | None:
        try:
            return Look(gray=self._slide(i).channels == 1, transparent=False)
        except InputError:
            return None

    def scale(self, i: int) -> tuple[float, float] | None:
        return self._slide(i).mpp

    def prepare(self, i: int) -> None:
        self._tissue(i)
        self.patch(i, 0)

    def shrinking(self, i: int) -> tuple[float, float]:
        return self._factors(self._slide(i), self.records[i].name)

    def _factors(self, slide: Slide, name: str) -> tuple[float, float]:
        wanted = self.config.mpp
        if wanted is None:
            return (self.config.downscale, self.config.downscale)
        own = slide.mpp
        if own is None:
            reason = "it does not say how many micrometres its pixels are, which --mpp needs; use --downscale"
            raise BadImage(name, reason) from None
        if wanted < 0.99 * min(own):
            raise BadImage(name, f"its pixels are {max(own):g} micrometres, and --mpp {wanted:g} would enlarge them")
        return (max(wanted / own[0], 1.0), max(wanted / own[1], 1.0))

    def _footprint(self, i: int) -> tuple[float, float]:
        """(height, width) at full resolution of what becomes one patch of slide i."""
        (height, width), (down, right) = self.config.size, self.shrinking(i)
        return (height * down, width * right)

    def _tissue(self, i: int) -> tuple[NDArray[np.int32], float]:
        """Where patches may begin, (M, 2) in thumbnail pixels (y, x), and how many slide pixels one of these is."""
        if i in self._places:
            return self._places[i]
        name, slide, (high, wide) = self.records[i].name, self._slide(i), self._footprint(i)
        height, width = slide.size
        if width < wide or height < high:
            reason = f"{width}x{height} is smaller than a patch, which covers {wide:.0f}x{high:.0f} of its pixels"
            raise BadImage(name, reason, "too small")
        try:
            thumbnail = slide.thumbnail()
        except InputError as error:
            raise BadImage(name, str(error)) from error
        scale = width / thumbnail.shape[1]
        window = (min(max(round(n / scale), 1), side) for n, side in zip((high, wide), thumbnail.shape, strict=False))
        share = _window_mean(_mask(thumbnail), *window)
        places = np.argwhere(share >= 0.5).astype(np.int32)
        if not len(places) and not isinstance(slide.slide if isinstance(slide, ReducedSlide) else slide, ScannerSlide):
            places = np.argwhere(share >= 0).astype(np.int32)
        if not len(places):
            raise BadImage(name, "it shows no tissue: no patch is at least half covered")
        self._places[i] = (places, scale)
        return self._places[i]

    def _place(self, i: int, key: int) -> tuple[int, int]:
        """The first row and column at full resolution of a patch."""
        slide = self._slide(i)
        places, scale = self._tissue(i)
        cell, down, right = integers(key, 3)
        y, x = (
            (int(v) + jitter / 2**64) * scale
            for v, jitter in zip(places[cell % len(places)], (down, right), strict=True)
        )
        high, wide = self._footprint(i)
        return int(min(y, slide.size[0] - high)), int(min(x, slide.size[1] - wide))

    def patch_map(self, i: int, key: int) -> ClassMap:
        assert isinstance(self.maps, PolygonMaps)
        (y, x), (high, wide) = self._place(i, key), self._footprint(i)
        return resized_map(self.maps.region(i, Region(y, x, math.ceil(high), math.ceil(wide))), self.config.size)

    def patch(self, i: int, key: int) -> Pixels:
        from PIL import Image

        name, slide = self.records[i].name, self._slide(i)
        (y, x), (high, wide), (height, width) = self._place(i, key), self._footprint(i), self.config.size
        level = slide.level_for(min(high / height, wide / width))
        factor = slide.downsamples[level]
        box = (0.0, 0.0, wide / factor, high / factor)
        if abs(box[2] - width) < 0.01 * width and abs(box[3] - height) < 0.01 * height:
            box = (0.0, 0.0, float(width), float(height))  # the level is what is wanted
        try:
            region = slide.read(y, x, level, math.ceil(box[3]), math.ceil(box[2]))
        except InputError as error:
            raise BadImage(name, str(error)) from error
        if box[2:] != (width, height):
            flat = Image.fromarray(region[..., 0] if region.shape[2] == 1 else region)
            region = np.atleast_3d(np.asarray(flat.resize((width, height), Image.Resampling.BOX, box=box)))
        return to_colour(region, self.config.settled_colour)


def _mask(thumbnail: Pixels) -> NDArray[np.bool_]:
    """Where patches may be taken from; of gray images everywhere."""
    return np.ones(thumbnail.shape[:2], np.bool_) if thumbnail.shape[2] == 1 else tissue_mask(thumbnail)


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
