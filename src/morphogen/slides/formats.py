"""The files that a painted slide becomes: OME-Zarr, OME-TIFF, DeepZoom."""

from __future__ import annotations

import io
import json
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json
from morphogen.core.images import METADATA_KEY
from morphogen.slides.pyramid import BLOCK, blocks
from morphogen.slides.region import Region

SUFFIXES = (".ome.zarr", ".ome.tif", ".dzi")
TIFF_TILE, DEEPZOOM_TILE = 256, 256
SMALLEST_LEVEL = {".ome.zarr": 256, ".ome.tif": 256, ".dzi": 1}
_DEEPZOOM = "http://schemas.microsoft.com/deepzoom/2008"


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
    return [out.with_name(out.name[: -len(".dzi")] + "_files"), out] if out.name.lower().endswith(".dzi") else [out]


def write(out: Path, suffix: str, levels: list[Any], metadata: dict[str, Any]) -> None:
    """Write levels, zarr uint8 (C, height, width) from the largest on, as a file of a format.

    metadata: what the file says of itself; of it `pixel_size` (micrometres) and `jpeg` (quality) are also its own.
    """
    if suffix == ".ome.zarr":
        _write_zarr(out, levels, metadata)
    elif suffix == ".ome.tif":
        _write_tiff(out, levels, metadata)
    else:
        _write_deepzoom(out, levels, metadata)


def read_metadata(out: Path, suffix: str) -> dict[str, Any]:
    """What a file of ours says of itself. Raises InputError where it is none."""
    try:
        if suffix == ".ome.zarr":
            return dict(read_json(out / ".zattrs")[METADATA_KEY])
        if suffix == ".dzi":
            return dict(read_json(parts(out)[0] / f"{METADATA_KEY}.json"))
        import tifffile

        with tifffile.TiffFile(out) as file:
            described = ElementTree.fromstring(file.ome_metadata or "")
        found = next(e.text for e in described.iter() if e.get("K") == METADATA_KEY)
        return dict(json.loads(found or ""))
    except (OSError, LookupError, ValueError, TypeError, StopIteration, ElementTree.ParseError, InputError):
        raise InputError(f"--out {out} exists and was not painted by Morphogen; use another name") from None


# ------------------------------------------------------------------------------------------------ OME-Zarr


def ome_zarr_attributes(name: str, levels: int, channels: int, metadata: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an OME-NGFF 0.4 image of so many levels, each half as large as the one before."""
    pixel = metadata.get("pixel_size")
    unit = {} if pixel is None else {"unit": "micrometer"}
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", **unit} for n in "yx")]

    def transform(level: int) -> list[dict[str, Any]]:
        scale = (pixel or 1.0) * 2**level
        return [{"type": "scale", "scale": [1.0, scale, scale]}]

    colours = ["FF0000", "00FF00", "0000FF"] if channels == 3 else ["FFFFFF"] * channels
    labels = ["red", "green", "blue"] if channels == 3 else [f"channel {i}" for i in range(channels)]
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    return {
        "multiscales": [
            {
                "version": "0.4",
                "name": name,
                "axes": axes,
                "datasets": [{"path": str(i), "coordinateTransformations": transform(i)} for i in range(levels)],
                "type": "mean",
            }
        ],
        "omero": {
            "version": "0.4",
            "name": name,
            "channels": [
                {"color": colour, "label": label, "window": window, "active": True}
                for colour, label in zip(colours, labels, strict=True)
            ],
            "rdefs": {"model": "color"},
        },
        METADATA_KEY: metadata,
    }


def _write_zarr(out: Path, levels: list[Any], metadata: dict[str, Any]) -> None:
    import zarr
    from numcodecs import Zstd

    group = zarr.open_group(str(out), mode="w", zarr_format=2)
    for number, level in enumerate(levels):
        channels, height, width = level.shape
        array = group.create_array(
            str(number),
            shape=level.shape,
            chunks=(channels, min(BLOCK, height), min(BLOCK, width)),
            dtype="uint8",
            compressors=Zstd(level=3),
            chunk_key_encoding={"name": "v2", "separator": "/"},
            fill_value=0,
        )
        for region in blocks((height, width)):
            array[:, region.rows, region.columns] = level[:, region.rows, region.columns]
    name = out.name[: -len(".ome.zarr")]
    group.attrs.update(ome_zarr_attributes(name, len(levels), levels[0].shape[0], metadata))


# ------------------------------------------------------------------------------------------------ OME-TIFF


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """Pixels uint8 (H, W, 1 or 3) as a file of a kind that Pillow writes."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_bytes(pixels: np.ndarray, quality: int) -> bytes:
    """Pixels uint8 (H, W, 1 or 3) as a JPEG file without subsampled colours."""
    return encoded(pixels, "JPEG", quality=quality, subsampling=0)


def _tiff_tiles(level: Any, jpeg: int | None) -> Iterator[Any]:
    """A level's tiles in the order of the file, at the edges filled up, uint8 (tile, tile, C), or as JPEG."""
    channels, height, width = level.shape
    side = TIFF_TILE
    planes = [slice(None)] if channels in (1, 3) else [slice(c, c + 1) for c in range(channels)]
    for plane in planes:
        for region in blocks((height, width), side):
            pixels = level[plane, region.rows, region.columns].transpose(1, 2, 0)
            # The last pixels go on, not zeros: less for JPEG to spill into what is seen.
            fill = (side - region.height, side - region.width)
            full = np.pad(pixels, ((0, fill[0]), (0, fill[1]), (0, 0)), mode="edge")
            if jpeg is not None:
                yield jpeg_bytes(full, jpeg)
            else:
                yield np.ascontiguousarray(full[..., 0] if full.shape[2] == 1 else full)


def _write_tiff(out: Path, levels: list[Any], metadata: dict[str, Any]) -> None:
    import tifffile

    jpeg, pixel = metadata.get("jpeg"), metadata.get("pixel_size")
    channels = levels[0].shape[0]
    colour = "rgb" if channels == 3 else "minisblack"
    description: dict[str, Any] = {
        "axes": "YXS" if channels == 3 else "YX" if channels == 1 else "CYX",
        "Name": out.name[: -len(".ome.tif")],
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(metadata))),  # the same for the same picture
        "MapAnnotation": {"Namespace": METADATA_KEY, METADATA_KEY: json.dumps(metadata)},
    }
    if pixel is not None:
        description |= {
            "PhysicalSizeX": pixel,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": pixel,
            "PhysicalSizeYUnit": "µm",
        }
    with tifffile.TiffWriter(out, bigtiff=True, ome=True) as file:
        for number, level in enumerate(levels):
            count, height, width = level.shape
            shape = {1: (height, width), 3: (height, width, 3)}.get(count, (count, height, width))
            centimetre = None if pixel is None else 1e4 / (pixel * 2**number)
            file.write(
                _tiff_tiles(level, jpeg),
                shape=shape,
                dtype="uint8",
                tile=(TIFF_TILE, TIFF_TILE),
                photometric="ycbcr" if jpeg is not None and channels == 3 else colour,
                planarconfig=None if channels in (1, 3) else "separate",
                compression="jpeg" if jpeg is not None else "adobe_deflate",
                predictor=jpeg is None,
                subsampling=(1, 1) if jpeg is not None and channels == 3 else None,
                resolution=None if centimetre is None else (centimetre, centimetre),
                resolutionunit=None if centimetre is None else "CENTIMETER",
                subfiletype=1 if number else 0,
                subifds=len(levels) - 1 if number == 0 else None,
                metadata=description if number == 0 else None,
                software=f"Morphogen {metadata.get('morphogen', '')}".strip(),
            )
    _chain(out)


def _chain(path: Path) -> None:
    """Let the smaller levels, which OME-TIFF keeps beneath the image, also follow it as pages: openslide and others
    look for them there.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        first = file.pages[0]
        below = first.tags.get("SubIFDs")
        offsets = [first.offset, *(below.value if below is not None else ())]
    with path.open("r+b") as raw:
        for offset, following in zip(offsets, [*offsets[1:], 0], strict=True):
            raw.seek(offset)
            (count,) = struct.unpack("<Q", raw.read(8))
            raw.seek(offset + 8 + 20 * count)
            raw.write(struct.pack("<Q", following))
        raw.flush()
        os.fsync(raw.fileno())


# ------------------------------------------------------------------------------------------------ DeepZoom


def _write_deepzoom(out: Path, levels: list[Any], metadata: dict[str, Any]) -> None:
    jpeg = metadata.get("jpeg")
    kind = "png" if jpeg is None else "jpg"
    files = parts(out)[0]
    files.mkdir(parents=True)
    for number, level in enumerate(reversed(levels)):  # level 0 is the smallest
        (folder := files / str(number)).mkdir()
        _, height, width = level.shape
        for region in blocks((height, width), DEEPZOOM_TILE):
            name = f"{region.x // DEEPZOOM_TILE}_{region.y // DEEPZOOM_TILE}.{kind}"
            (folder / name).write_bytes(_deepzoom_tile(level, region, jpeg))
    (files / f"{METADATA_KEY}.json").write_bytes(json_bytes(metadata))
    _, height, width = levels[0].shape
    out.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Image xmlns="{_DEEPZOOM}" Format="{kind}" Overlap="0" '
        f'TileSize="{DEEPZOOM_TILE}">\n  <Size Height="{height}" Width="{width}"/>\n</Image>\n',
        encoding="utf-8",
    )


def _deepzoom_tile(level: Any, region: Region, jpeg: int | None) -> bytes:
    pixels = level[:, region.rows, region.columns].transpose(1, 2, 0)
    return encoded(pixels, "PNG") if jpeg is None else jpeg_bytes(pixels, jpeg)
