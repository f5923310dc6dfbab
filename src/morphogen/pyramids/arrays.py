"""Zarr arrays as the canvas and the levels of a slide in work are kept in: uncompressed, one chunk a tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_array(path: Path) -> Any:
    """An existing zarr array."""
    import zarr

    return zarr.open_array(str(path), mode="r+")


def create_array(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> Any:
    """A new uncompressed zarr array of zeros; chunks that nobody writes take no space."""
    import zarr

    return zarr.create_array(
        str(path), shape=shape, chunks=chunk, dtype=dtype, compressors=None, filters=None, fill_value=0, overwrite=True
    )
