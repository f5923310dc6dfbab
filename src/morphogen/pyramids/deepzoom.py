"""DeepZoom: an XML file, and beside it a folder with the tiles of every level, halved down to one pixel.

The scheme is Microsoft's "Deep Zoom File Format Overview" (2008).
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import JsonObject, json_bytes, read_json
from morphogen.core.images import METADATA_KEY
from morphogen.pyramids.arrays import PixelArray
from morphogen.pyramids.encoding import decode_rgb, encoded, jpeg_bytes
from morphogen.pyramids.levels import blocks
from morphogen.pyramids.pyramid import LARGEST_CHUNK, Pixels, Pyramid, as_mpp
from morphogen.pyramids.region import Region

DEEPZOOM_TILE = 256
_NAMESPACE = "http://schemas.microsoft.com/deepzoom/2008"
_LARGEST_XML = 2**20


class DeepZoom(Pyramid):
    """The tiles of a .dzi file, in a folder beside it. Raises InputError, naming it, where it is damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        root = _xml(path)
        sizes = [element for element in root if element.tag.endswith("Size")]
        try:
            if not root.tag.endswith("Image") or not sizes:
                raise ValueError
            self._tile, self._overlap = int(root.attrib["TileSize"]), int(root.attrib["Overlap"])
            width, height = int(sizes[0].attrib["Width"]), int(sizes[0].attrib["Height"])
            if not (1 <= self._tile <= 8192 and 0 <= self._overlap <= self._tile and min(width, height) >= 1):
                raise ValueError
        except (KeyError, ValueError):
            raise InputError(f"{path} is not a DeepZoom file: it lacks a tile size, an overlap or a size") from None
        self._format = root.attrib.get("Format", "")
        if not re.fullmatch("[A-Za-z]{1,5}", self._format):
            raise InputError(f"{path}: its tiles have no known format ({self._format!r})")
        self._folder = path.with_name(path.stem + "_files")
        if not self._folder.is_dir():
            raise InputError(f"{path}: the folder {self._folder.name} with its tiles is not beside it")
        self._highest = (max(width, height) - 1).bit_length()
        self.levels = [(-(-height // 2**n), -(-width // 2**n)) for n in range(self._highest + 1)]
        self.tiles = [(self._tile, self._tile)] * len(self.levels)
        self.channels = 3
        self.mpp = _own_pixel_size(self._folder)

    def read_region(self, region: Region, level: int = 0) -> Pixels:
        side, top, left = self._tile, region.y, region.x
        rows = range(top // side, (top + region.height - 1) // side + 1)
        columns = range(left // side, (left + region.width - 1) // side + 1)
        strips = [np.concatenate([self._part(level, row, column) for column in columns], axis=1) for row in rows]
        whole = np.concatenate(strips, axis=0)
        y, x = top - rows[0] * side, left - columns[0] * side
        return np.ascontiguousarray(whole[y : y + region.height, x : x + region.width])

    def _part(self, level: int, row: int, column: int) -> Pixels:
        """A tile without its overlap, uint8 (H, W, 3)."""
        file = self._folder / str(self._highest - level) / f"{column}_{row}.{self._format}"
        try:
            pixels = decode_rgb(file.read_bytes(), file.name, LARGEST_CHUNK)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
        height, width = self.levels[level]
        y, x = (self._overlap if n else 0 for n in (row, column))
        high, wide = min(self._tile, height - row * self._tile), min(self._tile, width - column * self._tile)
        part = pixels[y : y + high, x : x + wide]
        if part.shape[:2] != (high, wide):
            raise InputError(f"{file} is {pixels.shape[1]}x{pixels.shape[0]} pixels, which is not what its slide says")
        return part


def _xml(path: Path) -> ElementTree.Element:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_XML)
        if b"<!" in text.replace(b"<!--", b""):  # entities that multiply
            raise ElementTree.ParseError
        return ElementTree.fromstring(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ElementTree.ParseError:
        raise InputError(f"{path} is not a DeepZoom file") from None


def _own_pixel_size(folder: Path) -> tuple[float, float] | None:
    """Micrometres a pixel where the slide is one of ours that says so; the format itself has no place for them."""
    file = folder / f"{METADATA_KEY}.json"
    if not file.is_file():
        return None
    found = read_json(file)
    size = found.get("pixel_size") if isinstance(found, dict) else None
    return as_mpp(size, size) if isinstance(size, int | float) else None


def tiles_folder(out: Path) -> Path:
    """Where the tiles of a .dzi file lie."""
    return out.with_name(out.stem + "_files")


def write_deepzoom(out: Path, levels: list[PixelArray], metadata: JsonObject) -> None:
    jpeg = metadata.get("jpeg")
    kind = "png" if jpeg is None else "jpg"
    files = tiles_folder(out)
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
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Image xmlns="{_NAMESPACE}" Format="{kind}" Overlap="0" '
        f'TileSize="{DEEPZOOM_TILE}">\n  <Size Height="{height}" Width="{width}"/>\n</Image>\n',
        encoding="utf-8",
    )


def _deepzoom_tile(level: PixelArray, region: Region, jpeg: int | None) -> bytes:
    pixels = level[:, region.rows, region.columns].transpose(1, 2, 0)
    return encoded(pixels, "PNG") if jpeg is None else jpeg_bytes(pixels, jpeg)
