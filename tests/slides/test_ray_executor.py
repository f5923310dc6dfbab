"""Painting with Ray, started in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from run_helpers import Outcome
from slide_helpers import pixels, save_tiny, untiled

from morphogen.core.request import SamplingRequest
from morphogen.slides import render as render_module
from morphogen.slides.render import render
from morphogen.slides.request import SlideRequest
from morphogen.slides.tile_worker import SteppedTile


def test_ray_may_stand_alone(cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str | None] = []

    def note(request: SlideRequest) -> tuple[Path, bool]:
        seen.append(request.ray)
        return request.out, True

    monkeypatch.setattr(render_module, "render", note)
    options = ("slide", "tissue", "--size", 40, "--out", tmp_path / "a.dzi")
    for given in (["--ray"], ["--ray", "--seed", 1], ["--ray", "10.0.0.1:6379"], ["--ray", "auto"], []):
        assert cli(*options, *given).code == 0
    assert seen == ["local", "local", "10.0.0.1:6379", "auto", None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_and_one_that_is_killed(tmp_path: Path) -> None:
    """Ray puts another in its place, the tile is done again, and the image is the untiled one."""
    pytest.importorskip("ray")
    from morphogen.slides.ray_executor import RayExecutor

    model, killed = save_tiny(tmp_path / "tiny"), []

    class Deadly(RayExecutor):
        def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
            for number, done in enumerate(super().run(i, tiles)):
                if i == 1 and number == 3:
                    killed.append(self._ray.get(self._workers[0].process.remote()))
                    os.kill(killed[0], signal.SIGKILL)
                yield done

    out = tmp_path / "a.ome.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlideRequest, "executor", lambda self, folder: Deadly(folder, "local", 2))
        render(SlideRequest(str(model), (60, 50), out, 4, SamplingRequest("ddpm", 3), 13))
    assert killed
    assert np.array_equal(pixels(out), untiled(model, 4, (60, 50), "ddpm", 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_more_workers_than_processors(tmp_path: Path) -> None:
    """Those that a cluster has no room for get no tiles, so that nothing waits for them."""
    ray = pytest.importorskip("ray")
    from morphogen.slides.ray_executor import RayExecutor

    init, model, out = ray.init, save_tiny(tmp_path / "tiny"), tmp_path / "a.ome.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", lambda **options: init(**{**options, "num_cpus": 1}))
        patch.setattr(SlideRequest, "executor", lambda self, folder: RayExecutor(folder, "local", 3))
        render(SlideRequest(str(model), (30, 30), out, 4, SamplingRequest("ddpm", 2), 16))
    assert np.array_equal(pixels(out), untiled(model, 4, (30, 30), "ddpm", 2))
