"""Endless pictures of pyramids: at every zoom what the levels paint, the same wherever and whenever one looks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_helpers import make_ladder
from PIL import Image

from morphogen.core.images import to_bytes
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.ladder import Ladder
from morphogen.pyramids.region import Region
from morphogen.studio.endless import endless_levels
from morphogen.studio.views import EndlessView, Tile

STEPS, SEED, SIZE = 3, 5, (150, 160)
MARGIN = (STEPS * 2 + 2) * 13  # of the reach of three levels of 2 cells at 1/9, 1/3 and 1/1: so far edges are felt


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    model = make_ladder()
    if (reason := model.compute_in("float32")) is not None:
        pytest.skip(reason)
    return model


@pytest.fixture(scope="module")
def whole(ladder: Ladder) -> list[np.ndarray]:
    """What each level paints of a picture of a finite size, finest first."""
    request, found = SamplingRequest("dpm++", STEPS), []
    with torch.no_grad():
        for number, size in enumerate(ladder.sizes(SIZE)):
            found.insert(0, to_bytes(ladder.up_to(number).generate(Key.of([SEED]), size, request))[0])
    return found


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_level_is_that_of_a_large_run(ladder: Ladder, whole: list[np.ndarray], data: st.DataObject) -> None:
    levels = endless_levels(ladder, SEED, "dpm++", STEPS)
    assert [level.scale for level in levels] == [1, 3, 9]
    for _ in range(3):
        number = data.draw(st.integers(0, 2))
        expected, limit = whole[number], MARGIN // levels[number].scale + 1
        y, x = (data.draw(st.integers(0, side - limit - 2)) for side in expected.shape[:2])
        height = data.draw(st.integers(1, expected.shape[0] - limit - y))
        width = data.draw(st.integers(1, expected.shape[1] - limit - x))
        (found,) = levels[number].slide.pictures([Region(y, x, height, width)])
        np.testing.assert_array_equal(found, expected[y : y + height, x : x + width])


def test_zooming_out_is_never_blank(ladder: Ladder) -> None:
    """Every level of the view shows something, and a tile at 1/9 is what the coarsest level paints there."""
    view = EndlessView(endless_levels(ladder, SEED, "dpm++", STEPS), "pyramid", zoom_out=1, seed=SEED)
    described = view.description()
    assert described["computed"] == len(view.levels)
    assert np.allclose([1 / s for s in described["scales"]], [1, 2, 3, 6, 9, 18])  # type: ignore[attr-defined]
    assert described["seed"] == "5"
    far = 2**20
    tiles = [Tile(level, far // (level + 1), far) for level in range(len(view.levels))]
    pictures = [np.asarray(Image.open(io.BytesIO(png))) for png in view.pictures(tiles, lambda: False)]
    assert all(picture.std() > 2 for picture in pictures)
    assert all(picture.shape == (view.tile, view.tile, 3) for picture in pictures)
    again = EndlessView(endless_levels(ladder, SEED, "dpm++", STEPS), "pyramid", zoom_out=1, seed=SEED)
    for tile, picture in reversed(list(zip(tiles, pictures, strict=True))):
        (found,) = again.pictures([tile], lambda: False)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found))), picture)
    coarse = endless_levels(ladder, SEED, "dpm++", STEPS)[2].slide
    tile = tiles[4]
    (expected,) = coarse.pictures([Region(tile.row * view.tile, tile.column * view.tile, view.tile, view.tile)])
    np.testing.assert_array_equal(pictures[4], expected)
