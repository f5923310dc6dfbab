"""Painting with models that are not exact in tiles, when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_helpers import Outcome
from slide_helpers import pixels, save_tiny

from morphogen.automata.nca import NCADenoiser
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.sampling import Stepper
from morphogen.models import load_model
from morphogen.pyramids import formats
from morphogen.pyramids.region import Region, TileGrid
from morphogen.slides.computation import prepare
from morphogen.slides.overlap_blend import BlendedCanvas, FrozenStatistics

MODELS = {
    "group": ("diff-nca", {"norm": "group"}),
    "fourier": ("fourier-diff-nca", {"norm": "group", "channels": 8, "hidden": 16, "nca_steps": 2}),
    "cells of 3x3": ("diff-nca", {"norm": "group", "patch": 3, "channels": 56}),
    "unet": ("unet-50k", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_no_seams_and_the_same_again(cli: Callable[..., Outcome], tmp_path: Path, name: str) -> None:
    """It says that it is approximate, does not depend on the workers' order, and tiles' edges are like any other place:
    neighbours across them differ no more than elsewhere.
    """
    family, settings = MODELS[name]
    model = save_tiny(tmp_path / "model", family, **settings)
    out = tmp_path / "a.ome.zarr"
    options = ("slide", model, "--size", "96x80", "--sampling-steps", 3, "--seed", 2)
    assert cli(*options, "--out", out).code == 2
    outcome = cli(*options, "--approximate", "--out", out)
    assert outcome.code == 0, outcome.err
    found = pixels(out).astype(float)
    assert found.std() > 5
    across = np.abs(np.diff(found, axis=1)).mean(axis=(0, 2))
    tile = load_model(model).image.width // 2
    at_edges = across[tile - 1 :: tile]
    assert at_edges.mean() < 1.5 * across.mean()
    assert "approximate" in formats.read_metadata(out, ".ome.zarr")["exact"]
    assert cli(*options, "--approximate", "--out", tmp_path / "b.ome.zarr").code == 0
    assert np.array_equal(pixels(tmp_path / "b.ome.zarr"), found)


@pytest.mark.parametrize("cell", [1, 3])
def test_blending(tmp_path: Path, cell: int) -> None:
    """BlendedCanvas that agree are read as they are, wherever the region lies, and begin with whole cells."""
    picture = torch.rand(1, 3, 50 + 2, 41 + 2, generator=torch.Generator().manual_seed(0))
    windows = BlendedCanvas(tmp_path, TileGrid((50, 41), (8, 8)), 3, 3, cell)
    windows.create(3)
    for index in range(len(windows.grid)):
        window = windows.window(index)
        windows.write_window(0, index, picture[..., window.rows, window.columns])
    for index in range(len(windows.grid)):
        region = windows.window(index)
        assert region.y % cell == region.x % cell == 0
        # float32 sums of up to nine windows
        torch.testing.assert_close(windows.read(0, region), picture[..., region.rows, region.columns])


@pytest.mark.parametrize("size", [(82, 64), (65, 95), (79, 81), (64, 67)])
def test_tiles_blend_all_windows(tmp_path: Path, size: tuple[int, int]) -> None:
    """Windows that disagree give tile by tile what they give at once, whatever the last tiles' sizes."""
    windows = BlendedCanvas(tmp_path, TileGrid(size, (16, 16)), 1, 1)
    windows.create(3)
    for index in range(len(windows.grid)):
        windows.write_window(0, index, torch.full((1, 1, 32, 32), float(index)))
    whole = windows.read(0, Region(0, 0, *size))
    for index in range(len(windows.grid)):
        region = windows.grid.region(index)
        assert torch.equal(windows.read(0, region), whole[..., region.rows, region.columns])


def test_what_it_is_computed_in(tmp_path: Path) -> None:
    """Frozen statistics are not the kernel's: the metadata must not say that it painted."""
    model = load_model(save_tiny(tmp_path / "model", norm="group"))
    assert isinstance(model, NCADenoiser)
    found = prepare(model, "cpu", "bfloat16", approximate=True)
    assert str(found) == "float32 by PyTorch on cpu" and not found.any_shape
    FrozenStatistics(tmp_path, Stepper(model, SamplingRequest("ddim", 2)), 0)
    assert model.fast() is None


def test_refusals(refused: Callable[..., str], tmp_path: Path) -> None:
    exact, group = save_tiny(tmp_path / "exact"), save_tiny(tmp_path / "group", norm="group")
    out = ("--out", tmp_path / "a.dzi", "--approximate")
    refused("slide", exact, "--size", 64, *out, says=["--approximate is not needed"], keeps=[tmp_path])
    refused("slide", group, "--size", "64x31", *out, says=["64x31", "32x32", "morphogen sample"], keeps=[tmp_path])
    refused("slide", group, "--size", 64, "--tile", 8, *out, says=["--tile 8", "16"], keeps=[tmp_path])
