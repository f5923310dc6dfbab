"""A slide with one more level, in memory: its pixels' means, so that coarse patches need not be read at full size."""

from __future__ import annotations

import math

import numpy as np

from morphogen.data.decode import Pixels
from morphogen.data.slide_readers import Slide

_WORTHWHILE = 3.0  # times as coarse as the level that would be read
_MOST_READ = 2**28  # pixels of that level, which are all read once
_STRIP = 2**24


class ReducedSlide(Slide):
    """A slide whose last level holds the means of squares of `factor` pixels. See `reduced`."""

    def __init__(self, slide: Slide, factor: int) -> None:
        self.slide, self.factor = slide, factor
        self.size, self.mpp, self.channels = slide.size, slide.mpp, slide.channels
        self._level = len(slide.downsamples)
        self.downsamples = [*slide.downsamples, float(factor)]
        self._pixels = _shrunk(slide, factor)

    def thumbnail(self) -> Pixels:
        return self.slide.thumbnail()

    def read(self, y: int, x: int, level: int, height: int, width: int) -> Pixels:
        if level != self._level:
            return self.slide.read(y, x, level, height, width)
        high, wide = self._pixels.shape[:2]
        top, left = min(round(y / self.factor), high - 1), min(round(x / self.factor), wide - 1)
        found = self._pixels[top : top + height, left : left + width]
        missing = ((0, height - found.shape[0]), (0, width - found.shape[1]), (0, 0))
        return np.pad(found, missing, mode="edge")

    def level_for(self, downsample: float) -> int:
        return self._level if self.factor <= downsample * 1.001 else self.slide.level_for(downsample)


def reduced(slide: Slide, shrinking: float) -> Slide:
    """The slide as patches that are shrunk by a factor should read it: with a level of that factor in memory, where its
    own levels are much finer and not too large to be read once.
    """
    factor = math.floor(shrinking * 1.001)
    own = slide.downsamples[slide.level_for(factor)]
    if factor / own < _WORTHWHILE or slide.size[0] * slide.size[1] / own**2 > _MOST_READ:
        return slide
    return ReducedSlide(slide, factor)


def _shrunk(slide: Slide, factor: int) -> Pixels:
    from PIL import Image

    level = slide.level_for(factor)
    step = factor / slide.downsamples[level]  # pixels of the level, on a side, that become one
    high, wide = (max(1, side // factor) for side in slide.size)
    rows, parts = max(1, int(_STRIP / (wide * step * step))), []
    for top in range(0, high, rows):
        count = min(rows, high - top)
        box = (0.0, 0.0, wide * step, count * step)
        region = slide.read(top * factor, 0, level, math.ceil(box[3]), math.ceil(box[2]))
        flat = Image.fromarray(region[..., 0] if region.shape[2] == 1 else region)
        parts.append(np.atleast_3d(np.asarray(flat.resize((wide, count), Image.Resampling.BOX, box=box))))
    return np.concatenate(parts)
