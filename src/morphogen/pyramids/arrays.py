"""Zarr arrays as the canvas and the levels of a slide in work are kept in: uncompressed, one chunk a tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

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


def is_array_of(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> bool:
    """Whether an array on the disk is just as `create_array` makes it, so that its chunks are read as they were
    written. Raises errors of zarr's where it cannot be opened.
    """
    import zarr

    return bool(zarr.open_array(str(path), mode="r").metadata == _create({}, shape, chunk, dtype).metadata)


def create_array(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> PixelArray:
    """A new uncompressed zarr array of zeros; chunks that nobody writes take no space."""
    return cast(PixelArray, _create(str(path), shape, chunk, dtype))


def _create(store: str | dict[str, object], shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> Any:
    import zarr

    return zarr.create_array(
        store, shape=shape, chunks=chunk, dtype=dtype, compressors=None, filters=None, fill_value=0, overwrite=True
    )
