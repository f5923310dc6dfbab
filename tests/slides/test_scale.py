"""The physical scale stays with the model: slides say it, and a slide of another one is never painted into unseen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_helpers import Outcome
from run_helpers import pixels as picture
from slide_helpers import save_tiny

from morphogen.pyramids import Region, formats, open_pyramid
from morphogen.pyramids.arrays import create_array
from morphogen.pyramids.levels import make_levels, shrink
from morphogen.slides.rescaling import rescale_mask, rescale_slide, rescaled_size

SIZE = (300, 280)


def at_scale(folder: Path, mpp: float | None) -> Path:
    save_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    config["image"] = {**config["image"], **({} if mpp is None else {"mpp": mpp})}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_slide(folder: Path, mpp: float | None) -> Path:
    array = create_array(folder / "raw.zarr", (3, *SIZE), (3, 128, 128), "uint8")
    array[:] = picture(*SIZE, 3).transpose(2, 0, 1)
    metadata = {} if mpp is None else {"pixel_size": mpp}
    formats.write(folder / "a.ome.zarr", ".ome.zarr", make_levels(folder, array, 128), metadata)
    return folder / "a.ome.zarr"


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif", ".dzi"])
def test_a_slide_says_the_models_scale(cli: Callable[..., Outcome], tmp_path: Path, suffix: str) -> None:
    model, out = at_scale(tmp_path / "model", 0.5), tmp_path / f"a{suffix}"
    outcome = cli("slide", model, "--size", "40x30", "--sampling-steps", 1, "--out", out)
    assert outcome.code == 0, outcome.err
    assert open_pyramid(out).mpp == pytest.approx((0.5, 0.5))
    outcome = cli("slide", model, "--size", 40, "--pixel-size", 0.25, "--out", tmp_path / f"b{suffix}")
    assert outcome.code == 2 and "this model paints at 0.5 micrometres a pixel" in outcome.err


def test_a_slide_of_another_scale(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    """Refused, or brought to the model's scale; everything around the hole is then the resampled slide."""
    model, source = at_scale(tmp_path / "model", 0.5), write_slide(tmp_path, 0.25)
    ring = [[100, 120], [140, 120], [140, 160], [100, 160]]
    (tmp_path / "hole.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    options = ("slide", model, "--inpaint", source, "--mask", tmp_path / "hole.geojson", "--sampling-steps", 2)
    outcome = cli(*options, "--out", tmp_path / "b.ome.zarr")
    assert outcome.code == 2 and "0.25 micrometres a pixel, but this model paints at 0.5; --rescale" in outcome.err
    outcome = cli(*options, "--rescale", "--out", tmp_path / "b.ome.zarr")
    assert outcome.code == 0, outcome.err
    found = open_pyramid(tmp_path / "b.ome.zarr")
    assert found.levels[0] == (150, 140) and found.mpp == (0.5, 0.5)
    pixels = found.read_region(Region(0, 0, 150, 140)).astype(int)
    expected = shrink(picture(*SIZE, 3).transpose(2, 0, 1), (2, 2)).transpose(1, 2, 0)
    changed = np.abs(pixels - expected).max(axis=2) > 1  # two ways to round a mean
    assert changed[60:80, 50:70].mean() > 0.9
    changed[60:80, 50:70] = False
    assert not changed.any()
    assert "was there already" in cli(*options, "--rescale", "--out", tmp_path / "b.ome.zarr").out
    for wrong in (("--out", tmp_path / "c.ome.tif"), ("--out", tmp_path / "c.ome.zarr", "--pixel-size", 0.5)):
        assert "--rescale makes a new OME-Zarr" in cli(*options, "--rescale", *wrong).err


@pytest.mark.parametrize(("own", "slides"), [(0.5, 0.51), (0.5, None), (None, 0.25)])
def test_the_same_or_an_unknown_scale_is_filled(
    cli: Callable[..., Outcome], tmp_path: Path, own: float | None, slides: float | None
) -> None:
    model, source = at_scale(tmp_path / "model", own), write_slide(tmp_path, slides)
    (tmp_path / "hole.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [[[9, 9], [29, 9], [9, 29]]]}))
    options = ("slide", model, "--inpaint", source, "--mask", tmp_path / "hole.geojson", "--sampling-steps", 1)
    outcome = cli(*options, "--out", tmp_path / "b.ome.zarr")
    assert outcome.code == 0, outcome.err
    if own is None or slides is None:
        assert "--rescale needs" in cli(*options, "--rescale", "--out", tmp_path / "c.ome.zarr").err


@pytest.mark.parametrize("mpp", [0.25, 0.37, 0.6, 0.2])
def test_resampling_does_not_depend_on_blocks(tmp_path: Path, mpp: float) -> None:
    """Of a smooth picture, the resampled one has its values at the pixels' centres, larger or smaller."""
    y, x = np.mgrid[:900, :1100]
    array = create_array(tmp_path / "raw.zarr", (1, 900, 1100), (1, 256, 256), "uint8")
    array[0] = (y / 900 * 200 + x / 1100 * 50).astype(np.uint8)
    formats.write(tmp_path / "a.ome.zarr", ".ome.zarr", make_levels(tmp_path, array, 256), {"pixel_size": 0.25})
    source = open_pyramid(tmp_path / "a.ome.zarr")
    size = rescaled_size(source, mpp)
    assert size == (round(900 * 0.25 / mpp), round(1100 * 0.25 / mpp))
    found = rescale_slide(source, size, mpp, tmp_path).read_region(Region(0, 0, *size))[..., 0]
    y, x = ((np.arange(n) + 0.5) / n for n in size)
    expected = y[:, None] * 200 + x[None, :] * 50
    assert np.abs(found - expected).max() <= 2


def test_a_mask_of_another_size() -> None:
    marked = np.zeros((60, 90), bool)
    marked[10:31, 20:71] = True
    mask = rescale_mask(lambda region: marked[region.rows, region.columns], (60, 90), (20, 45))
    expected = marked[1::3, 1::2]
    assert np.array_equal(mask(Region(0, 0, 20, 45)), expected)
    assert np.array_equal(mask(Region(5, 7, 9, 20)), expected[5:14, 7:27])
