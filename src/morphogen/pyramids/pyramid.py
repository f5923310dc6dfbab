"""The base of every pyramid on disk, whatever its format."""

from __future__ import annotations

import math
import shutil
import stat
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.pyramids.region import Region

Pixels = NDArray[np.uint8]
SAME_SCALE = 0.05  # 0.252 and 0.25 micrometres a pixel are one scale to every scanner
LARGEST_CHUNK = 2**26
"""Pixels that one chunk may hold, since it is read whole."""


class Pyramid(ABC):
    """An image of 8-bit pixels in several resolutions, the largest first.

    levels: (height, width) of each. channels: as stored. mpp: micrometres a pixel of the largest level, down
    and across, or None where the file does not say. tiles: height and width of each level's stored tiles. ignored: the
    lengths of further axes (time, depth), of which the first plane is read.
    """

    levels: list[tuple[int, int]]
    channels: int
    mpp: tuple[float, float] | None = None
    tiles: list[tuple[int, int]]
    ignored: dict[str, int]

    def __init__(self, path: Path) -> None:
        self.path, self.ignored = path, {}

    @abstractmethod
    def read_region(self, region: Region, level: int = 0) -> Pixels:
        """A region that lies within a level, uint8 (height, width, channels). Raises InputError where it is damaged."""

    def level_mpp(self, level: int) -> tuple[float, float] | None:
        """Micrometres a pixel of a level, down and across."""
        if self.mpp is None:
            return None
        (high, wide), (full_high, full_wide) = self.levels[level], self.levels[0]
        return self.mpp[0] * full_high / high, self.mpp[1] * full_wide / wide


class WritablePyramid(Pyramid):
    """A pyramid of which single tiles can be replaced, while all others keep their bytes."""

    def check_writable(self) -> None:
        """Raise InputError, with the reason, where `write_tile` would change more than the tile."""

    @abstractmethod
    def write_tile(self, region: Region, pixels: Pixels, level: int) -> None:
        """Replace one tile of a level, uint8 (height, width, channels)."""

    def copy(self, path: Path) -> WritablePyramid:
        """A copy, byte by byte, that can be written to, also where this one is write-protected."""
        if self.path.is_dir():
            shutil.copytree(self.path, path, copy_function=shutil.copyfile)
            for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
                folder.chmod(folder.stat().st_mode | stat.S_IRWXU)
        else:
            shutil.copyfile(self.path, path)
        return type(self)(path)


def check_tiled(path: Path, chunk: tuple[int, int]) -> None:
    """Raise InputError where a chunk (height, width) is so large that a part of the image means reading all of it."""
    if chunk[0] * chunk[1] > LARGEST_CHUNK:
        raise InputError(f"{path} is not stored in tiles, so that a part of it can only be read with the rest")


def as_mpp(down: float | None, across: float | None) -> tuple[float, float] | None:
    """Micrometres a pixel, where both numbers are given, finite and above 0."""
    if down is None or across is None or not all(0 < n < math.inf for n in (down, across)):
        return None
    return down, across
