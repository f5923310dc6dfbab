"""An expansion has exactly the labels of the training images, survives a kill bit for bit, and holds no copies."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_sets import LABELS, TINY_GECA, draw_labelled, table_rows, write_table
from PIL import Image
from run_helpers import ForkServer, Outcome, draw_images, until

from morphogen.core.errors import InputError
from morphogen.core.images import read_metadata, to_pil
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.data.expansions import read_expansion
from morphogen.experiments.agreement import agreement, training_classifier
from morphogen.experiments.classifier import ClassifierSettings, predict
from morphogen.experiments.expansion import ExpansionSettings, expand
from morphogen.experiments.expansion_folder import CLASSIFIER
from morphogen.experiments.expansion_quality import measure_expansion
from morphogen.metrics.image_sets import of_dataset
from morphogen.metrics.memorization import CopyFinder
from morphogen.models import load_model
from morphogen.training.loop import train
from morphogen.training.recipes import resolve

FAST: dict[str, Any] = {
    "request": SamplingRequest(steps=2, guidance=1.5, precision="float32"),
    "batch_size": 16,
    "quiet": True,
}


def train_tiny(data: Path, out: Path, *options: object, steps: int = 2) -> Path:
    """A GeCA of some hundred weights."""
    words = list(map(str, [*TINY_GECA, *options]))
    assignments = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    flags = {"labels": None, "split": None, "fold": None, "fit": None, "init": None}
    flags |= {w[2:]: words[i + 1] for i, w in enumerate(words) if w[2:] in flags}
    data_flags = {k: v for k, v in flags.items() if v is not None and k != "init"}
    settings = {
        "model": "geca-xs",
        "data": {"source": str(data), "size": 8, **data_flags},
        "training": {"steps": steps, "batch_size": 4},
    }
    if flags["init"]:
        settings["init"] = flags["init"]
    train(resolve(settings, None, assignments), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Images, their label table, and a run trained on them. Read only."""
    root = tmp_path_factory.mktemp("expanding")
    images, table = draw_labelled(root)
    return images, table, train_tiny(images, root / "run", "--labels", table)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three unbalanced classes in folders, and a run trained on them. Read only."""
    root = tmp_path_factory.mktemp("classes")
    for name, count, first in (("common", 12, 0), ("rare", 3, 20), ("rarer", 2, 30)):
        draw_images(root / "set" / name, count, 12, first)
    return root / "set", train_tiny(root / "set", root / "run", "--split", "none")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an expansion but for what says where its run lay."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_model_learns_the_tables_labels(labelled: tuple[Path, Path, Path]) -> None:
    model = load_model(labelled[2])
    assert model.labels.names == LABELS and not model.labels.exclusive
    assert json.loads((labelled[2] / "config.json").read_text())["labels"]["names"] == list(LABELS)


def test_the_labels_are_those_of_the_training_images_times_n(labelled: tuple[Path, Path, Path], tmp_path: Path) -> None:
    images, table, run = labelled
    found = expand(load_model(run), run, None, ExpansionSettings(times=3, **FAST), tmp_path / "out")
    config = DataConfig(source=str(images), size=8, labels=str(table), split=str(run / "split.json"))
    own = build_dataset(config, progress=False)
    wanted = Counter(" + ".join(own.record(i).labels) for i in range(len(own)))
    assert len(wanted) == 6 and min(wanted.values()) <= 3  # rare combinations are among them
    assert found.labels == {name: 3 * count for name, count in sorted(wanted.items())}
    made = build_dataset(
        DataConfig(source=str(tmp_path / "out"), size=8, labels=str(tmp_path / "out" / "labels.csv"), split="none"),
        progress=False,
    )
    assert Counter(" + ".join(made.record(i).labels) for i in range(len(made))) == {k: 3 * v for k, v in wanted.items()}
    expansion = read_expansion(tmp_path / "out")
    assert expansion.images == len(made) == 3 * len(own)
    names = {own.record(i).name for i in range(len(own))}
    assert set(expansion.trained_on.images) == names
    by_name = {row["file"]: row["patient"] for row in table_rows()}
    assert set(expansion.trained_on.patients) == {by_name[name] for name in names}


def test_an_image_is_what_its_seed_and_labels_say(classes: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = classes
    expand(load_model(run), run, None, ExpansionSettings(times=2, seed=100, **FAST), tmp_path / "out")
    counts = Counter(p.parent.name for p in (tmp_path / "out").glob("*/*.png"))
    assert counts == {"common": 24, "rare": 6, "rarer": 4}
    model = load_model(run)
    model.compute_in("float32")
    path = sorted((tmp_path / "out" / "rare").glob("*.png"))[0]
    facts = read_metadata(path)
    assert facts is not None and facts["labels"] == ["rare"] and facts["seed"] >= 100
    row = model.labels.row(["rare"])[None]
    again = model.generate(Key.of([facts["seed"]]), labels=row, request=SamplingRequest(facts["sampler"], 2, 1.5))
    difference = np.asarray(Image.open(path)).astype(int) - np.asarray(to_pil(again)[0])
    assert np.abs(difference).max() <= 1  # alone and in a batch products are summed in another order


def test_shards_and_a_second_start_make_the_same_files(classes: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = classes
    whole = expand(load_model(run), run, None, ExpansionSettings(times=3, **FAST), tmp_path / "whole")
    before = content(tmp_path / "whole")
    for shard in ((1, 2), (0, 2)):
        part = expand(load_model(run), run, None, ExpansionSettings(times=3, shard=shard, **FAST), tmp_path / "shards")
    assert part == whole.model_copy(update={"out": str(tmp_path / "shards")}) and content(tmp_path / "shards") == before
    paths = sorted((tmp_path / "whole").glob("*/*.png"))
    paths[0].unlink()  # as an interruption leaves it
    paths[20].write_bytes(paths[20].read_bytes()[:100])
    (paths[5].parent / f".{paths[5].name}-abc").write_bytes(b"half")
    paths[5].unlink()
    stamps = {p: p.stat().st_mtime_ns for p in paths if p.exists()}
    assert expand(load_model(run), run, None, ExpansionSettings(times=3, **FAST), tmp_path / "whole") == whole
    assert content(tmp_path / "whole") == before
    assert sum(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items()) >= len(paths) - 2 * 16


def test_killed_and_started_again(classes: tuple[Path, Path], tmp_path: Path, forks: ForkServer) -> None:
    _, run = classes
    options = ("--times", 12, "--sampling-steps", 2, "--batch-size", 16, "--precision", "float32", "--device", "cpu")
    assert forks.run("expand", run, *options, "--out", tmp_path / "whole").code == 0
    process = forks.start("expand", run, *options, "--out", tmp_path / "killed")
    until(lambda: len(list((tmp_path / "killed").glob("*/*.png"))) > 20)
    process.send(signal.SIGKILL)
    process.wait()
    left = len(list((tmp_path / "killed").glob("*/*.png")))
    assert 20 < left < 17 * 12, "it was to be killed in the middle"
    with pytest.raises(InputError, match="is not finished; give the same morphogen expand again"):
        read_expansion(tmp_path / "killed")
    again = forks.run("expand", run, *options, "--out", tmp_path / "killed")
    assert again.code == 0, again.err
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_start_that_was_interrupted_is_gone_on_with(labelled: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Killed before its first image, whatever was there by then; and without images other settings are no matter."""
    run, out = labelled[2], tmp_path / "out"
    plan = ExpansionSettings(times=1, **FAST)
    expand(load_model(run), run, None, plan, tmp_path / "whole")
    out.mkdir()
    (out / ".expansion.json-abc").write_bytes(b"{")
    for gone in ([], ["labels.csv", "images"]):
        for name in gone:
            shutil.rmtree(out / name) if name == "images" else (out / name).unlink()
        expand(load_model(run), run, None, plan, out)
        assert content(out) == content(tmp_path / "whole") | {".expansion.json-abc": b"{"}
    shutil.rmtree(out / "images")
    (out / "images").mkdir()
    (out / "images" / ".00.png-abc").write_bytes(b"half")
    expand(load_model(run), run, None, replace(plan, seed=5), out)
    assert read_expansion(out).settings["first_seed"] == 5
    with pytest.raises(InputError, match="first_seed was 5, is 0"):
        expand(load_model(run), run, None, plan, out)


def test_everything_that_went_into_the_weights_is_written_down(classes: tuple[Path, Path], tmp_path: Path) -> None:
    """Also of starts of other data; runs that started from one another are no endless way."""
    data, first = classes
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "rare" / "20.png").unlink()
    second = train_tiny(tmp_path / "data", tmp_path / "second", "--split", "none", "--init", first)
    moved = tmp_path / "first"
    shutil.copytree(first, moved)
    for run, start in ((second, moved), (moved, second)):
        settings = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**settings, "init": str(start)}))
    found = expand(load_model(second), second, None, ExpansionSettings(times=1, **FAST), tmp_path / "out")
    assert len(found.remarks) == 1 and "few images of rare (2 images), rarer (2 images)" in found.remarks[0]
    seen = read_expansion(tmp_path / "out").trained_on
    digest = hashlib.sha256((data / "rare" / "20.png").read_bytes()).hexdigest()
    assert seen.images[f"{moved}: rare/20.png"] == digest and "rare/20.png" not in seen.images
    assert len(seen.images) == 16 + 17 and seen.unknown == (str(moved),)
    crops = train_tiny(data, tmp_path / "crops", "--split", "none", "--fit", "random")
    cropped = expand(load_model(crops), crops, None, ExpansionSettings(**FAST), tmp_path / "cropped")
    assert "random crops" in cropped.remarks[0]


def test_copies_are_told_also_mirrored_and_turned_ones(classes: tuple[Path, Path]) -> None:
    data = build_dataset(DataConfig(source=str(classes[0]), size=8, split="none", turns=True), progress=False)
    finder = CopyFinder(of_dataset(data), data.fitting, quiet=True)
    known = torch.stack([data.fixed(i)[0] for i in range(4)])
    noisy = (known.float() + 2).clamp(0, 255).to(torch.uint8)
    for same in (known, noisy, known.flip(3), known.rot90(1, (2, 3)), known.flip(2).rot90(3, (2, 3))):
        found = finder(same)
        assert all(distance <= finder.limit for distance, _ in found)
        assert [name for _, name in found] == [data.record(i).name for i in range(4)]
    other = torch.stack([torch.full((3, 8, 8), v, dtype=torch.uint8) for v in (0, 255)])
    assert all(distance > finder.limit for distance, _ in finder(other))
    plain = build_dataset(DataConfig(source=str(classes[0]), size=8, split="none", flips="none"), progress=False)
    assert max(d for d, _ in CopyFinder(of_dataset(plain), plain.fitting, quiet=True)(known.flip(3))) > finder.limit


def test_copies_are_replaced_by_the_next_seed_and_counted(
    classes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose every third seed gives a training image back, planted into what it generates."""
    data, run = classes
    model = load_model(run)
    honest = model.generate
    train_images = build_dataset(DataConfig(source=str(data), size=8, split="none"), progress=False)

    def memorised(key: Key, *args: Any, **kwargs: Any) -> torch.Tensor:
        images = honest(key, *args, **kwargs)
        for i, seed in enumerate(key.seeds):
            if seed % 3 == 0:
                images[i] = train_images.fixed(seed % 17)[0].float() / 127.5 - 1
        return images

    monkeypatch.setattr(model, "generate", memorised)
    found = expand(model, run, None, ExpansionSettings(times=2, **FAST), tmp_path / "out")
    facts = {p: read_metadata(p) for p in (tmp_path / "out").glob("*/*.png")}
    assert all(f is not None and f["seed"] % 3 and f["distance"] > f["copy_limit"] for f in facts.values())
    # 12 of the 34 numbers divide by 3; of their next seeds, 34 further on, none does
    assert found.replaced == sum(k % 3 == 0 for k in range(34)) == 12 and found.copies == 0
    assert read_expansion(tmp_path / "out").replaced == 12
    kept = expand(model, run, None, ExpansionSettings(times=2, keep_copies=True, **FAST), tmp_path / "kept")
    assert kept.copies == 12 and kept.replaced == 0
    copied = train_images.fixed(1)[0] / 127.5 - 1
    monkeypatch.setattr(model, "generate", lambda key, *a, **k: torch.stack([copied] * len(key)))
    with pytest.raises(InputError, match=r"3 seeds for image 0 \(common\) all gave near-copies"):
        expand(model, run, None, ExpansionSettings(times=2, tries=2, **FAST), tmp_path / "never")


def test_images_that_a_classifier_does_not_recognise_are_made_anew(
    classes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier is a brightness here: what is kept must follow its word, image by image."""
    run = classes[1]
    model = load_model(run)
    asked: list[Path] = []

    def classifier(train: Any, settings: Any, out: Path, quiet: bool) -> torch.nn.Module:
        asked.append(out)
        assert train.part == "train" and settings.steps == 7
        return torch.nn.Linear(1, 3)

    def brightness(network: Any, images: torch.Tensor, rows: torch.Tensor, exclusive: bool) -> np.ndarray:
        assert exclusive and rows.sum() == len(images) and images.dtype == torch.uint8
        rare = rows[:, 1].numpy() > 0  # never recognised
        return np.where(rare, 0.1, images.float().mean((1, 2, 3)).numpy() / 255)

    monkeypatch.setattr("morphogen.experiments.expansion.training_classifier", classifier)
    monkeypatch.setattr("morphogen.experiments.expansion.agreement", brightness)
    plain = expand(model, run, None, ExpansionSettings(times=2, **FAST), tmp_path / "plain")
    bright = [np.asarray(Image.open(p)).mean() / 255 for p in sorted((tmp_path / "plain").glob("*/*.png"))]
    limit = float(np.median(bright))
    settings = ExpansionSettings(times=2, agree=limit, agree_tries=2, classifier_steps=7, **FAST)
    found = expand(model, run, None, settings, tmp_path / "out")
    assert asked == [tmp_path / "out"] and found.labels == plain.labels
    facts = [read_metadata(p) for p in sorted((tmp_path / "out").glob("*/*.png"))]
    assert found.unrecognised is not None and found.unrecognised["rare"] == 6
    assert "6 of 6 of rare" in found.remarks[1] and "3 tries" in found.remarks[1]
    recognised = [f for f in facts if f is not None and f["recognised"]]
    assert all(f["agreement"] >= limit for f in recognised)
    assert len(recognised) == 34 - sum(found.unrecognised.values()) > sum(b >= limit for b in bright) - 6
    assert any(f["seed"] >= 34 for f in recognised)  # one that was made anew
    assert read_expansion(tmp_path / "out").unrecognised == found.unrecognised
    with pytest.raises(InputError, match="agree was"):
        expand(model, run, None, ExpansionSettings(times=2, agree=0.9, **FAST), tmp_path / "out")


def test_the_classifier_learns_from_training_images_alone_and_is_kept(
    classes: tuple[Path, Path], tmp_path: Path
) -> None:
    data, run = classes
    train = build_dataset(DataConfig(source=str(data), size=8, split="none"), progress=False)
    how = ClassifierSettings(2, batch_size=4)
    first = training_classifier(train, how, tmp_path, quiet=True)
    stamp = (tmp_path / CLASSIFIER).stat().st_mtime_ns
    again = training_classifier(train, how, tmp_path, quiet=True)
    images = torch.stack([train.fixed(i)[0] for i in range(4)])
    rows = torch.stack([train.fixed(i)[1] for i in range(4)])
    sure = agreement(first, images, rows, True)
    assert (tmp_path / CLASSIFIER).stat().st_mtime_ns == stamp
    assert np.array_equal(sure, agreement(again, images, rows, True)) and ((sure > 0) & (sure < 1)).all()
    np.testing.assert_allclose(sure, predict(first, images, True)[rows.numpy() > 0])
    # of labels that do not exclude one another the least sure counts, also of those that are not there
    said = predict(first, images, False)
    wanted = np.where(rows.numpy() > 0, said, 1 - said).min(1)
    np.testing.assert_allclose(agreement(first, images, rows, False), wanted)
    (tmp_path / CLASSIFIER).write_bytes(b"damaged")
    mended = agreement(training_classifier(train, how, tmp_path, quiet=True), images, rows, True)
    assert np.array_equal(sure, mended)
    other = agreement(
        training_classifier(train, ClassifierSettings(3, batch_size=4), tmp_path, True), images, rows, True
    )
    assert not np.array_equal(sure, other)
    # from the command, to the end
    found = expand(
        load_model(run), run, None, ExpansionSettings(times=1, agree=0.0, classifier_steps=1, **FAST), tmp_path / "out"
    )
    assert (
        found.unrecognised == {}
        and len(found.remarks) == 1
        and "few images of rare (3 images)" in found.remarks[0]
        and (tmp_path / "out" / CLASSIFIER).is_file()
    )


def test_what_an_expansion_covers_is_reported(classes: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the training images themselves everything; of images of one colour next to nothing."""
    train = build_dataset(DataConfig(source=str(classes[0]), size=8, split="none"), progress=False)
    for k in range(len(train)):
        to_pil(train.fixed(k)[0][None].float() / 127.5 - 1)[0].save(tmp_path / f"{k:02d}.png")
    same = measure_expansion(sorted(tmp_path.glob("*.png")), train, None, quiet=True)
    assert same is not None and same.features == "pixels" and same.recall == same.precision == 1
    for path in tmp_path.glob("*.png"):
        Image.new("RGB", (8, 8), "black").save(path)
    black = measure_expansion(sorted(tmp_path.glob("*.png")), train, None, quiet=True)
    assert black is not None and black.recall < 0.2
    assert measure_expansion(sorted(tmp_path.glob("*.png"))[:5], train, None, quiet=True) is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_images_with_transparency_and_gray_ones(tmp_path: Path, cli: Callable[..., Outcome], mode: str) -> None:
    """Expanded as they are, agreed with by a classifier that sees them on white, and classified with."""
    for name, first in (("a", 0), ("b", 20)):
        for path in sorted(draw_images(tmp_path / "set" / name, 8, 12, first).iterdir()):
            with Image.open(path) as image:
                picture = image.convert(mode)
            if mode == "RGBA":
                picture.putalpha(Image.linear_gradient("L").resize((12, 12)))
            picture.save(path)
    run, out = tmp_path / "run", tmp_path / "out"
    parts = {path: "test" if path.stem.endswith("0") else "train" for path in (tmp_path / "set").glob("*/*.png")}
    split = {path.relative_to(tmp_path / "set").as_posix(): part for path, part in parts.items()}
    (tmp_path / "split.json").write_text(
        json.dumps({"format": "morphogen-split-1", "by": "image", "folds": None, "assignment": split})
    )
    data = (tmp_path / "set", "--split", tmp_path / "split.json")
    colour = {"RGBA": "rgba", "L": "gray"}[mode]
    trained = cli("train", *data, "--colour", colour, "--out", run, *TINY_GECA, "--steps", 1)
    assert trained.code == 0, trained.err
    options = ("--times", 1, "--sampling-steps", 1, "--agree", 0.1, "--classifier-steps", 1, "--device", "cpu")
    made = cli("expand", run, *options, "--out", out, "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["images"] == 14 and json.loads(made.out)["quality"]["features"] == "pixels"
    with Image.open(next(out.glob("a/*.png"))) as image:
        assert image.mode == mode
    quick = ("--size", 8, "--steps", 2, "--batch-size", 4, "--device", "cpu", "--json")
    classified = cli("classify", *data, "--extra", out, *quick, "--out", tmp_path / "classified")
    assert classified.code == 0, classified.err
    assert json.loads(classified.out)["runs"][0]["extra_images"] == 14


def test_refusals(
    classes: tuple[Path, Path],
    labelled: tuple[Path, Path, Path],
    tmp_path: Path,
    refused: Callable[..., str],
    cli: Callable[..., Outcome],
) -> None:
    data, run = classes
    fast = ("--sampling-steps", 1, "--times", 1)
    plain = train_tiny(data, tmp_path / "plain", "--labels", "none", "--split", "none", steps=1)
    assert not load_model(plain).labels.names
    refused("expand", plain, *fast, "--out", tmp_path / "a", says=["was trained without labels"])
    refused("expand", tmp_path / "nowhere", says=["is not a run folder"])
    refused("expand", run, labelled[0], *fast, "--out", tmp_path / "a", says=["does not hold"])
    refused("expand", run, *fast, "--out", data / "a", says=["lies inside"], keeps=[data])
    refused("expand", run, *fast, "--shard", "3/2", says=["--shard 3/2: it should be I/N"])
    refused("expand", run, *fast, "--seed", 2**64 - 3, "--out", tmp_path / "a", says=["seed", "is outside"])
    refused("expand", run, *fast, "--network", "resnet", "--out", tmp_path / "b", says=["no feature network 'resnet'"])
    draw_images(tmp_path / "full", 1)
    refused(
        "expand", run, *fast, "--out", tmp_path / "full", says=["is there and no expansion"], keeps=[tmp_path / "full"]
    )
    refused("expand", run, *fast, "--agree", 1.5, "--out", tmp_path / "a", says=["--agree 1.5", "between 0 and 1"])
    refused("expand", run, *fast, "--classifier-steps", 5, says=["--classifier-steps 5", "without --agree"])
    refused("expand", run, *fast, "--guidance", -1, "--out", tmp_path / "a", says=["--guidance -1", "at least 0"])
    refused("expand", run, *fast, "--network", "onnx:no.onnx", "--out", tmp_path / "a", says=["no.onnx"])
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert cli("expand", run, *fast, "--out", tmp_path / "done").code == 0
    refused(
        "expand",
        run,
        *fast,
        "--seed",
        7,
        "--out",
        tmp_path / "done",
        says=["another expansion", "first_seed was 0, is 7"],
        keeps=[tmp_path / "done"],
    )
    shutil.copytree(data, tmp_path / "changed")
    shutil.copy(data / "rare" / "20.png", tmp_path / "changed" / "common" / "00.png")
    refused("expand", run, tmp_path / "changed", *fast, "--out", tmp_path / "c", says=["are not those that"])
    other = write_table(tmp_path / "other.csv", [{**row, "new": 1} for row in table_rows()])
    moved = tmp_path / "moved"
    shutil.copytree(labelled[2], moved)
    settings = json.loads((moved / "run.json").read_text())
    settings["data"]["labels"] = str(other)
    (moved / "run.json").write_text(json.dumps(settings))
    refused("expand", moved, *fast, "--out", tmp_path / "d", says=["drusen, oedema, scar, new", "instead of"])
    other.unlink()
    refused("expand", moved, *fast, "--out", tmp_path / "d", says=["other.csv"])
    there = cli("expand", moved, *fast, "--labels", labelled[1], "--out", tmp_path / "d")
    assert there.code == 0 and "precision" in there.out and "recall" in there.out, there.err


def test_training_refuses_labels_that_cannot_be_learnt(
    classes: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(classes[0], tmp_path / "set")
    stray = draw_images(tmp_path / "set", 1, 12, 50)
    wrong = ("train", stray, "--out", tmp_path / "run", *TINY_GECA, "--steps", 1)
    refused(*wrong, says=["1 images without a label", "50.png", "--labels none"])
    (stray / "50.png").unlink()
    names = [p.relative_to(stray).as_posix() for p in stray.glob("*/*.png")]
    split = {name: "train" if name.startswith("common/0") else "val" for name in names}
    (tmp_path / "split.json").write_text(
        json.dumps({"format": "morphogen-split-1", "by": "image", "folds": None, "assignment": split})
    )
    refused(*wrong, "--split", tmp_path / "split.json", says=["no image of the train part", "has the label 'rare'"])
    assert not (tmp_path / "run" / "model.safetensors").exists()
