"""The formats that slides are written in, by the end of a name."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from morphogen.core.errors import InputError
from morphogen.core.files import JsonObject, read_json
from morphogen.core.images import METADATA_KEY
from morphogen.pyramids.arrays import PixelArray
from morphogen.pyramids.deepzoom import tiles_folder, write_deepzoom
from morphogen.pyramids.ome_tiff import write_ome_tiff
from morphogen.pyramids.ome_zarr import write_ome_zarr

SUFFIXES = (".ome.zarr", ".ome.tif", ".dzi")
SMALLEST_LEVEL = {".ome.zarr": 256, ".ome.tif": 256, ".dzi": 1}


def find_format(out: Path) -> str:
    """The suffix of an output that says its format. Raises InputError for any other."""
    for suffix in SUFFIXES:
        if out.name.lower().endswith(suffix) and len(out.name) > len(suffix):
            return suffix
    raise InputError(f"--out {out}: its name should end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def check_format(suffix: str, channels: int, jpeg: int | None) -> None:
    """Raise InputError where a format cannot hold such an image."""
    if suffix == ".ome.zarr" and jpeg is not None:
        raise InputError("--jpeg: OME-Zarr has no JPEG chunks that every reader knows; use .ome.tif or .dzi")
    if channels not in (1, 3) and (suffix == ".dzi" or jpeg is not None):
        raise InputError(f"the images have {channels} channels, but {suffix} holds 1 or 3 of them; use .ome.zarr")


def parts(out: Path) -> list[Path]:
    """Everything on the disk that an output consists of, the last being what its readers open."""
    return [tiles_folder(out), out] if out.name.lower().endswith(".dzi") else [out]


def write(out: Path, suffix: str, levels: list[PixelArray], metadata: JsonObject) -> None:
    """Write levels, zarr uint8 (C, height, width) from the largest on, as a file of a format.

    metadata: what the file says of itself; of it `pixel_size` (micrometres), `jpeg` (quality) and `zarr`
    (the version of OME-Zarr) are also its own.
    """
    if suffix == ".ome.zarr":
        write_ome_zarr(out, levels, metadata)
    elif suffix == ".ome.tif":
        write_ome_tiff(out, levels, metadata)
    else:
        write_deepzoom(out, levels, metadata)


def read_metadata(out: Path, suffix: str) -> JsonObject:
    """The metadata in a file of ours. Raises InputError where it is none."""
    try:
        if suffix == ".ome.zarr":
            if (out / "zarr.json").is_file():
                return dict(read_json(out / "zarr.json")["attributes"][METADATA_KEY])
            return dict(read_json(out / ".zattrs")[METADATA_KEY])
        if suffix == ".dzi":
            return dict(read_json(parts(out)[0] / f"{METADATA_KEY}.json"))
        import tifffile

        with tifffile.TiffFile(out) as file:
            described = ElementTree.fromstring(file.ome_metadata or "")
        found = next(e.text for e in described.iter() if e.get("K") == METADATA_KEY)
        return dict(json.loads(found or ""))
    except (OSError, LookupError, ValueError, TypeError, StopIteration, ElementTree.ParseError, InputError):
        raise InputError(
            f"--out {out} exists and was not painted by Morphogen; use another name, or replace it with --overwrite"
        ) from None
