"""Maps of classes: which files are read and refused, and that a map goes through training as its image does."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from morphogen.core.condition import UNKNOWN
from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.data.maps import read_map, resized_map, to_classes

COLOURS = np.array([[250, 240, 245], [90, 40, 140], [200, 120, 160]], np.uint8)  # of the classes 0, 1 and 2
TABLE = {"0": "background", "1": "nucleus", "2": "rim"}


def a_map(seed: int, size: tuple[int, int] = (48, 64), block: int = 4) -> np.ndarray:
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 3, (size[0] // block, size[1] // block), np.uint8)
    return small.repeat(block, 0).repeat(block, 1)


def put_set(folder: Path, count: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """A folder with images/ and maps/: every pixel has the colour of its class."""
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True)
    for k in range(count):
        values = a_map(k, size)
        Image.fromarray(values).save(folder / "maps" / f"{k}.png")
        Image.fromarray(COLOURS[values]).save(folder / "images" / f"{k}.png")
    return folder


def build(source: Path, **settings: Any) -> ImageDataset:
    return build_dataset(
        DataConfig(source=str(source), **{"maps": "maps", "size": 24, "split": "none", **settings}), progress=False
    )


@pytest.mark.parametrize(
    "fit", [{"fit": "random"}, {"fit": "random", "downscale": 2}, {"fit": "crop", "size": (24, 32)}, {"fit": "stretch"}]
)
def test_every_pixel_of_a_map_is_the_class_of_that_pixel_of_its_image(tmp_path: Path, fit: dict[str, Any]) -> None:
    data = build(put_set(tmp_path), **{"domain": "pathology", **fit})
    agreed = []
    for n in range(24):
        agreed.append(_agree(data[n][0].permute(1, 2, 0).numpy(), data.map(n).numpy()))
        agreed.append(_agree(data.fixed(n % 4)[0].permute(1, 2, 0).numpy(), data.fixed_map(n % 4).numpy()))
    if fit["fit"] == "random":  # blocks of four pixels shrunk by two are whole pixels
        assert min(agreed) == 1
    assert min(agreed) > 0.8, min(agreed)  # by chance a third; where a resize cuts blocks, edges are mixtures


def _agree(image: np.ndarray, found: np.ndarray) -> float:
    """The share of pixels whose class is that of the nearest colour."""
    away = np.abs(image.astype(int)[None] - COLOURS.astype(int)[:, None, None]).sum(axis=3)
    return float((away.argmin(axis=0) == found).mean())


def test_padding_has_no_class(tmp_path: Path) -> None:
    data = build(put_set(tmp_path, size=(32, 64)), fit="pad", size=32, flips="none", turns=False)
    found = data.map(0).numpy()
    assert (found[:8] == UNKNOWN).all() and (found[-8:] == UNKNOWN).all() and (found[8:24] != UNKNOWN).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_a_map_made_smaller_by_whole_squares_holds_what_most_pixels_were(
    rows: int, columns: int, seed: int, factor: int
) -> None:
    found = np.random.default_rng(seed).integers(0, 3, (rows * factor, columns * factor), np.uint8)
    small = resized_map(found, (rows, columns))
    counts = np.stack([(found == k).reshape(rows, factor, columns, factor).sum(axis=(1, 3)) for k in range(3)])
    most = counts.max(axis=0)
    assert (np.take_along_axis(counts, small[None].astype(int), 0)[0] == most).all()


def test_zip_folder_and_another_folder_give_the_same(tmp_path: Path) -> None:
    folder = put_set(tmp_path / "set")
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in sorted(folder.rglob("*.png")):
            out.write(file, file.relative_to(folder))
    inside, zipped = build(folder), build(archive)
    apart = build(folder / "images", maps=str(folder / "maps"))
    assert inside.classes == {"0": "0", "1": "1", "2": "2"}
    for n in range(6):
        assert (inside.map(n) == zipped.map(n)).all() and (inside.map(n) == apart.map(n)).all()
        assert (inside[n][0] == zipped[n][0]).all()
    assert len(inside) == 4 and not inside.labels.names  # images/ is no class


@pytest.mark.parametrize("form", ["palette", "colour", "16 bits", "two levels"])
def test_the_kinds_of_label_images(tmp_path: Path, form: str) -> None:
    values = a_map(5)
    table: dict[str, str | None] = dict(TABLE)
    image = Image.fromarray(values)
    if form == "palette":
        image = Image.fromarray(values, "P")
        image.putpalette(COLOURS.tobytes())
    elif form == "colour":
        image = Image.fromarray(COLOURS[values])
        table = {"#{:02x}{:02X}{:02x}".format(*c).lower(): n for c, n in zip(COLOURS, TABLE.values(), strict=True)}
    elif form == "16 bits":
        image, table = Image.fromarray(values.astype(np.uint16) * 300), {"0": "a", "300": "b", "600": "c"}
    else:
        values = (values > 0).astype(np.uint8)
        image, table = Image.fromarray(values * 255).convert("1"), {"0": "a", "1": "b"}
    image.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_map(tmp_path / "map.png", table), values)


def test_values_may_be_ignored_and_share_a_class() -> None:
    values = np.array([[0, 1], [2, 9]], np.uint16)
    found = to_classes(values, {"0": "a", "1": "b", "2": "b", "9": None}, "x.png")
    assert found.tolist() == [[0, 1], [1, UNKNOWN]]


def _spoil(folder: Path, what: str) -> dict[str, Any]:
    """What is wrong with the set, and the settings it is read with."""
    first = folder / "maps" / "0.png"
    given: dict[str, Any] = {}
    table: dict[str, Any] = dict(TABLE)
    match what:
        case "size":
            Image.fromarray(a_map(0, (24, 64))).save(first)
        case "missing":
            first.unlink()
        case "spare":
            Image.fromarray(a_map(0)).save(folder / "maps" / "spare.png")
        case "unknown":
            table = {"0": "background", "1": "nucleus"}
        case "colours":
            Image.fromarray(COLOURS[a_map(0)]).save(first)
        case "16 bits":
            Image.fromarray(a_map(0).astype(np.uint16) * 300).save(first)
        case "ignored":
            table = {"0": None, "1": None, "2": None, "3": "never"}
            Image.fromarray(a_map(0)).save(first)
        case "photograph":
            draw = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)
            Image.fromarray(draw).save(first)
        case "damaged":
            first.write_bytes(first.read_bytes()[:60])
        case "no folder":
            given["maps"] = "masks"
        case "names":
            table = {"0": "background", "red": "nucleus"}
    if what in ("unknown", "ignored", "names"):
        (folder / "classes.json").write_text(json.dumps(table))
        given["classes"] = str(folder / "classes.json")
    return given


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("size", r"the map maps/0.png is 64x24 and its image 64x48; a map should be as large"),
        ("missing", r"1 of 4 images have no map in .*, such as images/0.png; each should have one of the same name"),
        ("spare", r"the map maps/spare.png has no image"),
        ("unknown", r"the map maps/0.png has the value 2; the classes are 0, 1"),
        ("colours", r"the map maps/0.png is in colours; give a table of their colours with --classes"),
        ("16 bits", r"the map maps/0.png has more than 8 bits; give a table"),
        ("ignored", r"the map maps/0.png tells nothing: every pixel of it is ignored"),
        ("photograph", r"have \d+ values, as images do; give a table"),
        ("damaged", r"the map maps/0.png"),
        ("no folder", r"--maps masks: it is no folder, and .* has none of this name"),
        ("names", r"'red' should be a pixel's value, 0 to 65535, or a colour such as #ff0000"),
    ],
)
def test_what_is_wrong_with_maps_is_said_in_one_sentence(tmp_path: Path, what: str, sentence: str) -> None:
    folder = put_set(tmp_path / "set")
    given = _spoil(folder, what)
    with pytest.raises(InputError, match=sentence) as caught:
        build(folder, **given)
    assert "\n" not in str(caught.value)


def test_maps_of_one_image_make_other_data(tmp_path: Path) -> None:
    folder = put_set(tmp_path)
    before = build(folder).identity()
    changed = a_map(0)
    changed[0, 0] = 1 - min(changed[0, 0], 1)
    Image.fromarray(changed).save(folder / "maps" / "0.png")
    assert build(folder).identity() != before
    buffer = io.BytesIO()
    Image.fromarray(a_map(0)).save(buffer, "PNG")
    (folder / "maps" / "0.png").write_bytes(buffer.getvalue())
    assert build(folder).identity() == before
