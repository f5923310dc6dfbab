"""Pyramids are read as their writers wrote them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_helpers import pixels
from slide_files import SIZE, level, write_bioformats2raw, write_dicom, write_dzi, write_tiff, write_zarr

from morphogen.core.errors import InputError
from morphogen.pyramids import Pyramid, Region, formats, is_pyramid, open_pyramid
from morphogen.pyramids.arrays import create_array
from morphogen.pyramids.openslide import OpenSlide
from morphogen.pyramids.tiff import Tiff
from morphogen.studio.queue import TileQueue
from morphogen.studio.views import FinishedView, Tile

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pyramid]:
    folder = tmp_path_factory.mktemp("slides")
    paths = {
        "zarr 0.5": write_zarr(folder / "a.ome.zarr", 3),
        "zarr 0.4": write_zarr(folder / "b.ome.zarr", 2),
        "zarr 0.4, dots": write_zarr(folder / "e.ome.zarr", 2, separator="."),
        "zarr 0.5, dots": write_zarr(folder / "f.ome.zarr", 3, separator="."),
        "zarr 0.3": write_zarr(folder / "g.ome.zarr", 2, said="0.3"),
        "zarr 0.1": write_zarr(folder / "h.ome.zarr", 2, "tczyx", said="0.1", separator="."),
        "bioformats2raw": write_bioformats2raw(folder / "i.ome.zarr"),
        "zarr of five axes": write_zarr(folder / "c.ome.zarr", 3, "tczyx"),
        "zarr, colours last": write_zarr(folder / "d.ome.zarr", 3, "yxc"),
        "tiff": write_tiff(folder / "a.ome.tif"),
        "dzi": write_dzi(folder / "a.dzi"),
        "dzi without overlap": write_dzi(folder / "b.dzi", 0, 64),
    }
    return {name: open_pyramid(path) for name, path in paths.items()}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_region_is_what_was_written(slides: dict[str, Pyramid], data: st.DataObject) -> None:
    slide = slides[data.draw(st.sampled_from(sorted(slides)))]
    n = data.draw(st.integers(0, len(slide.levels) - 1))
    expected = level(n)
    assert slide.levels[n] == expected.shape[:2]
    y, x = (data.draw(st.integers(0, side - 1)) for side in expected.shape[:2])
    height, width = (data.draw(st.integers(1, side - at)) for side, at in zip(expected.shape, (y, x), strict=False))
    assert np.array_equal(slide.read_region(Region(y, x, height, width), n), expected[y : y + height, x : x + width])


def test_gray_slides(tmp_path: Path) -> None:
    gray = pixels(70, 90, 1)[..., 0]
    tifffile.imwrite(tmp_path / "g.tif", gray, tile=(16, 16))
    assert np.array_equal(open_pyramid(tmp_path / "g.tif").read_region(Region(5, 6, 40, 50))[..., 0], gray[5:45, 6:56])


@pytest.mark.parametrize(
    ("unit", "scale", "expected"),
    [("micrometer", 0.25, 0.25), ("nanometer", 250.0, 0.25), ("millimeter", 0.00025, 0.25), (None, 0.25, None)],
)
@pytest.mark.parametrize("version", [2, 3])
def test_scale_of_an_ome_zarr(tmp_path: Path, version: int, unit: str | None, scale: float, expected: float) -> None:
    slide = open_pyramid(write_zarr(tmp_path / "a.ome.zarr", version, unit=unit, scale=scale))
    if expected is None:
        assert slide.mpp is None and slide.level_mpp(1) is None
    else:
        assert slide.mpp == pytest.approx((expected, expected))
        assert slide.level_mpp(1) == pytest.approx((expected * 2, expected * 233 / 117))


def test_scale_of_a_tiff(tmp_path: Path) -> None:
    """By OME-XML, by the resolution in centimetres, by Aperio's description; inches are a default nobody measured."""

    def mpp(name: str, **options: Any) -> tuple[float, float] | None:
        tifffile.imwrite(tmp_path / name, pixels(64, 64, 1), tile=(16, 16), photometric="rgb", **options)
        return open_pyramid(tmp_path / name).mpp

    size = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
    assert mpp("a.ome.tif", metadata={"axes": "YXS", **size}) == pytest.approx((0.5, 0.25))
    assert mpp("b.ome.tif", metadata={"axes": "YXS"}) is None
    assert mpp("c.tif", resolution=(20000, 40000), resolutionunit="CENTIMETER") == pytest.approx((0.25, 0.5))
    assert mpp("d.tif", resolution=(72, 72), resolutionunit="INCH") is None
    assert mpp("e.svs", description="Aperio Image Library v1|AppMag = 20|MPP = 0.4990|Left = 1") == (0.499, 0.499)


def test_a_real_scanners_slide() -> None:
    """Aperio's file by tifffile, and by OpenSlide: the same levels, scale and, up to the JPEG decoder, pixels."""
    path = Path(__file__).parents[2].resolve().parent / "shared/data/slides/cmu-1-small-region.svs"
    if not path.is_file():
        pytest.skip("the shared slides are not here")
    one, other = Tiff(path), OpenSlide(path)
    assert one.levels == other.levels == [(2967, 2220)]
    assert one.mpp == pytest.approx(other.mpp) and one.mpp == (0.499, 0.499)
    region = Region(700, 900, 300, 400)
    difference = one.read_region(region).astype(int) - other.read_region(region)
    assert np.abs(difference).max() <= 3 and one.read_region(region).std() > 5


def test_dicom(tmp_path: Path) -> None:
    """By any file of a series, or by its folder."""
    pytest.importorskip("openslide")
    pytest.importorskip("pydicom")
    path = write_dicom(tmp_path / "a.dcm")
    for named in (path, tmp_path):
        assert is_pyramid(named)
        slide = open_pyramid(named)
        assert slide.levels == [SIZE] and slide.mpp == pytest.approx((0.5, 0.25)) and slide.channels == 3
        found = slide.read_region(Region(3, 50, 120, 100))
        assert np.abs(found.astype(int) - level(0)[3:123, 50:150]).mean() < 2  # JPEG


def test_a_plate_and_an_empty_layout_are_named(tmp_path: Path) -> None:
    for name, ome, says in (
        ("a", {"plate": {"wells": [{"path": "B/3"}]}}, "is a plate; name one of its images, such as .*B/3/0"),
        ("b", {"bioformats2raw.layout": 3}, "no image in its folder 0"),
        ("c", {"version": "0.9", "multiscales": []}, "OME-Zarr 0.9; versions 0.1 to 0.5"),
    ):
        zarr.open_group(tmp_path / name, mode="w").attrs["ome"] = {"version": "0.5", **ome}
        with pytest.raises(InputError, match=says):
            open_pyramid(tmp_path / name)


def test_what_is_no_slide_is_named(tmp_path: Path) -> None:
    def refused(path: Path, says: str) -> None:
        with pytest.raises(InputError, match=says) as raised:
            open_pyramid(path)
        assert path.name in str(raised.value) and "\n" not in str(raised.value)

    refused(tmp_path / "none.dzi", "does not exist")
    (tmp_path / "bad.tif").write_bytes(b"II*\0garbage")
    refused(tmp_path / "bad.tif", "not a TIFF that can be read")
    (tmp_path / "bad.ome.zarr").mkdir()
    refused(tmp_path / "bad.ome.zarr", "not an OME-Zarr image")
    store = write_zarr(tmp_path / "out.ome.zarr", 2)
    attributes = json.loads((store / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["path"] = "../../elsewhere"
    (store / ".zattrs").write_text(json.dumps(attributes))
    refused(store, "its levels have no names")
    tifffile.imwrite(tmp_path / "wide.tif", np.zeros((70, 90), np.uint16), tile=(16, 16))
    refused(tmp_path / "wide.tif", "uint16")
    for name, text, says in (
        ("words", "not xml", "not a DeepZoom file"),
        ("bomb", '<!DOCTYPE x [<!ENTITY a "b">]><Image>&a;</Image>', "not a DeepZoom file"),
        ("empty", "<Image/>", "lacks a tile size"),
        (
            "path",
            '<Image TileSize="64" Overlap="0" Format="../x"><Size Width="9" Height="9"/></Image>',
            "no known format",
        ),
        (
            "huge",
            '<Image TileSize="0" Overlap="0" Format="png"><Size Width="9" Height="9"/></Image>',
            "lacks a tile size",
        ),
        ("alone", '<Image TileSize="64" Overlap="0" Format="png"><Size Width="9" Height="9"/></Image>', "alone_files"),
    ):
        (tmp_path / f"{name}.dzi").write_text(text)
        refused(tmp_path / f"{name}.dzi", says)


def test_a_damaged_tile_fails_alone(tmp_path: Path) -> None:
    slide = open_pyramid(write_dzi(tmp_path / "a.dzi", 0, 64))
    (tmp_path / "a_files" / "8" / "1_1.png").unlink()
    view = FinishedView(slide, "a", tile=64)
    queue = TileQueue(view)
    try:
        tiles = [Tile(0, column, row) for row in range(3) for column in range(4)]
        found = {(tile.column, tile.row): queue.submit(tile) for tile in tiles}  # more than are served one by one
        errors = {place: result.exception(timeout=60) for place, result in found.items()}
    finally:
        queue.close()
    assert isinstance(errors.pop((1, 1)), InputError) and set(errors.values()) == {None}


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.ome.zarr", 3)
    slide = open_pyramid(path)
    for chunk in (path / "0").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"a\.ome\.zarr cannot be read at row 0, column 0"):
        slide.read_region(Region(0, 0, 5, 5))


def test_a_damaged_tile_is_named(tmp_path: Path) -> None:
    path = write_dzi(tmp_path / "a.dzi")
    slide = open_pyramid(path)
    tile = tmp_path / "a_files" / "8" / "1_1.png"
    Image.new("RGB", (3, 3)).save(tile)
    with pytest.raises(InputError, match="3x3 pixels, which is not what its slide says"):
        slide.read_region(Region(70, 70, 5, 5))
    tile.write_bytes(tile.read_bytes()[:40])
    with pytest.raises(InputError, match=r"1_1\.png"):
        slide.read_region(Region(70, 70, 5, 5))
    shutil.rmtree(tmp_path / "a_files")
    with pytest.raises(InputError, match="cannot be read"):
        slide.read_region(Region(0, 0, 5, 5))


def test_a_finished_slide_is_shown_with_its_transparency(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 40, 30), dtype=np.uint8)
    array = create_array(tmp_path / "raw.zarr", (4, 40, 30), (4, 40, 30), "uint8")
    array[:] = picture
    formats.write(tmp_path / "a.ome.zarr", ".ome.zarr", [array], {})
    (shown,) = FinishedView(open_pyramid(tmp_path / "a.ome.zarr"), "a").pictures([Tile(0, 0, 0)], lambda: False)
    with Image.open(io.BytesIO(shown)) as image:
        assert image.mode == "RGBA" and np.array_equal(np.asarray(image), picture.transpose(1, 2, 0))
