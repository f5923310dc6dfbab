"""Painting on an endless slide: what strokes change, undo, levels, and the file that says how it came to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_helpers import save_latent_model
from map_helpers import CLASSES, save_map_model
from PIL import Image
from run_helpers import Outcome

pytest.importorskip("fastapi")

from morphogen.core.condition import UNKNOWN
from morphogen.core.errors import InputError
from morphogen.pyramids.region import Region
from morphogen.slides.region import decoded_from
from morphogen.studio.brush import annotation
from morphogen.studio.edits import Edit, PaintingFile, map_of
from morphogen.studio.endless import endless_levels
from morphogen.studio.painting import Painting, middle_of
from morphogen.tasks.pipeline import Pipeline

CLASS = Edit(what="class", name="nucleus", points=((0, 0), (14, 6)), radius=5)
SEED = Edit(what="seed", seed=9, points=((-12, 4),), radius=6)


@pytest.fixture(
    scope="module", params=[(1, 1), (2, 2), None], ids=["one level", "two levels of 2x2 pixels a cell", "in latents"]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps") / "tiny"
    return save_latent_model(folder, CLASSES) if request.param is None else save_map_model(folder, *request.param)


def begin(model: Path | str, sampler: str = "dpm++") -> Painting:
    levels = endless_levels(Pipeline.from_pretrained(model, precision="float32").model, 3, sampler, 4)
    return Painting(levels, middle_of(levels))


def view(painting: Painting) -> Region:
    return Region(painting.middle - 40, painting.middle - 40, 80, 80)


@pytest.mark.parametrize("edit", [CLASS, SEED], ids=["class", "seed"])
@pytest.mark.parametrize("sampler", ["dpm++", "ddim"])
def test_a_stroke_changes_what_is_around_it_and_nothing_else(model: Path, edit: Edit, sampler: str) -> None:
    painting = begin(model, sampler)
    region = view(painting)
    before = painting.picture(0, region)
    change = painting.paint(edit)
    after = painting.picture(0, region)
    changed = (before != after).any(axis=2)
    own = change.layers[0].shown
    rows, columns = own.within(region)
    outside = np.ones(region.size, bool)
    outside[rows, columns] = False
    assert changed.any() and not changed[outside].any()
    assert painting.undo() is change and (painting.picture(0, region) == before).all()
    assert painting.redo() is change and (painting.picture(0, region) == after).all()
    again = begin(model, sampler)
    again.paint(edit)
    assert (again.picture(0, region) == after).all()


def test_a_stroke_that_says_nothing_new_gives_the_same_bits(model: Path) -> None:
    painting = begin(model)
    before = painting.picture(0, view(painting))
    painting.paint(Edit(what="class", name=None, points=((0, 0), (20, 9)), radius=7))
    assert (painting.picture(0, view(painting)) == before).all()
    painting.paint(CLASS)
    with_stroke = painting.picture(0, view(painting))
    painting.paint(CLASS)  # once more: within the first one's rectangle all is as it was
    assert (painting.picture(0, view(painting)) == with_stroke).all()


def test_the_order_of_strokes_counts_and_a_part_of_the_picture_is_that_part(model: Path) -> None:
    painting = begin(model)
    over = CLASS.model_copy(update={"name": "rim", "points": ((6, 2),)})
    for edit in (CLASS, over, SEED):
        painting.paint(edit)
    region = view(painting)
    whole = painting.picture(0, region)
    part = Region(region.y + 31, region.x + 17, 22, 40)
    rows, columns = part.within(region)
    assert (painting.picture(0, part) == whole[rows, columns]).all()
    other = begin(model)
    for edit in (over, CLASS, SEED):
        other.paint(edit)
    assert (other.map_of(region) != painting.map_of(region)).any()
    assert (other.picture(0, region) != whole).any()


def test_a_preview_lies_where_the_stroke_will_and_changes_nothing(model: Path) -> None:
    painting = begin(model)
    before = painting.picture(0, view(painting))
    area, pixels = painting.preview(CLASS)
    assert pixels.shape == (*area.size, 3) and not painting.done
    assert (painting.picture(0, view(painting)) == before).all()
    slide = painting.levels[0].slide
    assert area == painting.paint(CLASS).layers[0].region.scaled(slide.factor)


def test_what_a_stroke_changes_in_latents_is_decoded_as_far_as_the_decoder_sees(tmp_path: Path) -> None:
    painting = begin(save_latent_model(tmp_path / "tiny", CLASSES))
    for edit in (CLASS, SEED):
        painting.paint(edit)
    slide = painting.levels[0].slide
    blocks = slide.in_blocks(view(painting))
    outer = decoded_from(slide.denoiser, blocks, slide.canvas, slide.side)
    expected = slide.decode(painting.finished(0, outer), outer, blocks)
    assert (painting.picture(0, blocks.scaled(slide.factor)) == expected).all()


@given(
    st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=4),
    st.floats(0.5, 12),
    st.integers(-20, 5),
    st.integers(-20, 5),
)
@settings(max_examples=40, deadline=None)
def test_what_a_stroke_covers(points: list[tuple[float, float]], radius: float, y: int, x: int) -> None:
    edit = Edit(what="class", name="a", points=tuple(points), radius=radius)
    whole = Region(-50, -50, 100, 100)
    covered = edit.covers(whole)
    part = Region(y, x, 15, 25)
    rows, columns = part.within(whole)
    assert (edit.covers(part) == covered[rows, columns]).all()
    area = edit.area()
    ys, xs = np.nonzero(covered)
    assert not len(ys) or (ys.min() - 50 >= area.y and ys.max() - 50 < area.y + area.height)
    assert not len(xs) or (xs.min() - 50 >= area.x and xs.max() - 50 < area.x + area.width)
    centres = np.hypot(ys - 49.5 - points[0][1], xs - 49.5 - points[0][0])
    if len(points) == 1 and len(ys):
        assert centres.max() <= radius + 1e-9


def test_what_cannot_be_painted(model: Path) -> None:
    painting = begin(model)
    for edit, sentence in (
        (
            CLASS.model_copy(update={"name": "stroma"}),
            "there is no class 'stroma'; the model's are background, nucleus",
        ),
        (
            CLASS.model_copy(update={"points": ((0, 0), (900, 0))}),
            "the stroke covers 910x10 pixels; it may cover 512x512",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            painting.paint(edit)
    assert painting.undo() is None and painting.redo() is None
    plain = begin("tissue-texture")
    with pytest.raises(InputError, match="was trained without maps; only places can be given another seed"):
        plain.paint(CLASS)


def test_a_model_without_maps_paints_a_place_anew() -> None:
    painting = begin("tissue-texture")
    before = painting.picture(0, view(painting))
    painting.paint(SEED)
    assert (painting.picture(0, view(painting)) != before).any()


def test_strokes_as_an_annotation_cover_what_they_covered(tmp_path: Path) -> None:
    from morphogen.slides.maps import open_map

    edits = [CLASS, CLASS.model_copy(update={"name": "rim", "points": ((8, 8),)}), SEED]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(annotation(edits, (-30, -30))))
    read = open_map(path, (60, 60), {"0": "background", "1": "nucleus", "2": "rim"})(Region(0, 0, 60, 60))
    names = ["background", "nucleus", "rim"]
    drawn = map_of(edits, Region(-30, -30, 60, 60), names)
    drawn = np.where(drawn == UNKNOWN, 0, drawn)
    assert (read != drawn).mean() < 0.01  # circles are polygons there, of 64 corners
    assert (read == 1).any() and (read == 2).any()


def test_the_file_that_the_page_saves_is_painted_again_by_the_command(
    cli: Callable[..., Outcome], model: Path, tmp_path: Path
) -> None:
    painting = begin(model)
    for edit in (CLASS, SEED):
        painting.paint(edit)
    file = PaintingFile(
        model="tiny", seed=3, sampler="dpm++", sampling_steps=4, x=-30, y=-20, width=50, height=45,
        edits=tuple(painting.edits),
    )  # fmt: skip
    saved = tmp_path / "painting.json"
    saved.write_text(file.model_dump_json())
    words = ("paint", model, saved, "--precision", "float32", "--out", tmp_path / "out")
    done = cli(*words)
    assert done.code == 0, done.err
    expected = painting.picture(0, Region(painting.middle - 20, painting.middle - 30, 45, 50))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "painting.png")), expected)
    assert cli(*words).code == 0
    saved.write_text(file.model_dump_json().replace("nucleus", "stroma"))
    wrong = cli(*words, "--overwrite")
    assert wrong.code == 2 and "there is no class 'stroma'" in wrong.err
    saved.write_text("{}")
    assert cli(*words).code == 2
