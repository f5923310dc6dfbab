"""Holes in slides: filled as in memory, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from run_helpers import Outcome, pixels
from slide_files import write_bioformats2raw
from slide_helpers import save_tiny

from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes, to_float
from morphogen.core.request import SamplingRequest
from morphogen.models import load_model
from morphogen.pyramids import formats
from morphogen.pyramids.arrays import create_array
from morphogen.pyramids.levels import halve, make_levels
from morphogen.pyramids.opening import open_pyramid
from morphogen.pyramids.pyramid import Pyramid, WritablePyramid
from morphogen.pyramids.region import Region
from morphogen.slides.mask import _factor, open_mask
from morphogen.slides.render import read_note, render
from morphogen.slides.request import SlideRequest
from morphogen.slides.schedule import stored_bytes
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


def planes(slide: Pyramid, region: Region, level: int = 0) -> np.ndarray:
    """A region of a level, (C, height, width)."""
    return slide.read_region(region, level).transpose(2, 0, 1)


def in_memory(tiny: Path) -> np.ndarray:
    """The filled picture (H, W, 3), computed at once, of a part around the hole."""
    y, x, high, wide = BOX
    model = load_model(tiny)
    model.compute_in("auto")
    hole = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    hole[..., y : y + high, x : x + wide] = True
    image = to_float(torch.from_numpy(pixels(*SIZE, 3).transpose(2, 0, 1).copy()))[None]
    return to_bytes(inpaint(model, image, hole, [5], request=SamplingRequest("ddpm", 4)))[0]


@pytest.mark.slow
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
    slide, before = open_pyramid(out), open_pyramid(source)
    whole = planes(slide, Region(0, 0, *SIZE))
    assert np.array_equal(whole.transpose(1, 2, 0), in_memory(tiny))
    assert (whole != planes(before, Region(0, 0, *SIZE))).any()
    for level, size in enumerate(slide.levels[1:], 1):
        whole = halve(whole)
        assert np.array_equal(planes(slide, Region(0, 0, *size), level), whole)
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
    hole = open_mask(tmp_path / "a.json", (20, 20))
    assert np.array_equal(hole(Region(0, 0, 20, 20)), expected)
    for y in range(0, 20, 7):
        for x in range(0, 20, 3):
            part = Region(y, x, min(7, 20 - y), min(3, 20 - x))
            assert np.array_equal(hole(part), expected[part.rows, part.columns])
    small = np.zeros((7, 7), np.uint8)
    small[2, 3] = 255
    Image.fromarray(small).save(tmp_path / "a.png")
    marked = open_mask(tmp_path / "a.png", (20, 21))(Region(0, 0, 20, 21))
    assert marked[6:9, 9:12].all() and marked.sum() == 9


@pytest.mark.parametrize(
    ("slide", "mask", "factor"),
    [
        ((20000, 30000), (79, 118), 256),
        ((20000, 30000), (157, 235), 128),
        ((1000, 1000), (34, 34), 30),
        ((1000, 1), (1000, 1), 1),
        ((20000, 30000), (79, 110), None),
        ((20, 20), (40, 40), None),
    ],
)
def test_whole_fractions(tmp_path: Path, slide: tuple[int, int], mask: tuple[int, int], factor: int | None) -> None:
    Image.new("L", (mask[1], mask[0]), 255).save(tmp_path / "a.png")
    found = _factor(slide, mask)
    assert found == factor
    if factor is None:
        with pytest.raises(InputError, match="it should be as large, or a half"):
            open_mask(tmp_path / "a.png", slide)
    else:
        last = Region(slide[0] - 1, slide[1] - 1, 1, 1)
        assert open_mask(tmp_path / "a.png", slide)(last).all()


@pytest.mark.slow
def test_context_beyond_the_models_range_changes_nothing(tiny: Path, slides: Path, tmp_path: Path) -> None:
    """News travels no farther within an evaluation, and what is known is put back after each; so it is bounded."""
    found = []
    for context in (None, 3, 10_000):
        out = tmp_path / f"{context}.ome.tif"
        sampling = SamplingRequest("ddpm", 3)
        request = SlideRequest(str(tiny), (0, 0), out, 5, sampling, 64, source=slides / "a.ome.tif", context=context)
        render(replace(request, mask=slides / "mask.png"))
        found.append(planes(open_pyramid(out), Region(*BOX)))
        assert (read_note(out)["context"] or 0) <= 3
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    model = load_model(tiny)
    hole = torch.zeros(1, 1, 30, 30, dtype=torch.bool)
    hole[..., 10:20, 10:20] = True
    image = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(1)) * 2 - 1
    near, far = (inpaint(model, image, hole, [5], request=SamplingRequest("ddpm", 4), context=c) for c in (3, 30))
    assert torch.equal(near, far)


def test_a_write_protected_slide(tmp_path: Path, slides: Path) -> None:
    source = tmp_path / "a.ome.zarr"
    shutil.copytree(slides / "a.ome.zarr", source)
    there = [source, *source.rglob("*")]
    for path in there:
        path.chmod(0o555 if path.is_dir() else 0o444)
    slide = open_pyramid(source)
    assert isinstance(slide, WritablePyramid)
    slide.copy(tmp_path / "b.ome.zarr")
    made = [tmp_path / "b.ome.zarr", *(tmp_path / "b.ome.zarr").rglob("*")]
    assert len(made) == len(there)
    assert all(path.stat().st_mode & stat.S_IWUSR for path in made)


def test_what_files_take(tmp_path: Path) -> None:
    """A slide to inpaint may be a file; others write and delete meanwhile."""
    (tmp_path / "a.tif").write_bytes(bytes(1234))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert stored_bytes(tmp_path / "a.tif") == stored_bytes(tmp_path) == 1234
    assert stored_bytes(tmp_path / "nothing") == 0


def test_a_changed_slide_is_noticed(tiny: Path, slides: Path, tmp_path: Path) -> None:
    """Also of OME-Zarr 0.5, by its zarr.json; a file that a file browser leaves in its folder is no change."""
    source, out = tmp_path / "a.zarr", tmp_path / "b.zarr"
    group = zarr.open_group(str(source), mode="w", zarr_format=3)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    group.create_array("0", shape=(30, 30), chunks=(16, 16), dtype="uint8")[:] = 7
    gray = save_tiny(tmp_path / "gray", image_channels=1)
    marked = np.zeros((30, 30), np.uint8)
    marked[3:6, 3:6] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    request = SlideRequest(
        str(gray), (0, 0), out, sampling=SamplingRequest(steps=1), source=source, mask=tmp_path / "mask.png"
    )
    assert render(request)[1]
    (source / ".DS_Store").write_bytes(b"x")
    assert not render(request)[1]
    shutil.copytree(source, tmp_path / "copied" / "a.zarr")
    assert not render(replace(request, source=tmp_path / "copied" / "a.zarr"))[1], "its content is what counts"
    for change in ("a chunk", "the metadata"):
        changed = shutil.copytree(source, tmp_path / change / "a.zarr")
        if change == "a chunk":
            _rewrite(changed / "0" / "c" / "1" / "1")
        else:
            zarr.open_group(str(changed), mode="r+").attrs["changed"] = True
        with pytest.raises(InputError, match="the slide that --inpaint names"):
            render(replace(request, source=changed))


def test_a_tiff_changed_in_place_is_noticed(tiny: Path, slides: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(slides / "a.ome.tif", tmp_path))
    sampling, mask = SamplingRequest("ddim", 1), slides / "square.geojson"
    request = SlideRequest(str(tiny), (0, 0), tmp_path / "b.ome.tif", sampling=sampling, source=source, mask=mask)
    assert render(request)[1]
    assert not render(request)[1]
    _rewrite(source, source.stat().st_size // 2)
    with pytest.raises(InputError, match="the slide that --inpaint names"):
        render(request)


def _rewrite(path: Path, place: int = -1) -> None:
    """Change a byte of a file; its length and its time stay."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
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
    before, after = tifffile.imread(source), open_pyramid(out)
    found = planes(after, Region(0, 0, 600, 530))
    changed = (found.transpose(1, 2, 0) != before).any(axis=2)
    assert changed[30:80, 40:90].mean() > 0.9
    changed[30:80, 40:90] = False
    assert not changed.any()
    for level, size in enumerate(after.levels[1:], 1):
        found = halve(found)
        assert np.array_equal(planes(after, Region(0, 0, *size), level), found)
    assert formats.read_metadata(out, ".ome.zarr")["pixel_size"] == 0.5
    assert "was there already" in cli(*options, "--sampling-steps", 2, "--pixel-size", 0.5).out


def test_the_layout_of_bioformats2raw(cli: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    """The image in its group 0 is filled, all else is copied."""
    source, out = write_bioformats2raw(tmp_path / "a.ome.zarr"), tmp_path / "b.ome.zarr"
    ring = [[40, 30], [90, 30], [90, 80], [40, 80]]
    (tmp_path / "hole.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    options = ("--inpaint", source, "--mask", tmp_path / "hole.geojson", "--out", out, "--sampling-steps", 2)
    outcome = cli("slide", tiny, *options)
    assert outcome.code == 0, outcome.err
    region = Region(0, 0, 150, 233)
    before, after = (open_pyramid(path).read_region(region) for path in (source, out))
    changed = (before != after).any(axis=2)
    assert changed[30:80, 40:90].mean() > 0.9
    changed[30:80, 40:90] = False
    assert not changed.any()
    assert (out / "OME" / ".zattrs").is_file() and (out / "1" / "0" / ".zarray").is_file()
    # A chunk that changes afterwards, its metadata being the same, is another slide.
    (source / "0" / "0" / "0" / "0" / "0" / "0" / "0").write_bytes(b"")
    assert "the slide that --inpaint names" in cli("slide", tiny, *options).err


def test_names_with_dots(cli: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "patient.7.tif", pixels(64, 64, 1), tile=(64, 64), photometric="rgb")
    marked = np.zeros((64, 64), np.uint8)
    marked[20:30, 20:30] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    given = ("--inpaint", tmp_path / "patient.7.tif", "--mask", tmp_path / "mask.png", "--sampling-steps", 1)
    outcome = cli("slide", tiny, *given, "--out", tmp_path / "filled.tif")
    assert outcome.code == 0, outcome.err
    assert (tifffile.imread(tmp_path / "filled.tif") != pixels(64, 64, 1)).any(axis=2).sum() <= 100


@pytest.mark.slow
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
    wrong("--inpaint", tmp_path / "x.ome.zarr", says=["--inpaint", "x.ome.zarr", "is not an OME-Zarr"])
    (tmp_path / "x.tif").write_bytes(b"no")
    wrong("--inpaint", tmp_path / "x.tif", "--out", tmp_path / "y.tif", says=["--inpaint", "x.tif", "is not a TIFF"])
    wrong("--out", tmp_path / "b.ome.tif", says=["should end in .ome.zarr"])
    wrong("--out", slides / "a.ome.zarr", says=["is the slide to inpaint"])
    wrong("--mask", tmp_path / "no.png", says=["no.png cannot be read: No such file"])
    wrong("--mask", tmp_path, says=[f"--mask {tmp_path} cannot be read: Is a directory"])
    wrong("--out", tmp_path / ("n" * 220 + ".ome.zarr"), says=["its name is too long", "220 bytes"])
    wrong("--jpeg", 80, says=["--jpeg"])
    (tmp_path / "p.geojson").write_text('{"type": "Point", "coordinates": [1, 2]}')
    wrong("--mask", tmp_path / "p.geojson", says=["p.geojson", "polygons"])
    (tmp_path / "q.geojson").write_text('{"type": "Polygon", "coordinates": [[[1, 2], [3]]]}')
    wrong("--mask", tmp_path / "q.geojson", says=["q.geojson", "lists of points"])
    outside = [[[5000, 5000], [5010, 5000], [5010, 5010], [5000, 5000]]]
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": outside}))
    wrong("--mask", tmp_path / "r.geojson", says=["r.geojson", "marks nothing"])
    Image.new("L", (50, 50)).save(tmp_path / "small.png")
    wrong("--mask", tmp_path / "small.png", says=["small.png is 50x50", "1300x1100"])
    Image.new("L", (SIZE[1], SIZE[0]), 255).save(tmp_path / "white.png")
    wrong("--mask", tmp_path / "white.png", says=["whole slide"])
    tifffile.imwrite(tmp_path / "j.tif", pixels(300, 300, 1), tile=(256, 256), compression="jpeg")
    wrong("--inpaint", tmp_path / "j.tif", "--out", tmp_path / "k.tif", says=["j.tif", "JPEG", "lose", ".ome.zarr"])
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
