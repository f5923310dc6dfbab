"""Slides of pyramid models: the image that one run of the whole gives, whatever the tiles, the workers and kills."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ladder_helpers import save_ladder
from run_helpers import ForkServer, until
from slide_helpers import pixels

from morphogen.core.errors import InputError
from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.models import load_model
from morphogen.slides.render import render
from morphogen.slides.request import SlideRequest
from morphogen.slides.schedule import work_folder

SIZE = (83, 101)


@pytest.fixture(scope="session", params=[1, 2], ids=["cells of a pixel", "cells of 2x2"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ladder(tmp_path_factory.mktemp("pyramid") / "tiny", patch=request.param)


def in_one_run(tiny: Path, size: tuple[int, int] = SIZE, sampler: str = "dpm++") -> np.ndarray:
    """The image of seed 3, uint8 (height, width, 3)."""
    model = load_model(tiny)
    model.compute_in("auto")
    with torch.no_grad():
        found = to_bytes(model.generate(Key.of([3]), size, SamplingRequest(sampler, 4)))[0]
    assert found.std() > 5
    return found


@pytest.mark.parametrize(("tile", "sampler"), [(13, "dpm++"), (31, "ddpm"), (200, "dpm++")])
def test_any_tiles_give_the_pixels_of_one_run(tiny: Path, tmp_path: Path, tile: int, sampler: str) -> None:
    out = tmp_path / "a.ome.zarr"
    request = SlideRequest(str(tiny), SIZE, out, 3, SamplingRequest(sampler, 4), tile)
    assert render(request) == (out, True)
    np.testing.assert_array_equal(pixels(out), in_one_run(tiny, sampler=sampler))
    assert render(request) == (out, False)
    assert not work_folder(out).exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(10, 97), (64, 11), (29, 31)])
def test_odd_sizes(tiny: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    out = tmp_path / "a.ome.zarr"
    if min(size) < load_model(tiny).minimum_picture:
        with pytest.raises(InputError, match="is too small: pyramid needs at least 19 on each side"):
            render(SlideRequest(str(tiny), size, out, 3, SamplingRequest("dpm++", 4), 7))
        return
    render(SlideRequest(str(tiny), size, out, 3, SamplingRequest("dpm++", 4), 7))
    np.testing.assert_array_equal(pixels(out), in_one_run(tiny, size))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_each_level_it_goes_on(forks: ForkServer, tiny: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "a.ome.zarr"
    words = ("slide", tiny, "--size", "83x101", "--seed", 3, "--sampler", "dpm++", "--sampling-steps", 4)
    words = (*words, "--tile", 13, "--workers", workers, "--out", out)
    work = work_folder(out)
    for begun, what in (("level-0", signal.SIGKILL), ("level-1", signal.SIGTERM), (".", signal.SIGKILL)):
        process = forks.start(*words)
        until(lambda begun=begun: (work / begun / "progress").exists() or out.exists())
        process.send(what)
        assert process.wait() in (-signal.SIGKILL, 3, 0)
    outcome = forks.run(*words)
    assert outcome.code == 0, outcome.err
    np.testing.assert_array_equal(pixels(out), in_one_run(tiny))
    assert [p.name for p in tmp_path.iterdir() if "preview" not in p.name] == [out.name]


def test_a_damaged_coarser_level_is_painted_again(forks: ForkServer, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.ome.zarr"
    words = ("slide", tiny, "--size", "83x101", "--seed", 3, "--sampler", "dpm++", "--sampling-steps", 4)
    words = (*words, "--tile", 13, "--out", out)
    process = forks.start(*words)
    until(lambda: (work_folder(out) / "progress").exists() or out.exists())
    process.kill()
    chunks = [p for p in (work_folder(out) / "level-1" / "painted.zarr" / "c").rglob("*") if p.is_file()]
    if chunks and not out.exists():
        chunks[0].write_bytes(b"\0" * chunks[0].stat().st_size)
    outcome = forks.run(*words)
    assert outcome.code == 0, outcome.err
    assert ("damaged" in outcome.err) == bool(chunks)
    np.testing.assert_array_equal(pixels(out), in_one_run(tiny))


def test_what_pyramids_cannot_do_is_said(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pyramid predicts no noise, which --approximate needs"):
        render(SlideRequest(str(tiny), SIZE, tmp_path / "a.ome.zarr", approximate=True))
