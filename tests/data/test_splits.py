"""Splits hold groups together, spread classes, and are checked when they are read."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.data.sources import open_source
from morphogen.data.splits import assign_parts, distribute, make_split, parse_ratios, read_split, write_split

Save = Callable[..., Path]
GROUPS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["x", "y", None])), min_size=1, max_size=200)


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.sampled_from([(80, 10, 10), (1, 1, 1, 1, 1), (50, 50, 0)]), st.integers(0, 2**64 - 1))
def test_groups_never_straddle_bins(records: list[tuple[int, str | None]], shares: tuple[int, ...], seed: int) -> None:
    groups, labels = [f"p{g}" for g, _ in records], [label for _, label in records]
    bins = distribute(groups, labels, shares, seed)
    of_group = defaultdict(set)
    for group, chosen in zip(groups, bins, strict=True):
        of_group[group].add(chosen)
    assert all(len(b) == 1 for b in of_group.values())
    assert all(shares[b] > 0 for b in bins)
    assert bins == distribute(groups, labels, shares, seed)


@settings(max_examples=50, deadline=None)
@given(st.integers(10, 400), st.integers(1, 6), st.integers(0, 2**64 - 1))
def test_parts_and_classes_have_their_shares(count: int, classes: int, seed: int) -> None:
    names, labels = [f"{k}.png" for k in range(count)], [f"c{k % classes}" for k in range(count)]
    bins = distribute(names, labels, (80, 10, 10), seed)
    sizes = Counter(bins)
    assert set(sizes) == {0, 1, 2}
    assert all(abs(sizes[b] - share * count) <= 1 for b, share in enumerate((0.8, 0.1, 0.1)))
    for label in set(labels):
        chosen = Counter(b for b, own in zip(bins, labels, strict=True) if own == label)
        assert all(abs(chosen[b] - share * sum(chosen.values())) <= 2 for b, share in enumerate((0.8, 0.1, 0.1)))


def test_the_order_of_records_does_not_matter_and_the_seed_does() -> None:
    names = [f"{k}.png" for k in range(100)]
    forward = dict(zip(names, distribute(names, [None] * 100, (80, 10, 10), 0), strict=True))
    backward = dict(zip(names[::-1], distribute(names[::-1], [None] * 100, (80, 10, 10), 0), strict=True))
    other = dict(zip(names, distribute(names, [None] * 100, (80, 10, 10), 1), strict=True))
    assert forward == backward != other


@pytest.fixture
def patients(tmp_path: Path, save: Save) -> Path:
    """Eight patients with three scans each, in two classes."""
    for k in range(24):
        save(f"scans/{'ab'[k // 3 % 2]}/p{k // 3}_{k % 3}.png", 8, 8, seed=k)
    return tmp_path / "scans"


def source(path: Path) -> Any:
    return open_source(DataConfig(source=str(path)))


def test_folds_by_patient(patients: Path, tmp_path: Path) -> None:
    made = make_split(source(patients), folds=4, by="patient", pattern=r"(p\d+)_")
    write_split(made, tmp_path / "deep" / "split.json")
    assert read_split(tmp_path / "deep" / "split.json") == made
    assert made["format"] == "morphogen-split-1" and made["by"] == "patient" and made["folds"] == 4
    tested: list[str] = []
    for fold in range(4):
        config = DataConfig(source=str(patients), size=8, split=str(tmp_path / "deep" / "split.json"), fold=fold)
        parts = {}
        for part in ("train", "val", "test"):
            dataset = build_dataset(config, part, progress=False)
            parts[part] = {dataset.source.records[i].name for i in dataset.indices}
        owners = {part: {n.split("/")[1][:2] for n in names} for part, names in parts.items()}
        assert (
            not owners["train"] & owners["val"]
            and not owners["train"] & owners["test"]
            and not owners["val"] & owners["test"]
        )
        assert {n[0] for n in parts["test"]} == {"a", "b"}  # stratified
        folds = {made["assignment"][n] for n in parts["test"]}, {made["assignment"][n] for n in parts["val"]}
        assert folds == ({fold}, {(fold + 1) % 4})
        tested += parts["test"]
    assert len(tested) == len(set(tested)) == 24


def test_by_folder_and_ratios(tmp_path: Path, save: Save) -> None:
    for k in range(20):
        save(f"set/case{k // 2}/{k}.png", 8, 8)
    made = make_split(source(tmp_path / "set"), ratios=(60, 20, 20), by="folder")
    assert Counter(made["assignment"].values()) == {"train": 12, "val": 4, "test": 4}
    parts = defaultdict(set)
    for name, part in made["assignment"].items():
        parts[name.split("/")[0]].add(part)
    assert all(len(p) == 1 for p in parts.values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"by": "patient"}, "--by patient needs --pattern"),
        ({"by": "slide"}, "--by slide needs --pattern"),
        ({"by": "patient", "pattern": "(p"}, "is not a regular expression"),
        ({"by": "patient", "pattern": "p[0-9]"}, "exactly one"),
        ({"by": "patient", "pattern": "(p)([0-9])"}, "exactly one"),
        ({"by": "patient", "pattern": "(p[0-6])_"}, "finds no patient in 3 of 24 names, such as b/p7_0.png"),
        ({"by": "image", "pattern": "(p)"}, "--pattern is for --by patient"),
        ({"folds": 2}, "--folds 2: at least 3"),
        ({"folds": 5, "ratios": (80, 10, 10)}, "exclude each other"),
        ({"folds": 9, "by": "patient", "pattern": r"(p\d)"}, "too few groups to fill 9 parts: 8 by patient"),
        ({"ratios": (80, 20)}, "three numbers"),
        ({"ratios": (-80, 90, 90)}, "three numbers"),
    ],
)
def test_wrong_wishes(patients: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_split(source(patients), **settings)


def test_ratios_are_parsed() -> None:
    assert parse_ratios("80/10/10") == [80, 10, 10]
    for text in ("80-10-10", "a/b/c", "nan/1/1", ""):
        with pytest.raises(InputError, match="80/10/10"):
            parse_ratios(text)


def test_split_files_are_checked(patients: Path, tmp_path: Path) -> None:
    good = make_split(source(patients))
    folds = make_split(source(patients), folds=3)
    path = tmp_path / "split.json"

    def parts(content: Any, fold: int | None = None) -> Any:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        config = DataConfig(source=str(patients), split=str(path), fold=fold)
        return assign_parts(config, source(patients))[0]

    assert Counter(parts(good)) == {"train": 19, "val": 3, "test": 2} or len(parts(good)) == 24
    assert Counter(parts(folds, 2)) == {"train": 8, "val": 8, "test": 8}
    missing = {**good, "assignment": {**good["assignment"], "a/gone.png": "test", "b/gone.png": "val"}}
    fewer = {**good, "assignment": dict(list(good["assignment"].items())[1:])}
    wrong = {**good, "assignment": {**good["assignment"], "a/p0_0.png": "holdout"}}
    for content, fold, says in [
        ("{", None, "is not a split file: "),
        ([1], None, 'its "format" should be "morphogen-split-1"'),
        ({**good, "format": "other"}, None, 'its "format" should be'),
        ({**good, "by": "patch"}, None, "is not a whole split file"),
        ({**folds, "folds": "3"}, 0, '"folds" should be null or at least 3'),
        (missing, None, "names 2 images that .* does not hold, such as a/gone.png"),
        (fewer, None, "holds 1 images that .* does not assign, such as a/p0_0.png"),
        (wrong, None, "assigns 'a/p0_0.png' to 'holdout'; it should be train, val or test"),
        (folds, None, "has 3 folds; choose one with --fold 0..2"),
        (folds, 3, "--fold 3 is out of range"),
        (good, 0, "--fold 0 needs a split file with folds"),
        ({**folds, "assignment": {**folds["assignment"], "a/p0_0.png": 3}}, 0, "to 3; it should be a fold 0..2"),
    ]:
        with pytest.raises(InputError, match=says):
            parts(content, fold)
    with pytest.raises(InputError, match=r"the split file .*nowhere\.json cannot be read: No such file"):
        assign_parts(DataConfig(source=str(patients), split=str(tmp_path / "nowhere.json")), source(patients))


def test_official_parts_are_kept(tmp_path: Path, save: Save) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        for k in range(count):
            save(f"set/{part}/{k}.png", 8, 8)
    dataset = build_dataset(DataConfig(source=str(tmp_path / "set"), size=8), "val", progress=False)
    assert dataset.split == "official" and dataset.counts == {"train": 3, "val": 2, "test": 2} and len(dataset) == 2
