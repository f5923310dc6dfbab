"""Slides in latents that Morphogen has learnt: the image that one run of the whole gives, whatever the tiles."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_helpers import save_latent_model
from run_helpers import ForkServer, until
from slide_helpers import pixels

from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.models import load_model
from morphogen.slides.canvas import BUFFERS
from morphogen.slides.render import render
from morphogen.slides.request import SlideRequest
from morphogen.slides.schedule import work_folder
from morphogen.slides.tile_worker import open_worker

SIZE = (140, 150)  # pixels; in cells 70x75, which is more than a block of what is decoded at once


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_latent_model(tmp_path_factory.mktemp("latents") / "tiny")


@pytest.fixture(scope="session")
def whole(tiny: Path) -> np.ndarray:
    """The image of seed 3, uint8 (height, width, 3), in one run."""
    model = load_model(tiny)
    model.compute_in("auto")
    with torch.no_grad():
        images = model.generate(Key.of([3]), SIZE, SamplingRequest("dpm++", 4))
    found = to_bytes(images)[0]
    assert found.std() > 5
    return found


def request(tiny: Path, out: Path, tile: int) -> SlideRequest:
    return SlideRequest(str(tiny), SIZE, out, 3, SamplingRequest("dpm++", 4), tile)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [13, 31, 70, 512])
def test_any_tiles_give_the_pixels_of_one_run(tiny: Path, whole: np.ndarray, tmp_path: Path, tile: int) -> None:
    out = tmp_path / "a.ome.zarr"
    assert render(request(tiny, out, tile)) == (out, True)
    np.testing.assert_array_equal(pixels(out), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("last", "workers"), [(False, 1), (True, 2)])
def test_workers_and_a_kill_change_no_pixel(
    tiny: Path, whole: np.ndarray, tmp_path: Path, forks: ForkServer, last: bool, workers: int
) -> None:
    """Killed among the evaluations, and where latents are decoded."""
    out = tmp_path / "a.ome.zarr"
    words = ("slide", tiny, "--size", "140x150", "--seed", 3, "--sampler", "dpm++", "--sampling-steps", 4, "--out", out)
    words = (*words, "--tile", 13)
    process = forks.start(*words)
    work = work_folder(out)
    until(lambda: list((work / ("painted.zarr" if last else BUFFERS[1])).glob("c/0/2/*")))
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = forks.run(*words, "--workers", workers)
    assert done.code == 0, done.err
    np.testing.assert_array_equal(pixels(out), whole)


def test_a_lost_tile_is_computed_again(tiny: Path, whole: np.ndarray, tmp_path: Path) -> None:
    """Of latents and of pixels, each from the noise on."""
    out, kept = tmp_path / "a.ome.zarr", tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:  # the folder of the work, before it is deleted
        patch.setattr("morphogen.slides.render._put_in_place", lambda *_: shutil.copytree(work_folder(out), kept))
        render(request(tiny, out, 31))
    worker = open_worker(kept)
    region = worker.grid.region(4)
    before = worker.canvas.painted[:, region.scaled(2).rows, region.scaled(2).columns].copy()
    np.testing.assert_array_equal(before.transpose(1, 2, 0), whole[62:124, 62:124])
    worker.canvas.forget(4, 4, last=True)
    assert worker.replay(4, 4) == worker.canvas.checksum_left(4, 4, last=True)
    np.testing.assert_array_equal(worker.canvas.painted[:, region.scaled(2).rows, region.scaled(2).columns], before)


def test_what_cannot_be(tiny: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "a.ome.zarr"
    refused("slide", tiny, "--size", "141x150", "--out", out, says=["141x150 is not divisible by 2"])
    refused("slide", tiny, "--size", "140x150", "--approximate", "--out", out, says=["latents"])
    refused("slide", tiny, "--size", "2x2", "--out", out, says=["too small"])
    assert not out.exists()
