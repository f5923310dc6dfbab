"""Opening a pyramid by its path."""

from __future__ import annotations

from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.pyramids.deepzoom import DeepZoom
from morphogen.pyramids.ome_zarr import OmeZarr
from morphogen.pyramids.openslide import SUFFIXES as OPENSLIDE_SUFFIXES
from morphogen.pyramids.openslide import OpenSlide
from morphogen.pyramids.pyramid import Pyramid
from morphogen.pyramids.tiff import Tiff

_TIFF_SUFFIXES = frozenset((".tif", ".tiff", ".svs", ".btf", ".tf8"))


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder is an OME-Zarr store, or one of bioformats2raw's, by the metadata file of a Zarr group."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def is_pyramid(path: Path) -> bool:
    """Whether a path is named, or laid out, as a slide is that `open_pyramid` reads."""
    suffix = path.suffix.lower()
    named = suffix in {".zarr", ".dzi"} | _TIFF_SUFFIXES | OPENSLIDE_SUFFIXES
    return named or is_ome_zarr(path) or next(path.glob("*.dcm"), None) is not None


def open_pyramid(path: Path | str) -> Pyramid:
    """Open an OME-Zarr folder, a TIFF, a DeepZoom file or what OpenSlide reads.

    Raises InputError, naming it, where it is missing, damaged, of another kind or of more than 8 bits.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_dir():
        parts = sorted(path.glob("*.dcm"))  # any file of a DICOM series leads OpenSlide to the others
        return OpenSlide(parts[0]) if parts and not is_ome_zarr(path) else OmeZarr(path)
    suffix = path.suffix.lower()
    if suffix == ".dzi":
        return DeepZoom(path)
    return OpenSlide(path) if suffix in OPENSLIDE_SUFFIXES else Tiff(path)
