"""Slides as other makers' readers see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from ome_zarr_models.v04 import image as v04
from ome_zarr_models.v05 import image as v05
from PIL import Image
from run_helpers import pixels

from morphogen.core.errors import InputError
from morphogen.pyramids import Region, formats, open_pyramid
from morphogen.pyramids.arrays import create_array
from morphogen.pyramids.levels import halve, level_sizes, make_levels, shrink

METADATA = {"seed": 2**64 - 1, "model": "a <b> & 'c' \"d\" µ", "pixel_size": 0.25}


def levels_of(folder: Path, height: int, width: int, smallest: int, channels: int = 3) -> list[Any]:
    """A smooth picture with some noise, and its smaller levels."""
    noise = np.random.default_rng(1).integers(0, 9, (height, width, 3), dtype=np.uint8)
    picture = (np.clip(pixels(height, width, 5), 10, 240) + noise).astype(np.uint8)
    array = create_array(folder / "painted.zarr", (channels, height, width), (channels, 100, 70), "uint8")
    array[:] = np.resize(picture.transpose(2, 0, 1), (channels, height, width))
    return make_levels(folder, array, smallest)


def test_halving() -> None:
    """Means of 2x2, a half rounded up, the odd last row and column twice."""
    picture = np.array([[[0, 1, 7], [1, 0, 7], [9, 11, 5]]], np.uint8)
    assert halve(picture).tolist() == [[[1, 7], [10, 5]]]
    assert level_sizes((2, 100_000), 256)[-1] == (1, 196)
    assert level_sizes((5, 3), 1) == [(5, 3), (3, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize("factors", [(1, 1), (3, 2), (1, 4), (5, 64)])
def test_shrinking(factors: tuple[int, int]) -> None:
    """Means by any whole numbers, counted one by one."""
    picture = np.random.default_rng(0).integers(250, 256, (2, 11, 130), dtype=np.uint8)
    found = shrink(picture, factors)
    assert found.shape == (2, -(-11 // factors[0]), -(-130 // factors[1]))
    for c, y, x in np.ndindex(found.shape):
        rows = np.minimum(np.arange(y * factors[0], (y + 1) * factors[0]), 10)
        columns = np.minimum(np.arange(x * factors[1], (x + 1) * factors[1]), 129)
        assert found[c, y, x] == np.floor(picture[c, rows[:, None], columns].mean() + 0.5)


def test_levels_do_not_depend_on_blocks(tmp_path: Path) -> None:
    levels = levels_of(tmp_path, 1301, 777, 1)
    expected = levels[0][:]
    for level in levels[1:]:
        expected = halve(expected)
        assert np.array_equal(level[:], expected)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "schema", "zarr_format"), [(None, v04, 2), ("0.4", v04, 2), ("0.5", v05, 3)])
def test_ome_zarr(tmp_path: Path, version: str | None, schema: Any, zarr_format: int) -> None:
    """By the published schema of that version."""
    levels, out = levels_of(tmp_path, 700, 531, 256), tmp_path / "a.ome.zarr"
    metadata = METADATA if version is None else {**METADATA, "zarr": version}
    formats.write(out, ".ome.zarr", levels, metadata)
    group = zarr.open_group(str(out), mode="r")
    assert group.metadata.zarr_format == zarr_format
    for number, level in enumerate(levels):
        assert np.array_equal(group[str(number)][:], level[:])
    attributes = dict(group.attrs)
    found = schema.ImageAttrs.model_validate(attributes["ome"] if zarr_format == 3 else attributes)
    first = found.multiscales[0]
    assert [axis.name for axis in first.axes] == ["c", "y", "x"]
    assert [axis.unit for axis in first.axes[1:]] == ["micrometer"] * 2
    scales = [d.coordinateTransformations[0].scale for d in first.datasets]
    assert scales == [[1, 0.25, 0.25], [1, 0.5, 0.5], [1, 1, 1]]
    assert formats.read_metadata(out, ".ome.zarr") == metadata
    slide = open_pyramid(out)
    assert slide.mpp == (0.25, 0.25) and slide.channels == 3
    assert np.array_equal(slide.read_region(Region(3, 5, 90, 80), 1), levels[1][:, 3:93, 5:85].transpose(1, 2, 0))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_by_its_own_reader(tmp_path: Path, version: str) -> None:
    try:
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader
    except ImportError as error:
        pytest.skip(f"no ome-zarr that works with this zarr: {error}")
    levels, out = levels_of(tmp_path, 700, 531, 256), tmp_path / "a.ome.zarr"
    formats.write(out, ".ome.zarr", levels, {**METADATA, "zarr": version})
    (node,) = Reader(parse_url(str(out)))()
    assert [np.array_equal(np.asarray(a), b[:]) for a, b in zip(node.data, levels, strict=True)] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize("jpeg", [None, 90])
def test_ome_tiff(tmp_path: Path, jpeg: int | None) -> None:
    """tifffile finds the levels beneath the image, openslide (and with it QuPath) as pages after it."""
    levels, out = levels_of(tmp_path, 700, 531, 256), tmp_path / "a.ome.tif"
    metadata = METADATA if jpeg is None else {**METADATA, "jpeg": jpeg}
    formats.write(out, ".ome.tif", levels, metadata)
    pictures = [level[:].transpose(1, 2, 0) for level in levels]
    off = 0 if jpeg is None else 24
    with tifffile.TiffFile(out) as file:
        assert file.is_bigtiff and file.is_ome and file.pages[0].is_tiled
        (series,) = file.series
        assert series.axes == "YXS" and len(series.levels) == 3
        for level, picture in zip(series.levels, pictures, strict=True):
            assert np.abs(level.asarray().astype(int) - picture).max() <= off
        described = ElementTree.fromstring(file.ome_metadata)
        pixel = next(e for e in described.iter() if e.tag.endswith("Pixels"))
        assert (pixel.get("PhysicalSizeX"), pixel.get("PhysicalSizeYUnit")) == ("0.25", "µm")
    with openslide.OpenSlide(out) as slide:
        assert slide.level_dimensions == tuple((p.shape[1], p.shape[0]) for p in pictures)
        assert float(slide.properties["openslide.mpp-x"]) == 0.25
        for number, picture in enumerate(pictures):
            seen = np.asarray(slide.read_region((0, 0), number, slide.level_dimensions[number]))[..., :3]
            assert np.abs(seen.astype(int) - picture).max() <= off
    assert formats.read_metadata(out, ".ome.tif") == metadata
    before = out.read_bytes()
    formats.write(out, ".ome.tif", levels, metadata)
    assert out.read_bytes() == before


def test_a_tiff_with_transparency(tmp_path: Path) -> None:
    """As every reader knows it, Pillow and openslide too, and not four gray planes."""
    levels, out = levels_of(tmp_path, 300, 291, 256, 4), tmp_path / "a.ome.tif"
    formats.write(out, ".ome.tif", levels, METADATA)
    picture = levels[0][:].transpose(1, 2, 0)
    with Image.open(out) as image:
        assert image.mode == "RGBA" and np.array_equal(np.asarray(image), picture)
    with tifffile.TiffFile(out) as file:
        assert file.series[0].axes == "YXS" and len(file.series[0].levels) == 2
    pyramid = open_pyramid(out)
    assert np.array_equal(pyramid.read_region(Region(0, 0, 300, 291)), picture)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_tiff_of_other_channels(tmp_path: Path, channels: int) -> None:
    levels, out = levels_of(tmp_path, 300, 291, 256, channels), tmp_path / "a.ome.tif"
    formats.write(out, ".ome.tif", levels, METADATA)
    with tifffile.TiffFile(out) as file:
        assert np.array_equal(file.asarray().reshape(levels[0].shape), levels[0][:])
        assert len(file.series[0].levels) == 2


@pytest.mark.slow
@pytest.mark.parametrize("jpeg", [None, 95])
def test_deepzoom(tmp_path: Path, jpeg: int | None) -> None:
    """The levels of the published scheme: number 0 is one pixel, the last the image; tiles put together are it."""
    levels, out = levels_of(tmp_path, 300, 521, 1), tmp_path / "a.dzi"
    formats.write(out, ".dzi", levels, METADATA if jpeg is None else {**METADATA, "jpeg": jpeg})
    described = ElementTree.parse(out).getroot()
    kind, side = described.get("Format"), int(described.get("TileSize", 0))
    assert (described.get("Overlap"), kind) == ("0", "png" if jpeg is None else "jpg")
    assert described[0].attrib == {"Height": "300", "Width": "521"}
    for number, level in enumerate(reversed(levels)):
        picture = level[:].transpose(1, 2, 0)
        folder = tmp_path / "a_files" / str(number)
        rows, columns = -(-picture.shape[0] // side), -(-picture.shape[1] // side)
        assert len(list(folder.iterdir())) == rows * columns
        lines = [
            np.hstack([np.asarray(Image.open(folder / f"{x}_{y}.{kind}")) for x in range(columns)]) for y in range(rows)
        ]
        assert np.abs(np.vstack(lines).astype(int) - picture).max() <= (0 if jpeg is None else 24)
    assert len(levels) == 11
    assert formats.read_metadata(out, ".dzi")["model"] == METADATA["model"]


def test_foreign_files(tmp_path: Path) -> None:
    for suffix in formats.SUFFIXES:
        out = tmp_path / f"a{suffix}"
        out.write_bytes(b"something else")
        with pytest.raises(InputError, match="not painted by Morphogen"):
            formats.read_metadata(out, suffix)
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="not painted by Morphogen"):
        formats.read_metadata(tmp_path / "a.ome.tif", ".ome.tif")
