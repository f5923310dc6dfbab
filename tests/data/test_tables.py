"""Label tables as people have them: understood where that is plain, which is said, and refused by name elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from run_helpers import Outcome

from morphogen.core import notices
from morphogen.core.errors import InputError
from morphogen.data.check import check_images
from morphogen.data.config import DataConfig
from morphogen.data.labels import labels_of
from morphogen.data.matching import alike
from morphogen.data.source import Source
from morphogen.data.sources import open_source
from morphogen.data.splits import make_split
from morphogen.data.tables import read_table

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def _fresh_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_said", set())


@pytest.fixture
def images(tmp_path: Path, save: Save) -> Path:
    for k, name in enumerate(("one/Image 1.PNG", "one/b.png", "two/c.png", "two/d.v2.png")):
        save(f"set/{name}", 8, 8, k)
    return tmp_path / "set"


def opened(images: Path, text: str, **settings: object) -> Source:
    table = images.parent / "labels.csv"
    table.write_text(text, encoding="utf-8")
    return open_source(DataConfig(source=str(images), labels=str(table), **settings))  # type: ignore[arg-type]


def labels(source: Source) -> dict[str, tuple[str, ...]]:
    return {record.name.rpartition("/")[2]: record.labels for record in source.records}


FILES = ("Image 1.PNG", "b.png", "c.png", "d.v2.png")


def with_classes(*classes: str, header: str = "file,class") -> str:
    return "\n".join([header, *(f"{file},{name}" for file, name in zip(FILES, classes, strict=True))])


# ---------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("header", ["file,class", "file,label", "filename,Diagnosis", "image_path,what_it_shows"])
def test_a_column_of_class_names(images: Path, header: str) -> None:
    source = opened(images, with_classes("tumour", "sound", "sound", "tumour", header=header))
    assert labels_of(source).names == ("sound", "tumour") and labels_of(source).exclusive
    assert labels(source) == {
        "Image 1.PNG": ("tumour",), "b.png": ("sound",), "c.png": ("sound",), "d.v2.png": ("tumour",)
    }  # fmt: skip


def test_numbers_are_classes_in_their_order(images: Path) -> None:
    source = opened(images, with_classes("10", "2.0", "2", "0"))
    assert labels_of(source).names == ("0", "2", "10")


def test_several_names_and_none(images: Path) -> None:
    source = opened(images, with_classes("a; b", "b", "", "c ;a;"))
    assert labels_of(source).names == ("a", "b", "c") and not labels_of(source).exclusive
    assert labels(source) == {"Image 1.PNG": ("a", "b"), "b.png": ("b",), "c.png": (), "d.v2.png": ("c", "a")}
    with pytest.raises(InputError, match=r"labels\.csv, line 4: the column 'class' is empty"):
        opened(images, with_classes("a", "b", "", "c"))


def test_classes_in_several_spellings_are_one(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = opened(images, with_classes("Tumour", "tumour ", "Tumour", "sound"))
    assert labels_of(source).names == ("Tumour", "sound")
    assert "taken for one: 'Tumour' (Tumour, tumour)" in capsys.readouterr().err


def test_names_beside_labels_of_0_and_1_and_the_count_of_pandas(images: Path) -> None:
    rows = [",file,old,class", "0,b.png,0,x", "1,c.png,1,y", "2,Image 1.PNG,1,x", "3,d.v2.png,0,y"]
    assert labels_of(opened(images, "\n".join(rows))).names == ("old", "x", "y")
    with pytest.raises(InputError, match="'old' is a column and a class in the column 'class'"):
        opened(images, "\n".join(rows).replace(",x", ",old"))


def test_0_and_1_stay_a_label(images: Path) -> None:
    source = opened(images, with_classes("0", "1", "0", "1"))
    assert labels_of(source).names == ("class",) and labels(source)["b.png"] == ("class",)


def test_parquet_with_classes(images: Path, tmp_path: Path) -> None:
    table = pyarrow.table({"file": list(FILES), "label": ["x", "y", "x", "y"]})
    parquet.write_table(table, tmp_path / "labels.parquet")
    assert read_table(tmp_path / "labels.parquet").columns == ("x", "y")


def test_two_columns_that_may_be_the_files(images: Path) -> None:
    with pytest.raises(InputError, match="both filename and path may be the column 'file'"):
        opened(images, "filename,path,class\nb.png,x,y\n")


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one/image 1.png", "in upper or lower case"),
        ("Image 1", "with another suffix or none"),
        ("one/image 1.jpeg", "with another suffix or none"),
        ("/home/me/pictures/one/Image 1.PNG", "without the folders before it"),
        (r"C:\pictures\one\image 1.png", "without the folders before it and in upper or lower case"),
    ],
)
def test_names_are_understood_and_said(images: Path, capsys: pytest.CaptureFixture[str], name: str, says: str) -> None:
    source = opened(images, with_classes("x", "y", "y", "y").replace("Image 1.PNG", name))
    assert labels(source)["Image 1.PNG"] == ("x",)
    assert f"1 names were found {says}, such as" in capsys.readouterr().err


def test_a_name_without_suffix_that_has_a_dot(images: Path) -> None:
    assert labels(opened(images, with_classes("x", "y", "y", "z").replace("d.v2.png", "d.v2")))["d.v2.png"] == ("z",)


def test_composed_and_decomposed_names_are_the_same(tmp_path: Path, save: Save) -> None:
    name = "Zürich Größe.png"
    decomposed, composed = (unicodedata.normalize(form, name) for form in ("NFD", "NFC"))
    assert decomposed != composed
    for k, (on_disk, in_table) in enumerate(((decomposed, composed), (composed, decomposed))):
        save(f"{k}/{on_disk}", 8, 8)
        assert labels(opened(tmp_path / str(k), f"file,class\n{in_table},x\n")) == {on_disk: ("x",)}


def test_what_may_be_two_is_no_guess(tmp_path: Path, save: Save) -> None:
    for name in ("A.png", "a.jpg", "sub/b.png", "b.png"):
        save(f"set/{name}", 8, 8)
    for name in ("a", "B"):
        with pytest.raises(InputError, match=rf"the file {name} may be .* and .*; write its whole path"):
            opened(tmp_path / "set", f"file,class\n{name},x\n")
    with pytest.raises(InputError, match=r"lists b\.png twice"):
        opened(tmp_path / "set", "file,class\nb.png,x\n/data/b.png,x\n")
    with pytest.raises(InputError, match=r"does not hold: other/A\.gone"):
        opened(tmp_path / "set", "file,class\nother/A.gone,x\n")


# --------------------------------------------------------------------------------------------------------- patients


def patients(*ids: str) -> str:
    return "\n".join(["file,patient", *(f"{file},{name}" for file, name in zip(FILES, ids, strict=True))])


def test_ids_that_may_be_one() -> None:
    assert alike(["007", "7", "7.0", "P1", "p1", "P 01", "P10", "70", "a-b", "a b", "ab"]) == [
        ("007", "7", "7.0"), ("P1", "p1"), ("a b", "a-b")
    ]  # fmt: skip
    assert alike(["é", "e\u0301"]) == [("e\u0301", "é")]
    assert not alike(["1.5", "15", "p1", "p11", "1", "10", "100"])


def test_patients_that_may_be_one_are_named(
    images: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str], cli: Callable[..., Outcome]
) -> None:
    source = opened(images, patients("007", "7", "P1", "p1"))
    said = capsys.readouterr().err
    assert "patients that may be one but are kept apart: '007' and '7', 'P1' and 'p1'" in said
    assert [record.patient for record in source.records] == ["007", "7", "P1", "p1"]
    table = images.parent / "labels.csv"
    report = check_images(DataConfig(source=str(images), labels=str(table), size=8), progress=False)
    assert [(p.name, p.kind) for p in report.problems] == [("007 / 7", "ids alike"), ("P1 / p1", "ids alike")]
    with pytest.raises(InputError, match=r"may be one \(--strict-ids\): '007' and '7'"):
        opened(images, patients("007", "7", "P1", "p1"), strict_ids=True)
    out = images.parent / "split.json"
    for command in (("data", "check", images), ("data", "split", images, "--folds", 3, "--out", out)):
        refused(*command, "--labels", table, "--strict-ids", says=["--strict-ids", "'P1' and 'p1'"])
    refused("train", images, "--size", 8, "--labels", table, "--strict-ids", "--out", out, says=["'P1' and 'p1'"])
    assert not opened(images, patients("1", "2", "3", "4"), strict_ids=True).alike


def test_patients_of_a_pattern_that_may_be_one_are_named(
    tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, name in enumerate(("p1_a", "P1_b", "p2_a", "p3_a")):
        save(f"set/{name}.png", 8, 8, k)
    config = DataConfig(source=str(tmp_path / "set"))
    make_split(open_source(config), folds=3, by="patient", pattern=r"([pP]\d+)_")
    assert "'P1' and 'p1'" in capsys.readouterr().err
    with pytest.raises(InputError, match="--strict-ids"):
        make_split(
            open_source(config.model_copy(update={"strict_ids": True})), folds=3, by="patient", pattern=r"([pP]\d+)_"
        )
