"""The data check and the `morphogen data` commands."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from morphogen.cli.data import app
from morphogen.core.errors import InputError
from morphogen.data.check import check_images
from morphogen.data.config import DataConfig

Save = Callable[..., Path]


@pytest.fixture
def messy(folder: Path, save: Save) -> Path:
    """Twelve good images, and one of every kind of trouble."""
    good = (folder / "a" / "00.png").read_bytes()
    (folder / "a" / "broken.png").write_bytes(b"nothing at all")
    (folder / "a" / "cut.png").write_bytes(good[: len(good) // 2])
    Image.open(folder / "a" / "02.png").save(folder / "b" / "same.bmp")
    save("set/b/small.png", 31, 32, seed=50)
    save("set/b/vast.png", 200, 200, seed=51)
    return folder


EXPECTED = {
    "a/broken.png": "unreadable",
    "a/cut.png": "truncated",
    "b/same.bmp": "duplicate",
    "b/small.png": "too small",
    "b/vast.png": "oversized",
}


def test_every_kind_of_trouble_is_found(messy: Path, tmp_path: Path) -> None:
    report = check_images(DataConfig(source=str(messy), size=32, max_pixels=10_000), progress=False)
    assert {p.name: p.kind for p in report.problems} == EXPECTED and report.images == 17
    assert {p.name: p.detail for p in report.problems}["b/same.bmp"] == "the same pixels as a/02.png, with other labels"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in messy.rglob("*.*"):
            archive.write(file, file.relative_to(messy))
    zipped = check_images(DataConfig(source=str(tmp_path / "set.zip"), size=32, max_pixels=10_000), progress=False)
    assert zipped.problems == report.problems


def test_the_command_lists_and_exits_with_2(messy: Path) -> None:
    arguments = ["check", str(messy), "--size", "32", "--max-pixels", "10000"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 2
    assert all(f"{name} " in shown.output and kind in shown.output for name, kind in EXPECTED.items())
    assert "17 images, 1 unreadable, 1 truncated, 1 duplicate, 1 too small, 1 oversized" in shown.output
    read = CliRunner().invoke(app, [*arguments, "--json"])
    assert read.exit_code == 2
    assert {p["name"]: p["kind"] for p in json.loads(read.stdout)["problems"]} == EXPECTED


def test_nothing_wrong_exits_with_0(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["check", str(folder), "--size", "32"])
    assert shown.exit_code == 0 and "12 images, nothing wrong" in shown.output
    read = CliRunner().invoke(app, ["check", str(folder), "--size", "32x32", "--json"])
    assert read.exit_code == 0 and json.loads(read.stdout)["problems"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "nowhere"], "nowhere does not exist"),
        (["check", "nowhere", "--size", "4"], "data: size.*greater than or equal to 8"),
        (["check", "nowhere", "--size", "big"], "data: size: size 'big' should be one number or HEIGHTxWIDTH"),
        (["check", ""], "data: source: .*at least 1 character"),
        (["check", "builtin:none"], "no built-in image 'none'"),
        (["split", "builtin:tissue", "--out", "x.json", "--by", "patch"], "--by 'patch' should be one of image, slide"),
        (["split", "builtin:tissue", "--out", "x.json"], "too few groups"),
        (["split", "builtin:tissue", "--out", "x.json", "--ratios", "80"], "80/10/10"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=says) as caught:
        raise result.exception
    assert "\n" not in str(caught.value)


def test_split_command(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    shown = CliRunner().invoke(app, ["split", str(folder), "--folds", "3", "--out", str(out)])
    assert shown.exit_code == 0 and "fold 0: 4, fold 1: 4, fold 2: 4 (by image)" in shown.output
    assert json.loads(out.read_text())["folds"] == 3
    arguments = ["split", str(folder), "--by", "patient", "--pattern", r"/(\d\d)\.", "--ratios", "50/25/25"]
    read = CliRunner().invoke(app, [*arguments, "--seed", "7", "--out", str(out), "--overwrite", "--json"])
    assert read.exit_code == 0 and json.loads(read.stdout)["counts"] == {"train": 6, "val": 3, "test": 3}
    assert json.loads(out.read_text())["seed"] == 7


def test_real_colon_patches_are_sound(shared: Path) -> None:
    report = check_images(DataConfig(source=str(shared / "oct128.zip")), progress=False)
    assert report.images == 183 and not report.problems
