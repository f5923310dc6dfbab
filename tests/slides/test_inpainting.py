"""Holes in slides: filled as in memory, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from run_helpers import Outcome, pixels
from slide_helpers import save_tiny

from morphogen.core.images import to_bytes, to_float
from morphogen.models import load_model
from morphogen.slides import formats
from morphogen.slides.canvas import create_array
from morphogen.slides.existing import open_existing
from morphogen.slides.hole import open_hole
from morphogen.slides.pyramid import halved, make_levels
from morphogen.slides.tile import Region
from morphogen.tasks.inpaint import inpaint

SIZE = (1300, 1100)
BOX = (600, 500, 31, 40)  # y, x, height, width


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("inpainting") / "tiny")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.ome.zarr and a.ome.tif of the same picture, and square.geojson and mask.png, which mark a box in them."""
    folder = tmp_path_factory.mktemp("slides")
    array = create_array(folder / "painted.zarr", (3, *SIZE), (3, 512, 512), "uint8")
    array[:] = pixels(*SIZE, 3).transpose(2, 0, 1)
    levels = make_levels(folder, array, 256)
    for suffix in (".ome.zarr", ".ome.tif"):
        formats.write(folder / f"a{suffix}", suffix, levels, {"seed": 1})
    y, x, high, wide = BOX
    ring = [[x, y], [x + wide, y], [x + wide, y + high], [x, y + high], [x, y]]
    geometry = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (folder / "square.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [geometry]}))
    marked = np.zeros(SIZE, np.uint8)
    marked[y : y + high, x : x + wide] = 255
    Image.fromarray(marked).save(folder / "mask.png")
    return folder


def in_memory(tiny: Path) -> np.ndarray:
    """The filled picture (H, W, 3), computed at once, of a part around the hole."""
    y, x, high, wide = BOX
    model = load_model(tiny)
    model.accelerate("auto")
    hole = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    hole[..., y : y + high, x : x + wide] = True
    image = to_float(torch.from_numpy(pixels(*SIZE, 3).transpose(2, 0, 1).copy()))[None]
    return to_bytes(inpaint(model, image, hole, [5], sampler="ddpm", steps=4))[0]


@pytest.mark.parametrize(("suffix", "mask"), [(".ome.zarr", "square.geojson"), (".ome.tif", "mask.png")])
def test_a_hole_is_filled_and_the_rest_stays(
    cli: Callable[..., Outcome], tiny: Path, slides: Path, tmp_path: Path, suffix: str, mask: str
) -> None:
    source, out = slides / f"a{suffix}", tmp_path / f"b{suffix}"
    options = ("slide", tiny, "--inpaint", source, "--mask", slides / mask, "--out", out, "--seed", 5)
    options = (*options, "--sampler", "ddpm", "--sampling-steps", 4, "--tile", 64)
    outcome = cli(*options)
    assert outcome.code == 0, outcome.err
    assert "2 tiles of 64" in outcome.err
    slide, before = open_existing(out), open_existing(source)
    whole = slide.read(Region(0, 0, *SIZE))
    assert np.array_equal(whole.transpose(1, 2, 0), in_memory(tiny))
    assert (whole != before.read(Region(0, 0, *SIZE))).any()
    for level, size in enumerate(slide.sizes[1:], 1):
        whole = halved(whole)
        assert np.array_equal(slide.read(Region(0, 0, *size), level), whole)
    if suffix == ".ome.zarr":
        files = [p.relative_to(source) for p in source.rglob("*") if p.is_file()]
        assert files == [p.relative_to(out) for p in out.rglob("*") if p.is_file()]
        changed = {str(f) for f in files if (source / f).read_bytes() != (out / f).read_bytes()}
        assert changed == {"0/0/1/0", "0/0/1/1", "1/0/0/0", "2/0/0/0", "3/0/0/0"}
    else:
        with tifffile.TiffFile(source) as a, tifffile.TiffFile(out) as b:
            for one, other in zip(a.series[0].levels, b.series[0].levels, strict=True):
                first, second = one.keyframe, other.keyframe
                same = [x == y for x, y in zip(first.dataoffsets, second.dataoffsets, strict=True)]
                assert same.count(False) in (1, 2)
                for offset, count, kept in zip(first.dataoffsets, first.databytecounts, same, strict=True):
                    there = [p.read_bytes()[offset : offset + count] for p in (source, out)]
                    assert not kept or there[0] == there[1]
    assert "was there already" in cli(*options).out


def test_holes(tmp_path: Path) -> None:
    """Rings, several polygons, other scales; the pixels whose centres lie inside, tile by tile as at once."""
    ring = [[2, 3], [12, 3], [12, 9], [2, 9], [2, 3]]
    inner = [[4, 5], [6, 5], [6, 7], [4, 7], [4, 5]]
    far = [[14.6, 15.4], [18, 15.4], [18, 18], [14.6, 18], [14.6, 15.4]]
    shape = {"type": "MultiPolygon", "coordinates": [[ring, inner], [far]]}
    (tmp_path / "a.json").write_text(json.dumps(shape))
    expected = np.zeros((20, 20), bool)
    expected[3:9, 2:12] = True
    expected[5:7, 4:6] = False
    expected[15:18, 15:18] = True
    hole = open_hole(tmp_path / "a.json", (20, 20))
    assert np.array_equal(hole(Region(0, 0, 20, 20)), expected)
    for y in range(0, 20, 7):
        for x in range(0, 20, 3):
            part = Region(y, x, min(7, 20 - y), min(3, 20 - x))
            assert np.array_equal(hole(part), expected[part.rows, part.columns])
    small = np.zeros((7, 7), np.uint8)
    small[2, 3] = 255
    Image.fromarray(small).save(tmp_path / "a.png")
    marked = open_hole(tmp_path / "a.png", (20, 21))(Region(0, 0, 20, 21))
    assert marked[6:9, 9:12].all() and marked.sum() == 9


def test_a_tiff_with_losses_becomes_an_ome_zarr(cli: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    """Every pixel around the hole as the JPEG tiles have it; names with dots, and a mask that is a bare list."""
    source, out = tmp_path / "of.2026.svs", tmp_path / "a.ome.zarr"
    tifffile.imwrite(source, pixels(600, 530, 1), tile=(256, 256), compression="jpeg")
    ring = [[40, 30], [90, 30], [90, 80], [40, 80], [40, 30]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "hole.geojson").write_text(json.dumps([feature]))
    options = ("slide", tiny, "--inpaint", source, "--mask", tmp_path / "hole.geojson", "--out", out)
    outcome = cli(*options, "--sampling-steps", 2, "--pixel-size", 0.5)
    assert outcome.code == 0, outcome.err
    before, after = tifffile.imread(source), open_existing(out)
    found = after.read(Region(0, 0, 600, 530))
    changed = (found.transpose(1, 2, 0) != before).any(axis=2)
    assert changed[30:80, 40:90].mean() > 0.9
    changed[30:80, 40:90] = False
    assert not changed.any()
    for level, size in enumerate(after.sizes[1:], 1):
        found = halved(found)
        assert np.array_equal(after.read(Region(0, 0, *size), level), found)
    assert formats.read_metadata(out, ".ome.zarr")["pixel_size"] == 0.5
    assert "was there already" in cli(*options, "--sampling-steps", 2, "--pixel-size", 0.5).out


def test_names_with_dots(cli: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "patient.7.tif", pixels(64, 64, 1), tile=(64, 64), photometric="rgb")
    marked = np.zeros((64, 64), np.uint8)
    marked[20:30, 20:30] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    given = ("--inpaint", tmp_path / "patient.7.tif", "--mask", tmp_path / "mask.png", "--sampling-steps", 1)
    outcome = cli("slide", tiny, *given, "--out", tmp_path / "filled.tif")
    assert outcome.code == 0, outcome.err
    assert (tifffile.imread(tmp_path / "filled.tif") != pixels(64, 64, 1)).any(axis=2).sum() <= 100


def test_refusals(refused: Callable[..., str], tiny: Path, slides: Path, tmp_path: Path) -> None:
    def wrong(*given: object, says: list[str]) -> None:
        named = {str(g) for g in given}
        rest: list[object] = [] if "--inpaint" in named else ["--inpaint", slides / "a.ome.zarr"]
        rest += [] if "--mask" in named else ["--mask", slides / "mask.png"]
        rest += [] if "--out" in named else ["--out", tmp_path / "b.ome.zarr"]
        refused("slide", tiny, *given, *rest, says=says, keeps=[tmp_path, slides])

    wrong("--size", 50, says=["either --size or"])
    wrong("--inpaint", tmp_path / "no.ome.zarr", says=["does not exist"])
    (tmp_path / "x.ome.zarr").mkdir()
    wrong("--inpaint", tmp_path / "x.ome.zarr", says=["x.ome.zarr", "cannot be read"])
    (tmp_path / "x.tif").write_bytes(b"no")
    wrong("--inpaint", tmp_path / "x.tif", "--out", tmp_path / "y.tif", says=["x.tif", "cannot be read"])
    wrong("--out", tmp_path / "b.ome.tif", says=["should end in .ome.zarr"])
    wrong("--out", slides / "a.ome.zarr", says=["is the slide to inpaint"])
    wrong("--mask", tmp_path / "no.png", says=["no.png does not exist"])
    wrong("--jpeg", 80, says=["--jpeg"])
    (tmp_path / "p.geojson").write_text('{"type": "Point", "coordinates": [1, 2]}')
    wrong("--mask", tmp_path / "p.geojson", says=["p.geojson", "polygons"])
    (tmp_path / "q.geojson").write_text('{"type": "Polygon", "coordinates": [[[1, 2], [3]]]}')
    wrong("--mask", tmp_path / "q.geojson", says=["q.geojson", "4 points"])
    outside = [[[5000, 5000], [5010, 5000], [5010, 5010], [5000, 5000]]]
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": outside}))
    wrong("--mask", tmp_path / "r.geojson", says=["r.geojson", "marks nothing"])
    Image.new("L", (50, 50)).save(tmp_path / "small.png")
    wrong("--mask", tmp_path / "small.png", says=["small.png is 50x50", "1300x1100"])
    Image.new("L", (SIZE[1], SIZE[0]), 255).save(tmp_path / "white.png")
    wrong("--mask", tmp_path / "white.png", says=["whole slide"])
    tifffile.imwrite(tmp_path / "j.tif", pixels(300, 300, 1), tile=(256, 256), compression="jpeg")
    wrong("--inpaint", tmp_path / "j.tif", "--out", tmp_path / "k.tif", says=["j.tif", "JPEG", "loses", ".ome.zarr"])
    for number, text in enumerate(
        ('{"type": "FeatureCollection", "features": null}', '{"type": "GeometryCollection", "geometries": 5}', "[[7]]")
    ):
        (tmp_path / f"odd-{number}.geojson").write_text(text)
        wrong("--mask", tmp_path / f"odd-{number}.geojson", says=[f"odd-{number}.geojson should be GeoJSON"])
    far = [[0, 0], [1e300, 0], [1e300, 1e300], [0, 0]]
    (tmp_path / "far.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [far]}))
    wrong("--mask", tmp_path / "far.geojson", says=["far.geojson", "in pixels"])
    refused(
        *("slide", tiny, "--size", 50, "--mask", slides / "mask.png", "--out", tmp_path / "b.dzi"),
        says=["--mask", "--inpaint"],
    )
