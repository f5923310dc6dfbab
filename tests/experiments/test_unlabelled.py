"""`--unlabelled`: images without labels beside labelled ones, in training, splits, expansions and classification."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from label_sets import TINY_GECA, write_table
from PIL import Image
from run_helpers import ForkServer, Outcome, assert_same_run, draw_images, until

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.data.splits import read_split
from morphogen.data.unlabelled import PREFIX
from morphogen.models import load_model
from morphogen.training.checkpoint import list_checkpoints

Cli = Callable[..., Outcome]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two classes of 15 images, and 60 without labels. Read only."""
    root = tmp_path_factory.mktemp("unlabelled")
    draw_images(root / "set" / "round", 15, 12)
    draw_images(root / "set" / "square", 15, 12, 20)
    return root / "set", draw_images(root / "more", 60, 12, 100)


def opened(source: Path, unlabelled: Path | str, **settings: Any) -> ImageDataset:
    return build_dataset(DataConfig(source=str(source), unlabelled=str(unlabelled), size=8, **settings), progress=False)


def test_unlabelled_images_are_trained_on_without_labels(sets: tuple[Path, Path]) -> None:
    data = opened(*sets)
    assert data.labels.names == ("round", "square") and data.labels.exclusive
    assert len(data.unlabelled) == 60 and len(data.labelled) == 24  # 80 % of 30; all unlabelled ones are for training
    assert data.counts == {"train": 84, "val": 3, "test": 3}
    assert data.label_counts() == {"round": 12, "square": 12}
    for i in range(len(data)):
        row = data.fixed(i)[1]
        assert row.isnan().all() if data.record(i).unlabelled else sorted(row.tolist()) == [0, 1]
    assert not data.spread_labels(30).isnan().any()
    held_out = data.other("val")
    assert not held_out.unlabelled and len(held_out) == 3
    assert data.summary()["unlabelled_images"] == 60


def test_labelled_images_keep_half_of_every_batch(sets: tuple[Path, Path], tmp_path: Path) -> None:
    data = opened(*sets)
    seen = [data.record(data.index(n)) for n in range(240)]
    assert [r.unlabelled for r in seen] == [False, True] * 120
    assert set(Counter(r.name for r in seen if r.unlabelled).values()) == {2}  # 120 of 60, 120 of 24
    assert set(Counter(r.name for r in seen if not r.unlabelled).values()) == {5}
    few = opened(sets[0], draw_images(tmp_path / "few", 6, 12, 300))
    assert sum(few.record(few.index(n)).unlabelled for n in range(len(few))) == 6  # not more often than the others


def test_a_hidden_row_is_what_an_unknown_one_becomes(sets: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    made = cli("train", sets[0], "--unlabelled", sets[1], *TINY_GECA, "--steps", 1, "--out", tmp_path / "run")
    assert made.code == 0, made.err
    model: Any = load_model(tmp_path / "run")
    rows = torch.tensor([[1.0, 0.0], [float("nan"), float("nan")], [0.0, 1.0]])
    shown = model.hide_labels(rows, Key.of(range(3)))
    assert shown[1].tolist() == [-1.0, -1.0] and not shown.isnan().any()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "unlabelled images: 60" in card and str(sets[1]) not in card
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert settings["data"]["unlabelled"] == str(sets[1])
    split = read_split(tmp_path / "run" / "split.json")
    assert sum(part == "train" and name.startswith(PREFIX) for name, part in split["assignment"].items()) == 60


def test_a_copy_of_a_labelled_or_held_out_image_is_refused(
    sets: tuple[Path, Path], tmp_path: Path, refused: Refused
) -> None:
    data = opened(*sets)
    train, test = data.record(data.labelled[0]).name, data.other("test").record(0).name
    for name, what in ((train, "labelled"), (test, "test")):
        more = shutil.copytree(sets[1], tmp_path / what)
        shutil.copy(sets[0] / name, more / "another name.png")
        said = refused("train", sets[0], "--unlabelled", more, *TINY_GECA, "--out", tmp_path / "run")
        assert f"its image another name.png is also the {what} image {name}" in said, said
        assert not (tmp_path / "run").exists()
    Image.open(sets[0] / train).save(tmp_path / "test" / "a third.bmp")  # the same pixels in another file
    said = refused("train", sets[0], "--unlabelled", tmp_path / "test", *TINY_GECA, "--out", tmp_path / "run")
    assert f"the test image {test}" in said and "1 more" in said and "a third.bmp" in said  # the graver one first


def test_where_it_has_no_use_it_is_refused(sets: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    images, more = sets
    out = ("--out", tmp_path / "out")
    assert "unet-50k takes no labels" in refused("train", images, "--unlabelled", more, "--model", "unet-50k", *out)
    assert "have no labels either" in refused("train", more, "--unlabelled", images, *TINY_GECA, *out)
    assert "labels is none" in refused("train", images, "--unlabelled", more, "--labels", "none", *TINY_GECA, *out)
    assert "label table" in refused("train", images, "--unlabelled", "rows", *TINY_GECA, *out)
    said = refused("train", images, "--unlabelled", tmp_path / "nowhere", *TINY_GECA, *out)
    assert "--unlabelled" in said and "nowhere does not exist" in said
    assert "give rows" in refused("data", "split", images, "--unlabelled", more, *out)


def table(folder: Path) -> tuple[Path, Path]:
    """36 images of 12 patients, of whom every third image has no label, and all of the last three have none."""
    images = draw_images(folder / "images", 36, 12)
    rows = [
        {
            "file": f"{k:02d}.png",
            "class": "" if k % 3 == 2 or k >= 27 else ("round", "square")[k % 2],
            "patient": f"p{k // 3}",
        }
        for k in range(36)
    ]
    return images, write_table(folder / "labels.csv", rows)


def test_rows_without_a_label_stay_with_their_patient(tmp_path: Path, cli: Cli, refused: Refused) -> None:
    images, labels = table(tmp_path)
    split = tmp_path / "split.json"
    assert "--unlabelled rows" in refused("data", "split", images, "--labels", labels, "--folds", 3, "--out", split)
    rows = ("--labels", labels, "--unlabelled", "rows")
    assert cli("data", "split", images, *rows, "--folds", 3, "--out", split).code == 0
    assert "label (none): 18" in cli("data", "check", images, *rows, "--size", 8).out
    assigned = read_split(split)["assignment"]
    assert len(assigned) == 27 and all(
        assigned[f"{k:02d}.png"] == assigned[f"{k - 1:02d}.png"] for k in range(2, 27, 3)
    )
    data = opened(images, "rows", labels=str(labels), split=str(split), fold=0)
    unlabelled = {data.record(i).name for i in data.unlabelled}
    assert {f"{k}.png" for k in range(27, 36)} < unlabelled  # patients of whom nothing is held out
    held_out = {name for name, fold in assigned.items() if fold in (0, 1)}
    assert not unlabelled & held_out and len(unlabelled) == 9 + 3
    assert not any(data.other("test").record(i).unlabelled for i in range(len(data.other("test"))))
    auto = opened(images, "rows", labels=str(labels))
    of = dict(zip((r.name for r in auto.source.records), auto.parts, strict=True))
    assert all(of[f"{k:02d}.png"] == of[f"{k - 1:02d}.png"] for k in range(2, 27, 3))
    assert all(of[f"{k}.png"] == "train" for k in range(27, 36))


def test_a_held_out_patients_scan_in_the_folder_is_refused(tmp_path: Path) -> None:
    images = draw_images(tmp_path / "numbered", 12, 12)
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
    for k, path in enumerate(sorted(images.iterdir())):
        path.rename(tmp_path / "set" / "ab"[k % 2] / f"P{k // 2}_{k}.png")
    more = draw_images(tmp_path / "more", 2, 12, 50)
    (more / "50.png").rename(more / "P3_50.png")
    from morphogen.data.sources import open_source
    from morphogen.data.splits import make_split, write_split

    source = open_source(DataConfig(source=str(tmp_path / "set"), size=8))
    made = make_split(source, folds=3, by="patient", pattern=r"(P\d+)_")
    write_split(made, tmp_path / "split.json")
    fold = next(int(place) for name, place in made["assignment"].items() if "P3_" in name)
    settings: dict[str, Any] = {"split": str(tmp_path / "split.json")}
    with pytest.raises(InputError, match=r"its image P3_50.png is of patient P3, which is in the test part"):
        opened(tmp_path / "set", more, fold=fold, **settings)
    with pytest.raises(InputError, match=r"patient P3, which is in the val part"):
        opened(tmp_path / "set", more, fold=(fold - 1) % 3, **settings)
    assert len(opened(tmp_path / "set", more, fold=(fold + 1) % 3, **settings).unlabelled) == 2


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_run(
    sets: tuple[Path, Path], tmp_path: Path, forks: ForkServer, refused: Refused
) -> None:
    words = ("train", sets[0], *TINY_GECA, "--steps", 12, "--set", "training.saving.checkpoint_every=3")
    whole = forks.run(*words, "--unlabelled", sets[1], "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    parts = tmp_path / "parts"
    process = forks.start(*words, "--unlabelled", sets[1], "--out", parts)
    until(lambda: list_checkpoints(parts / "checkpoints"))
    process.kill()
    assert "data.unlabelled" in refused(*words, "--out", parts) or "are not those" in refused(*words, "--out", parts)
    moved = shutil.copytree(sets[1], tmp_path / "elsewhere")
    assert forks.run(*words, "--unlabelled", moved, "--out", parts).code == 0
    assert_same_run(tmp_path / "whole", parts)


@pytest.mark.slow
def test_expand_and_classify_see_it(sets: tuple[Path, Path], tmp_path: Path, cli: Cli, refused: Refused) -> None:
    """The expansion has as many images as there are labelled ones, and says that its run saw the others."""
    assert cli("data", "split", sets[0], "--out", tmp_path / "split.json").code == 0
    words = ("--split", tmp_path / "split.json")
    made = cli("train", sets[0], "--unlabelled", sets[1], *words, *TINY_GECA, "--steps", 1, "--out", tmp_path / "run")
    assert made.code == 0, made.err
    expand = ("--times", 1, "--sampling-steps", 1, "--precision", "float32", "--device", "cpu")
    made = cli("expand", tmp_path / "run", *expand, "--out", tmp_path / "more")
    assert made.code == 0 and len(list((tmp_path / "more").glob("*/*.png"))) == 24, made.err
    seen = json.loads((tmp_path / "more" / "expansion.json").read_text())["trained_on"]["images"]
    assert sum(name.startswith(PREFIX) for name in seen) == 60 and len(seen) == 84
    quick = ("--size", 8, "--steps", 2, "--batch-size", 4, "--device", "cpu", "--extra", tmp_path / "more")
    assert cli("classify", sets[0], *words, *quick, "--out", tmp_path / "fine").code == 0
    # Another split of the same images, whose test part holds what this run saw without its label.
    both = shutil.copytree(sets[0], tmp_path / "both")
    shutil.copy(next(sets[1].iterdir()), both / "round" / "seen.png")
    split = json.loads((tmp_path / "split.json").read_text())
    split["assignment"]["round/seen.png"] = "test"
    (tmp_path / "other.json").write_text(json.dumps(split))
    said = refused("classify", both, "--split", tmp_path / "other.json", *quick, "--out", tmp_path / "leaks")
    assert "was trained on 1 images of this test part, such as unlabelled: " in said
