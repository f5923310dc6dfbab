"""Zarr arrays as the canvas and the levels of a slide in work are kept in: uncompressed, one chunk a tile."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

import numpy as np


class PixelArray(Protocol):
    """An array on the disk, of which a region is read and written at a time: a zarr array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: int | tuple[slice, ...]) -> np.ndarray: ...

    def __setitem__(self, index: int | tuple[slice, ...], values: np.ndarray) -> None: ...


def open_array(path: Path) -> PixelArray:
    """An existing zarr array."""
    import zarr

    return cast(PixelArray, zarr.open_array(str(path), mode="r+"))


def create_array(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> PixelArray:
    """A new uncompressed zarr array of zeros; chunks that nobody writes take no space."""
    import zarr

    array = zarr.create_array(
        str(path), shape=shape, chunks=chunk, dtype=dtype, compressors=None, filters=None, fill_value=0, overwrite=True
    )
    return cast(PixelArray, array)
