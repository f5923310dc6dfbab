"""Slides from maps: the image that painting the map as a whole gives, whatever the tiles, the workers and kills."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from map_helpers import draw_map, save_map_model
from run_helpers import ForkServer, until
from slide_helpers import pixels

from morphogen import Pipeline
from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.slides.render import render
from morphogen.slides.request import SlideRequest
from morphogen.slides.schedule import work_folder

SIZE = (83, 101)
REQUEST = SamplingRequest("dpm++", 4)


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=["one level", "two levels of 2x2 pixels a cell"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_map_model(tmp_path_factory.mktemp("maps") / "tiny", *request.param)


def in_one_run(model: Path, values: np.ndarray) -> np.ndarray:
    pipeline = Pipeline.from_pretrained(model)
    made = pipeline.paint(values, seeds=[3], sampler="dpm++", num_inference_steps=4).images
    return np.asarray(made[0])  # type: ignore[index]


@pytest.mark.parametrize("tile", [13, 200])
def test_any_tiles_give_the_pixels_of_one_run(model: Path, tmp_path: Path, tile: int) -> None:
    values = draw_map(tmp_path / "map.png", SIZE)
    out = tmp_path / "a.ome.zarr"
    request = SlideRequest(str(model), (0, 0), out, 3, REQUEST, tile, map=tmp_path / "map.png")
    assert render(request) == (out, True)
    np.testing.assert_array_equal(pixels(out), in_one_run(model, values))
    assert render(request) == (out, False)
    draw_map(tmp_path / "map.png", SIZE, 1)
    with pytest.raises(InputError, match="was begun with other settings: --map"):
        render(request)


def test_polygons_of_qupath_are_the_map_that_they_cover(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def feature(name: str | None, kind: str, coordinates: object) -> dict[str, object]:
        of_class = {} if name is None else {"classification": {"name": name}}
        return {"type": "Feature", "properties": of_class, "geometry": {"type": kind, "coordinates": coordinates}}

    square = [[10, 20, 5], [40, 20, 5], [40, 50, 5], [10, 50, 5]]  # not closed, with depth
    hole = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]
    island = [[24, 34], [26, 34], [26, 36], [24, 36], [24, 34]]
    over = [[35, 45], [60, 45], [60, 60], [35, 60], [35, 45]]
    features = [
        feature("nucleus", "MultiPolygon", [[square, hole], [island]]),
        feature("rim", "Polygon", [over]),
        feature("nucleus", "Point", [3, 3]),
        {"type": "Feature", "properties": {}, "geometry": None},
        feature(None, "Polygon", [over]),
    ]
    path = tmp_path / "map.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    values = np.zeros(SIZE, np.uint8)
    values[20:50, 10:40] = 1
    values[30:40, 20:30] = 0
    values[34:36, 24:26] = 1
    values[45:60, 35:60] = 2
    out = tmp_path / "a.ome.zarr"
    render(SlideRequest(str(model), SIZE, out, 3, REQUEST, 29, map=path))
    np.testing.assert_array_equal(pixels(out), in_one_run(model, values))
    said = capsys.readouterr().err
    assert "skipped 1 of no class, 1 of the type Point, 1 without a geometry" in said
    with pytest.raises(InputError, match="is a GeoJSON, which has no size; give --size too"):
        render(SlideRequest(str(model), (0, 0), tmp_path / "b.ome.zarr", 3, REQUEST, map=path))
    path.write_text(path.read_text().replace('"rim"', '"stroma"'))
    with pytest.raises(InputError, match=r"polygons of the class 'stroma'; the model's are background, nucleus, rim"):
        render(SlideRequest(str(model), SIZE, tmp_path / "b.ome.zarr", 3, REQUEST, map=path))


@pytest.mark.slow
def test_two_workers_killed_on_the_way_leave_the_pixels_of_one_run(tmp_path: Path, forks: ForkServer) -> None:
    model = save_map_model(tmp_path / "model", 2, 2)
    values = draw_map(tmp_path / "map.png", (211, 199))
    out = tmp_path / "a.ome.zarr"
    words = ("slide", model, "--map", tmp_path / "map.png", "--out", out, "--seed", 3, "--sampler", "dpm++")
    words = (*words, "--sampling-steps", 4, "--tile", 31, "--workers", 2)
    process = forks.start(*words)
    until(lambda: out.exists() or _done(out) > 0.5)
    process.kill()
    outcome = forks.run(*words)
    assert outcome.code == 0, outcome.err
    np.testing.assert_array_equal(pixels(out), in_one_run(model, values))


def _done(out: Path) -> float:
    """The share of the last level's tiles that lie on the disk after any evaluation, about."""
    return len(list(work_folder(out).glob("canvas-*.zarr/c/0/*/*"))) / 49


def test_what_is_refused(model: Path, tmp_path: Path) -> None:
    draw_map(tmp_path / "map.png", SIZE)
    asked = {"out": tmp_path / "a.ome.zarr", "map": tmp_path / "map.png"}
    with pytest.raises(InputError, match=r"--size 50x50: --map .* is 83x101; leave --size out"):
        render(SlideRequest(str(model), (50, 50), **asked))
    with pytest.raises(InputError, match="tissue-texture was trained without maps; leave it out"):
        render(SlideRequest("tissue-texture", (0, 0), **asked))
