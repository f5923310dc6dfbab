"""Random patches over the tissue of whole-slide images, through OpenSlide."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.core.random import mix
from morphogen.data.config import DataConfig
from morphogen.data.decode import BadImage, Pixels
from morphogen.data.source import PatchSource, Record, label_records

SLIDE_SUFFIXES = frozenset(".svs .ndpi .mrxs .scn .vms .vmu .bif .svslide".split())
_TIFF_SUFFIXES = frozenset((".tif", ".tiff"))
_THUMBNAIL = 1024
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
            return slide.level_count > 1 or slide.detect_format(path) != "generic-tiff"
    except openslide.OpenSlideError:
        return False


class SlideSource(PatchSource):
    """Slides below a folder; `patch` draws patches of which at least half is tissue."""

    domain = "pathology"

    def __init__(self, config: DataConfig, root: Path, records: list[Record]) -> None:
        super().__init__(config, records)
        self.root = root.absolute()
        self._opened: tuple[int, OrderedDict[int, Any]] = (os.getpid(), OrderedDict())
        self._places: dict[int, tuple[NDArray[np.int64], float]] = {}

    @classmethod
    def of(cls, config: DataConfig, root: Path, names: list[str]) -> SlideSource:
        """The slides `names` below root. Raises InputError where OpenSlide is missing."""
        _openslide(config.source)
        return cls(config, root, label_records(sorted(names)))
