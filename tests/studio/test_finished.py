"""Finished slides are read as their writers wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_helpers import pixels
from slide_files import level, write_dzi, write_tiff, write_zarr

from morphogen.core.errors import InputError
from morphogen.studio.finished import FinishedSlide, open_finished
from morphogen.studio.queue import TileQueue
from morphogen.studio.views import FinishedView, Tile

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FinishedSlide]:
    folder = tmp_path_factory.mktemp("slides")
    paths = {
        "zarr 0.5": write_zarr(folder / "a.ome.zarr", 3),
        "zarr 0.4": write_zarr(folder / "b.ome.zarr", 2),
        "zarr of five axes": write_zarr(folder / "c.ome.zarr", 3, "tczyx"),
        "zarr, colours last": write_zarr(folder / "d.ome.zarr", 3, "yxc"),
        "tiff": write_tiff(folder / "a.ome.tif"),
        "dzi": write_dzi(folder / "a.dzi"),
        "dzi without overlap": write_dzi(folder / "b.dzi", 0, 64),
    }
    return {name: open_finished(path) for name, path in paths.items()}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_region_is_what_was_written(slides: dict[str, FinishedSlide], data: st.DataObject) -> None:
    slide = slides[data.draw(st.sampled_from(sorted(slides)))]
    n = data.draw(st.integers(0, len(slide.levels) - 1))
    expected = level(n)
    assert slide.levels[n] == expected.shape[:2]
    y, x = (data.draw(st.integers(0, side - 1)) for side in expected.shape[:2])
    height, width = (data.draw(st.integers(1, side - at)) for side, at in zip(expected.shape, (y, x), strict=False))
    assert np.array_equal(slide.read(n, y, x, height, width), expected[y : y + height, x : x + width])


def test_gray_slides(tmp_path: Path) -> None:
    gray = pixels(70, 90, 1)[..., 0]
    tifffile.imwrite(tmp_path / "g.tif", gray, tile=(16, 16))
    assert np.array_equal(open_finished(tmp_path / "g.tif").read(0, 5, 6, 40, 50)[..., 0], gray[5:45, 6:56])


def test_what_is_no_slide_is_named(tmp_path: Path) -> None:
    def refused(path: Path, says: str) -> None:
        with pytest.raises(InputError, match=says) as raised:
            open_finished(path)
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
    slide = open_finished(write_dzi(tmp_path / "a.dzi", 0, 64))
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
    slide = open_finished(path)
    for chunk in (path / "0").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"a\.ome\.zarr cannot be read at row 0, column 0"):
        slide.read(0, 0, 0, 5, 5)


def test_a_damaged_tile_is_named(tmp_path: Path) -> None:
    path = write_dzi(tmp_path / "a.dzi")
    slide = open_finished(path)
    tile = tmp_path / "a_files" / "8" / "1_1.png"
    Image.new("RGB", (3, 3)).save(tile)
    with pytest.raises(InputError, match="3x3 pixels, which is not what its slide says"):
        slide.read(0, 70, 70, 5, 5)
    tile.write_bytes(tile.read_bytes()[:40])
    with pytest.raises(InputError, match=r"1_1\.png"):
        slide.read(0, 70, 70, 5, 5)
    shutil.rmtree(tmp_path / "a_files")
    with pytest.raises(InputError, match="cannot be read"):
        slide.read(0, 0, 0, 5, 5)
