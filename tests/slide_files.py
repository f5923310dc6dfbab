"""Small slides of every kind, written by their own libraries or by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from run_helpers import pixels

SIZE = (150, 233)


def level(n: int) -> np.ndarray:
    """The pyramid that all of them hold: at every level a picture of its own, so that none is taken for another."""
    return pixels(-(-SIZE[0] // 2**n), -(-SIZE[1] // 2**n), 7 + n)


def write_zarr(
    path: Path,
    zarr_format: int,
    axes: str = "cyx",
    *,
    said: str | None = None,
    separator: str = "/",
    unit: str | None = None,
    scale: float = 1.0,
) -> Path:
    """said: the version of OME-Zarr, by default the newest of the Zarr format."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for n in range(3):
        values = level(n).transpose(["yxc".index(a) for a in axes if a in "yxc"])
        values = values.reshape(
            [1 if a in "tz" else values.shape[[b for b in axes if b in "yxc"].index(a)] for a in axes]
        )
        keys = {"name": "v2" if zarr_format == 2 else "default", "separator": separator}
        chunks = tuple(min(s, 64) for s in values.shape)
        group.create_array(str(n), data=values, chunks=chunks, chunk_key_encoding=keys)
    version = said or {2: "0.4", 3: "0.5"}[zarr_format]
    image: dict[str, Any] = {"version": version, "datasets": [{"path": str(n)} for n in range(3)]}
    if version == "0.3":
        image["axes"] = list(axes)
    elif version > "0.3":
        image["axes"] = [{"name": a, "type": "space", **({"unit": unit} if unit and a in "yx" else {})} for a in axes]
        for n, entry in enumerate(image["datasets"]):
            steps = [scale * 2**n if a in "yx" else 1.0 for a in axes]
            entry["coordinateTransformations"] = [{"type": "scale", "scale": steps}]
    attributes = {"multiscales": [image]}
    group.attrs.update({"ome": {"version": version, **attributes}} if zarr_format == 3 else attributes)
    return path


def write_bioformats2raw(path: Path) -> Path:
    """As bioformats2raw lays images out: each in a group of its own, five axes, a group OME beside them."""
    import zarr

    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    root.create_group("OME").attrs["series"] = ["0", "1"]
    write_zarr(path / "0", 2, "tczyx")
    write_zarr(path / "1", 2, "yxc")
    return path


def write_tiff(path: Path) -> Path:
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        options = {"tile": (64, 64), "photometric": "rgb"}
        writer.write(level(0), subifds=2, **options)
        for n in (1, 2):
            writer.write(level(n), subfiletype=1, **options)
    return path


def write_dzi(path: Path, overlap: int = 1, tile: int = 62) -> Path:
    path.write_text(
        '<?xml version="1.0"?>\n<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="png" '
        f'Overlap="{overlap}" TileSize="{tile}"><Size Width="{SIZE[1]}" Height="{SIZE[0]}"/></Image>'
    )
    for n in range(9):
        folder = path.with_name(f"{path.stem}_files") / str(8 - n)
        folder.mkdir(parents=True)
        values = level(n)
        for row in range(-(-values.shape[0] // tile)):
            for column in range(-(-values.shape[1] // tile)):
                top, left = max(row * tile - overlap, 0), max(column * tile - overlap, 0)
                part = values[top : (row + 1) * tile + overlap, left : (column + 1) * tile + overlap]
                Image.fromarray(part).save(folder / f"{column}_{row}.png")
    return path


def write_dicom(path: Path) -> Path:
    """A whole-slide image of one level in JPEG tiles, as scanners write it, 0.5 by 0.25 micrometres a pixel."""
    import io

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    tile, pixels, frames = 64, level(0), []
    for row in range(0, SIZE[0], tile):
        for column in range(0, SIZE[1], tile):
            part = pixels[row : row + tile, column : column + tile]
            full = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)), mode="edge")
            buffer = io.BytesIO()
            Image.fromarray(full).save(buffer, "JPEG", quality=95, subsampling=0)
            frames.append(buffer.getvalue())
    image, meta, spacing, shared, optical = Dataset(), FileMetaDataset(), Dataset(), Dataset(), Dataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    spacing.PixelSpacing, optical.OpticalPathIdentifier = [0.0005, 0.00025], "0"  # millimetres
    shared.PixelMeasuresSequence = [spacing]
    values = {
        "StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "Modality": "SM",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "DimensionOrganizationType": "TILED_FULL",
        "Rows": tile, "Columns": tile, "NumberOfFrames": len(frames), "NumberOfOpticalPaths": 1,
        "TotalPixelMatrixRows": SIZE[0], "TotalPixelMatrixColumns": SIZE[1], "TotalPixelMatrixFocalPlanes": 1,
        "SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0,
        "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "SharedFunctionalGroupsSequence": [shared], "OpticalPathSequence": [optical],
    }  # fmt: skip
    for name, value in values.items():
        setattr(image, name, value)
    image.file_meta, image.PixelData = meta, encapsulate(frames)
    image["PixelData"].VR = "OB"
    image.save_as(path, enforce_file_format=True)
    return path
