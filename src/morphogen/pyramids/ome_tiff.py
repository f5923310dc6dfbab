"""Writing OME-TIFF: BigTIFF in tiles, the smaller levels beneath the image."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from morphogen.core.files import JsonObject
from morphogen.core.images import METADATA_KEY
from morphogen.pyramids.arrays import PixelArray
from morphogen.pyramids.encoding import jpeg_bytes
from morphogen.pyramids.levels import blocks
from morphogen.pyramids.tiff import chain_levels

TIFF_TILE = 256
_TOGETHER = (1, 3, 4)  # gray, RGB and RGBA are kept pixel by pixel, all else plane by plane


def _tiff_tiles(level: PixelArray, jpeg: int | None) -> Iterator[np.ndarray | bytes]:
    """A level's tiles in the order of the file, at the edges filled up, uint8 (tile, tile, C), or as JPEG."""
    channels, height, width = level.shape
    side = TIFF_TILE
    planes = [slice(None)] if channels in _TOGETHER else [slice(c, c + 1) for c in range(channels)]
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


def write_ome_tiff(out: Path, levels: list[PixelArray], metadata: JsonObject) -> None:
    import tifffile

    jpeg, pixel = metadata.get("jpeg"), metadata.get("pixel_size")
    channels = levels[0].shape[0]
    colour = "rgb" if channels in (3, 4) else "minisblack"
    description: dict[str, object] = {
        "axes": "YXS" if channels in (3, 4) else "YX" if channels == 1 else "CYX",
        "Name": out.name[: -len(".ome.tif")].encode(errors="backslashreplace").decode(),
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
            shape = {1: (height, width), 3: (height, width, 3), 4: (height, width, 4)}.get(
                count, (count, height, width)
            )
            centimetre = None if pixel is None else 1e4 / (pixel * 2**number)
            file.write(
                _tiff_tiles(level, jpeg),
                shape=shape,
                dtype="uint8",
                tile=(TIFF_TILE, TIFF_TILE),
                photometric="ycbcr" if jpeg is not None and channels == 3 else colour,
                planarconfig=None if channels in _TOGETHER else "separate",
                extrasamples=["unassalpha"] if channels == 4 else None,
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
    chain_levels(out)
