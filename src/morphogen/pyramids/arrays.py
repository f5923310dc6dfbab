"""Zarr arrays as the canvas and the levels of a slide in work are kept in: uncompressed, one chunk a tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_array(path: Path) -> Any:
    """An existing zarr array."""
    import zarr

    return zarr.open_array(str(path), mode="r+")


def is_array_of(array: Any, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> bool:
    """Whether an open array is just as `create_array` makes it, so that its chunks are read as they were written."""
    return bool(array.metadata == _create({}, shape, chunk, dtype).metadata)


def create_array(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> Any:
    """A new uncompressed zarr array of zeros; chunks that nobody writes take no space."""
    return _create(str(path), shape, chunk, dtype)


def _create(store: Any, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> Any:
    import zarr

    return zarr.create_array(
        store, shape=shape, chunks=chunk, dtype=dtype, compressors=None, filters=None, fill_value=0, overwrite=True
    )
