"""GeoJSON as people's programs write it: what is inside, what is skipped and said, and how long it takes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.pyramids.geojson import Polygon, read_polygons
from morphogen.pyramids.region import Region
from morphogen.slides.mask import open_mask

SQUARE = [[2, 3], [12, 3], [12, 9], [2, 9], [2, 3]]


def inside(path: Path, value: Any, size: tuple[int, int] = (20, 20), classes: tuple[str, ...] = ()) -> np.ndarray:
    path = path / "a.geojson"
    path.write_text(json.dumps(value))
    return read_polygons(path, classes)(Region(0, 0, *size))


def square() -> np.ndarray:
    expected = np.zeros((20, 20), bool)
    expected[3:9, 2:12] = True
    return expected


def test_ways_to_write_one_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Open rings, three coordinates, a MultiPolygon of one part, also written as that part, backwards, bare lists."""
    polygon = {"type": "Polygon", "coordinates": [SQUARE]}
    feature = {"type": "Feature", "geometry": polygon, "properties": None}
    for value in (
        polygon,
        {"type": "Polygon", "coordinates": [SQUARE[:-1]]},
        {"type": "Polygon", "coordinates": [SQUARE[::-1]]},
        {"type": "Polygon", "coordinates": [[[*point, 7.5] for point in SQUARE]]},
        {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
        {"type": "MultiPolygon", "coordinates": [SQUARE]},
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE]]},
        {"type": "GeometryCollection", "geometries": [polygon]},
        {"type": "FeatureCollection", "features": [feature]},
        [feature],
    ):
        assert np.array_equal(inside(tmp_path, value), square()), value
    assert capsys.readouterr().err == ""


def test_what_has_no_inside_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in QuPath's "export all objects"."""
    geometries = [
        {"type": "Polygon", "coordinates": [SQUARE]},
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "LineString", "coordinates": [[1, 2], [3, 4]]},
        {"type": "LineString", "coordinates": [[1, 2], [3, 5]]},
        None,
        {"type": "Polygon", "coordinates": [[[1, 1], [2, 2]]]},
        {"type": "Polygon", "coordinates": []},
    ]
    features = [{"type": "Feature", "geometry": g, "properties": {}} for g in geometries]
    found = inside(tmp_path, {"type": "FeatureCollection", "features": features})
    assert np.array_equal(found, square())
    said = capsys.readouterr().err
    for words in ("1 polygons; skipped", "1 of the type Point", "2 of the type LineString", "1 without a geometry"):
        assert words in said
    assert "2 of fewer than 3 points" in said
    with pytest.raises(InputError, match="with polygons, but holds 1 of the type Point, 1 without a geometry"):
        inside(tmp_path, [features[1], features[4]])
    for value, says in (
        ({"type": "Topology"}, "holds the type 'Topology'"),
        (7, "holds the type 'int'"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3]]]}, "lists of points"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, "a"], [4, 4]]]}, "lists of points"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, 1e30], [4, 4]]]}, "lists of points"),
        ({"type": "Polygon"}, "lists of points"),
        ([], "should be GeoJSON with polygons"),
    ):
        with pytest.raises(InputError, match=says):
            inside(tmp_path, value)


def test_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def feature(name: str | None, left: int) -> dict[str, Any]:
        ring = [[x + left, y] for x, y in SQUARE]
        properties = {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]}}
        return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}

    features = [feature("Tumor", 0), feature("Ignore*", 20), feature(None, 40), feature("Stroma", 60)]

    def columns(*classes: str) -> list[int]:
        found = inside(tmp_path, features, (20, 80), classes)
        return [left for left in range(0, 80, 20) if found[:, left : left + 20].any()]

    assert columns() == [0, 40, 60]
    assert "skipped 1 of the class Ignore*" in capsys.readouterr().err
    assert columns("Tumor") == [0] and columns("Tumor", "Ignore*") == [0, 20]
    assert "1 of no class" in capsys.readouterr().err
    with pytest.raises(InputError, match="1 of the class Stroma"):
        columns("Other")
    with pytest.raises(InputError, match="--class chooses among the polygons"):
        open_mask(tmp_path / "a.png", (20, 20), ("Tumor",))
    with pytest.raises(InputError, match="--mask-value is of an image"):
        open_mask(tmp_path / "a.json", (20, 20), value=3)


def test_a_label_marks_the_hole(tmp_path: Path) -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[3:5, 6:9], labels[10, 10] = 3, 7
    Image.fromarray(labels).save(tmp_path / "labels.png")
    marked = open_mask(tmp_path / "labels.png", (20, 20), value=3)(Region(0, 0, 20, 20))
    np.testing.assert_array_equal(marked, labels == 3)
    with pytest.raises(InputError, match=r"its highest value is 7 of 255.*--mask-value 7"):
        open_mask(tmp_path / "labels.png", (20, 20))


def test_donuts_with_islands_and_bow_ties(tmp_path: Path) -> None:
    ring, hole, island = ([[a, a], [b, a], [b, b], [a, b]] for a, b in ((1, 19), (4, 16), (7, 13)))
    expected = np.zeros((20, 20), bool)
    expected[1:19, 1:19] = True
    expected[4:16, 4:16] = False
    expected[7:13, 7:13] = True
    found = inside(tmp_path, {"type": "MultiPolygon", "coordinates": [[ring, hole], [island]]})
    assert np.array_equal(found, expected)
    bow_tie = [[0, 0], [20, 20], [20, 0], [0, 20]]
    y, x = np.mgrid[:20, :20]
    both_sides = (y > x) == (y < 19 - x)  # left and right of the crossing
    on_the_lines = (y == x) | (y == 19 - x)
    found = inside(tmp_path, {"type": "Polygon", "coordinates": [bow_tie]})
    assert np.array_equal(found[~on_the_lines], both_sides[~on_the_lines])


@given(
    points=st.lists(st.tuples(st.integers(-40, 240), st.integers(-40, 240)), min_size=3, max_size=9),
    tile=st.tuples(st.integers(3, 30), st.integers(3, 30)),
)
@settings(max_examples=60, deadline=None)
def test_any_ring_tile_by_tile(points: list[tuple[int, int]], tile: tuple[int, int]) -> None:
    """As the even-odd rule has it for each pixel's centre by itself, where it does not lie on a line."""
    ring = np.array(points) / 6 + 1 / 7
    polygon = Polygon([ring])
    found = np.zeros((30, 31), bool)
    for y in range(0, 30, tile[0]):
        for x in range(0, 31, tile[1]):
            region = Region(y, x, min(tile[0], 30 - y), min(tile[1], 31 - x))
            part = np.zeros(region.size, bool)
            polygon.mark(part, region)
            found[region.rows, region.columns] = part
    y, x = np.mgrid[:30, :31] + 0.5
    crossings, on_a_line = np.zeros((30, 31), int), np.zeros((30, 31), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        above = (y0 > y) != (y1 > y)
        with np.errstate(all="ignore"):
            line = (x1 - x0) * (y - y0) / (y1 - y0) + x0
        crossings += above & (x > line)
        on_a_line |= above & (np.abs(x - line) < 1e-9)
    assert np.array_equal(found[~on_a_line], (crossings % 2 == 1)[~on_a_line])


@pytest.mark.slow
def test_a_polygon_of_a_million_points(tmp_path: Path) -> None:
    """Each tile costs what lies beside it: reading and all 100 of them about 4 s of processor time, where testing the
    whole polygon took 45 s for one.
    """
    angle = np.linspace(0, 2 * math.pi, 1_000_000, endpoint=False)
    radius = 4000 + 300 * np.sin(50 * angle) + np.random.default_rng(0).normal(size=len(angle))
    ring = np.stack([5000 + radius * np.cos(angle), 5000 + radius * np.sin(angle)], axis=1)
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring.round(2).tolist()]}))
    before = time.process_time()
    polygons = read_polygons(tmp_path / "a.geojson")
    marked = 0
    for y in range(0, 10_000, 1000):
        for x in range(0, 10_000, 1000):
            marked += int(polygons(Region(y, x, 1000, 1000)).sum())
    assert time.process_time() - before < 15
    area = 0.5 * abs(np.sum(ring[:, 0] * np.roll(ring[:, 1], -1) - ring[:, 1] * np.roll(ring[:, 0], -1)))
    assert marked == pytest.approx(area, rel=1e-4)


def test_many_polygons(tmp_path: Path) -> None:
    """A tile costs what the polygons near it cost: 20,000 far ones take less than 10 ms, not 150."""
    rings = [
        [[[x, y], [x + 3, y], [x + 3, y + 3], [x, y + 3], [x, y]]] for y in range(500, 1300, 4) for x in range(100)
    ]
    (tmp_path / "a.json").write_text(json.dumps({"type": "MultiPolygon", "coordinates": rings}))
    hole = open_mask(tmp_path / "a.json", (2000, 2000))
    before = time.process_time()
    for _ in range(20):
        hole(Region(0, 0, 256, 256))
    assert (time.process_time() - before) / 20 < 0.01
