"""Label tables say of every image what they say, whatever the format, and are refused by name where they are wrong."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_sets import COMBINATIONS, LABELS, draw_labelled, table_rows, write_table
from pyarrow import parquet
from run_helpers import Outcome, draw_images

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.data.labels import checked_labels, labels_of
from morphogen.data.source import Source
from morphogen.data.sources import open_source
from morphogen.data.splits import make_split, write_split
from morphogen.data.tables import read_table

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """45 images and their table. Read only."""
    return draw_labelled(tmp_path_factory.mktemp("labelled"))


def opened(images: Path, table: Path | str) -> Source:
    return open_source(DataConfig(source=str(images), labels=str(table)))


def test_rows_are_those_of_the_table_in_csv_and_parquet(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    images, table = labelled
    rows = table_rows()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "labels.parquet")
    booleans = [{k: bool(v) if k in LABELS else v for k, v in row.items()} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(booleans), tmp_path / "booleans.parquet")
    semicolons = tmp_path / "semicolons.csv"
    semicolons.write_text("\ufeff" + table.read_text().replace(",", ";"), encoding="utf-8")
    records = [
        opened(images, t).records
        for t in (table, tmp_path / "labels.parquet", tmp_path / "booleans.parquet", semicolons)
    ]
    assert records[0] == records[1] == records[2] == records[3]
    dataset = build_dataset(DataConfig(source=str(images), size=8, labels=str(table), split="none"), progress=False)
    assert dataset.labels.names == LABELS and not dataset.labels.exclusive
    for i, row in enumerate(rows):
        assert dataset.record(i).name == row["file"]
        assert dataset.fixed(i)[1].tolist() == [row[name] for name in LABELS]
        assert (dataset.record(i).patient, dataset.record(i).eye) == (row["patient"], row["eye"])
    found = Counter("+".join(dataset.record(i).labels) for i in range(len(dataset)))
    assert found == COMBINATIONS
    by_name = {row["file"]: [row[name] for name in LABELS] for row in rows}
    assert all(dataset[n][1].tolist() == by_name[dataset.name(n)] for n in range(64))


def test_one_label_each_are_classes_and_columns_may_hold_only_patients(tmp_path: Path, save: Save) -> None:
    for k in range(4):
        save(f"set/{'ab'[k % 2]}/{k}.png", 8, 8, k)
    rows = [{"file": f"{'ab'[k % 2]}/{k}.png", "x": k % 2, "y": 1 - k % 2} for k in range(4)]
    assert labels_of(opened(tmp_path / "set", write_table(tmp_path / "t.csv", rows))).exclusive
    patients = [{"File": row["file"].split("/")[1], "PATIENT": "p"} for row in rows]  # ends of paths will do
    source = opened(tmp_path / "set", write_table(tmp_path / "p.csv", patients))
    assert labels_of(source).names == ("a", "b") and {r.patient for r in source.records} == {"p"}
    assert [r.labels for r in source.records] == [("a",), ("a",), ("b",), ("b",)]
    assert not labels_of(open_source(DataConfig(source=str(tmp_path / "set"), labels="none"))).names


def changed(rows: list[dict[str, Any]], k: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} if i == k else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: [*r, {**r[0], "file": "gone.png"}], "lists 1 files that .* does not hold: gone.png; remove"),
        (lambda r: r[:-2], "holds 2 images that .* does not list: 43.png, 44.png; add"),
        (lambda r: [*r[2:], r[5]], "lists 05.png twice"),
        (lambda r: changed(r, 3, drusen=2), "line 5: the label 'drusen' is '2'; it should be 0 or 1"),
        (lambda r: changed(r, 3, oedema=""), "line 5: the label 'oedema' is ''; it should be 0 or 1"),
        (lambda r: changed(r, 4, patient=" "), "line 6: the column 'patient' is empty"),
        (lambda r: [{**row, "split": "train"} for row in r[1:]] + [{**r[0], "split": "maybe"}], "split is 'maybe'"),
        (lambda r: [{**row, "scar": 0} for row in r], "no image has the label 'scar'; remove the column"),
        (
            lambda r: [{k: v for k, v in row.items() if k != "file"} for row in r],
            "has no column 'file'; its columns are",
        ),
        (lambda r: [{**row, " drusen": 1} for row in r], "has 2 columns named 'drusen'"),
        (lambda r: [{**row, "": 1} for row in r], "has a column without a name"),
    ],
)
def test_wrong_tables(
    labelled: tuple[Path, Path], tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        opened(labelled[0], write_table(tmp_path / "wrong.csv", change(table_rows())))


def test_files_that_are_no_tables(labelled: tuple[Path, Path], tmp_path: Path, save: Save) -> None:
    for name, content, says in [
        ("empty.csv", b"", "is empty"),
        ("binary.csv", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("short.csv", b"file,a,b\n00.png,1\n", "line 2: it has 2 columns; it should have 3"),
        ("header.csv", b"file,a\n", "lists no images"),
        ("quotes.csv", b'file,a\n"00.png" x,1\n', "line 2: it is not valid CSV"),
        ("wrong.parquet", b"PAR0", "cannot be read as Parquet"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=says):
            opened(labelled[0], tmp_path / name)
    with pytest.raises(InputError, match=r"the label table .*nowhere\.csv cannot be read: No such file"):
        opened(labelled[0], tmp_path / "nowhere.csv")
    save("two/a/1.png", 8, 8)
    save("two/b/1.png", 8, 8)
    with pytest.raises(InputError, match=r"1\.png may be a/1\.png and b/1\.png"):
        opened(tmp_path / "two", write_table(tmp_path / "ends.csv", [{"file": "1.png", "x": 1}]))


def test_class_folders_that_cannot_be_learnt(tmp_path: Path, save: Save) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        save(f"set/{name}", 8, 8)
    config = DataConfig(source=str(tmp_path / "set"))
    assert checked_labels(open_source(config)).names == ("a", "b")
    (tmp_path / "set" / "c").mkdir()
    with pytest.raises(InputError, match="class folders without images: c; remove them"):
        checked_labels(open_source(config))
    (tmp_path / "set" / "c").rmdir()
    save("set/stray.png", 8, 8)
    with pytest.raises(InputError, match=r"1 images without a label beside its class folders: stray\.png"):
        checked_labels(open_source(config))


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 5), st.integers(0, 2**32), st.integers(3, 9))
def test_patients_stay_together_in_every_fold(folds: int, seed: int, patients: int) -> None:
    """The property itself, on a source whose images need not exist."""
    from dataclasses import replace

    from morphogen.data.files import FolderSource
    from morphogen.data.source import Record

    records = [
        replace(Record(f"{k}.png"), patient=f"p{k * k % patients}", labels=("x",) if k % 3 else ("x", "y"))
        for k in range(4 * patients)
    ]
    source = FolderSource(DataConfig(source="."), Path(), records)
    if len({r.patient for r in records}) < folds:
        return
    made = make_split(source, folds=folds, seed=seed)
    assert made["by"] == "patient"
    owners = defaultdict(set)
    for record in records:
        owners[record.patient].add(made["assignment"][record.name])
    assert all(len(places) == 1 for places in owners.values())
    assert set(made["assignment"].values()) == set(range(folds))


def test_a_planted_patient_leak_is_refused(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    images, table = labelled
    split = make_split(opened(images, table), folds=3)
    moved = next(name for name, fold in split["assignment"].items() if fold == 0)
    leaking = {**split, "assignment": {**split["assignment"], moved: 1}}
    path = tmp_path / "split.json"
    config = {"source": str(images), "size": 8, "split": str(path), "fold": 0}
    write_split(split, path)
    test = build_dataset(DataConfig(**config), "test", progress=False)  # as it was made, it is fine
    assert {test.record(i).name for i in range(len(test))} == {n for n, k in split["assignment"].items() if k == 0}
    for content, labels in [
        (leaking, str(table)),  # the table and the split both know
        (leaking, "auto"),  # only the split knows, from when it was made
        ({k: v for k, v in leaking.items() if k != "groups"}, str(table)),  # only the table knows
    ]:
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"split\.json: patient p\d+ is in fold \d \(\d\d\.png\) and in fold \d"):
            build_dataset(DataConfig(**config, labels=labels), progress=False)
    official = [{**row, "split": "train" if k else "test"} for k, row in enumerate(table_rows())]
    leak = write_table(tmp_path / "official.csv", official)
    with pytest.raises(InputError, match=r"official\.csv: patient p0 is in test \(00\.png\) and in train \(01\.png\)"):
        build_dataset(DataConfig(source=str(images), size=8, labels=str(leak)), progress=False)
    with pytest.raises(InputError, match="a split by image: patient"):
        make_split(opened(images, table), folds=3, by="image")
    path.write_text(json.dumps({**split, "groups": {"00.png": "p0"}}))
    with pytest.raises(InputError, match="is not a whole split file"):
        build_dataset(DataConfig(**config), progress=False)


def test_the_automatic_split_is_by_patient_and_an_official_one_is_kept(
    labelled: tuple[Path, Path], tmp_path: Path
) -> None:
    images, table = labelled
    dataset = build_dataset(DataConfig(source=str(images), size=8, labels=str(table)), progress=False)
    assert dataset.split == "80/10/10 by patient"
    places = defaultdict(set)
    for record, part in zip(dataset.source.records, dataset.parts, strict=True):
        places[record.patient].add(part)
    assert all(len(parts) == 1 for parts in places.values())
    rows = [{**row, "split": ("train", "val", "test")[int(row["patient"][1:]) % 3]} for row in table_rows()]
    official = write_table(tmp_path / "official.csv", rows)
    held = build_dataset(DataConfig(source=str(images), size=8, labels=str(official)), "test", progress=False)
    assert held.split == "official"
    assert {held.record(i).name for i in range(len(held))} == {r["file"] for r in rows if r["split"] == "test"}


def test_labels_are_part_of_a_runs_data(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    images, table = labelled
    other = write_table(tmp_path / "other.csv", changed(table_rows(), 0, oedema=1))

    def identity(labels: object) -> str:
        config = DataConfig(source=str(images), size=8, labels=str(labels), split="none")
        return build_dataset(config, progress=False).identity()

    copy = tmp_path / "elsewhere.csv"
    copy.write_bytes(table.read_bytes())
    assert identity(table) == identity(copy)
    assert len({identity(table), identity(other), identity("none"), identity("auto")}) == 4


def test_check_and_split_commands(
    labelled: tuple[Path, Path], tmp_path: Path, cli: Callable[..., Outcome], refused: Callable[..., str]
) -> None:
    images, table = labelled
    report = json.loads(cli("data", "check", images, "--size", 8, "--labels", table, "--json").out)
    assert report["labels"] == {name.replace("+", " + "): count for name, count in COMBINATIONS.items()}
    out = tmp_path / "split.json"
    made = cli("data", "split", images, "--labels", table, "--folds", 5, "--by", "patient", "--out", out)
    assert made.code == 0 and "(by patient)" in made.out
    split = json.loads(out.read_text())
    assert split["groups"] == {row["file"]: row["patient"] for row in table_rows()}
    draw_images(tmp_path / "more", 50, 12)
    refused("data", "check", tmp_path / "more", "--labels", table, says=["5 images that", "45.png, 46.png"])
    refused(
        *("data", "split", images, "--labels", table, "--folds", 5, "--by", "image", "--out", tmp_path / "no.json"),
        says=["a split by image: patient p", "--by patient"],
    )
    assert read_table(table).columns == LABELS


def test_labels_that_may_be_mistyped_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One image of `catarct` among thirty of `cataract`; grade 1 and 2, normal and abnormal are no mistakes."""
    counts = {"cataract": 30, "catarct": 1, "grade10": 30, "grade1": 2, "normal": 30, "abnormal": 2, "cataracta": 5}
    classes = [name for name, count in counts.items() for _ in range(count)]
    images = draw_images(tmp_path / "images", len(classes), 8)
    rows = [{"file": f"{k:02d}.png", "class": name} for k, name in enumerate(classes)]
    table = write_table(tmp_path / "labels.csv", rows)
    source = open_source(DataConfig(source=str(images), labels=str(table)))
    assert set(checked_labels(source).names) == set(counts)
    said = capsys.readouterr().err
    assert "labels.csv: labels that may be mistyped: 'catarct' (1 images) may be 'cataract'" in said
    assert not any(f"'{name}' (" in said for name in ("grade1", "abnormal", "cataracta", "cataract"))
