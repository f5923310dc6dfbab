"""`classify`: folds by patient, expansions that saw a test patient refused, results that add up and go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_sets import COMBINATIONS, TINY_GECA, draw_labelled, table_rows, write_table
from run_helpers import Outcome, draw_images, snapshot
from safetensors import safe_open

from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.data.expansions import Expansion, TrainedOn, write_expansion
from morphogen.experiments.classifier import (
    ClassifierSettings,
    Examples,
    _batches,
    build_network,
    geometric,
    predict,
    train_classifier,
)

Cli = Callable[..., Outcome]
QUICK = ("--size", 8, "--steps", 2, "--batch-size", 4, "--device", "cpu")
EXPAND = ("--times", 1, "--sampling-steps", 1, "--precision", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images with a multi-label table, patients and eyes. Read only."""
    return draw_labelled(tmp_path_factory.mktemp("classify"))


@pytest.fixture
def split(labelled: tuple[Path, Path], tmp_path: Path, cli: Cli) -> Path:
    """Three folds by patient."""
    images, table = labelled
    made = cli("data", "split", images, "--labels", table, "--folds", 3, "--out", tmp_path / "split.json")
    assert made.code == 0, made.err
    return tmp_path / "split.json"


def run(cli: Cli, *argv: object) -> dict[str, Any]:
    outcome = cli("classify", *argv, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    return dict(json.loads(outcome.out))


@pytest.mark.slow
def test_folds_their_expansions_and_a_baseline(
    labelled: tuple[Path, Path], split: Path, tmp_path: Path, cli: Cli, refused: Callable[..., str]
) -> None:
    images, table = labelled
    data = (images, "--labels", table, "--split", split)
    for fold in range(3):
        out = tmp_path / f"run{fold}"
        trained = cli("train", *data, "--fold", fold, "--out", out, *TINY_GECA, "--steps", 1, "--device", "cpu")
        assert trained.code == 0, trained.err
        expanded = cli("expand", out, *EXPAND, "--out", tmp_path / "expanded" / f"fold{fold}")
        assert expanded.code == 0, expanded.err
    alone = run(cli, *data, "--out", tmp_path / "alone")
    template = tmp_path / "expanded" / "fold{fold}"
    more = run(cli, *data, "--extra", template, "--baseline", tmp_path / "alone", "--out", tmp_path / "more")
    assert [(r["fold"], r["extra_images"] == r["train_images"]) for r in more["runs"]] == [(k, True) for k in range(3)]
    assert all(r["extra_images"] == 0 for r in alone["runs"]) and alone["over"] == "folds"
    # every image is tested once; eyes are fewer than images and as many as the table has
    eyes = {(row["patient"], row["eye"]) for row in table_rows()}
    assert sum(r["image"]["count"] for r in more["runs"]) == sum(COMBINATIONS.values())
    assert sum(r["eye"]["count"] for r in more["runs"]) == len(eyes) and more["level"] == "eye"
    for name, figure in more["figures"]["eye"].items():
        values = [r["eye"][name] for r in more["runs"]]
        assert figure["values"] == values
        there = [v for v in values if v is not None]
        assert figure["mean"] == pytest.approx(np.mean(there))
        against = more["baseline"]["figures"]["eye"][name]
        assert against["values"] == alone["figures"]["eye"][name]["values"]
    assert "paired t-test" in more["baseline"]["test"] and "3 folds" in more["baseline"]["test"]
    page = (tmp_path / "more" / "report.html").read_text()
    assert "geometric augmentation, expanded" in page and "http" not in page and "scar" in page

    # done already: not a file of a fold changes; another seed is another training
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "more").glob("fold-*.json")}
    (tmp_path / "more" / "fold-1-seed-0.json").unlink()  # as if it had been interrupted
    again = run(cli, *data, "--extra", template, "--baseline", tmp_path / "alone", "--out", tmp_path / "more")
    assert again == more
    kept = [p for p, stamp in files.items() if p.stat().st_mtime_ns == stamp]
    assert len(files) == 3 and {p.name for p in kept} == {"fold-0-seed-0.json", "fold-2-seed-0.json"}

    # the leaks: another fold's expansion, one folder for all, a renamed leak, a patient of the test fold
    says = ["is refused: its run", "trained on", "of this test part", "same --split and --fold"]
    classify = ("classify", *data, *QUICK, "--out", tmp_path / "never")
    refused(*classify, "--extra", tmp_path / "expanded" / "fold1", "--fold", 0, says=says)
    refused(*classify, "--extra", tmp_path / "expanded" / "fold1", says=["one folder for 3 folds", "{fold}"])
    leak = tmp_path / "leak0"
    shutil.copytree(tmp_path / "expanded" / "fold0", leak)
    facts = json.loads((leak / "expansion.json").read_text())
    test_names = [r["file"] for r in table_rows() if json.loads(split.read_text())["assignment"][r["file"]] == 0]
    patient = next(r["patient"] for r in table_rows() if r["file"] == test_names[0])
    honest = dict(facts["trained_on"])
    digest = json.loads((tmp_path / "expanded" / "fold1" / "expansion.json").read_text())["trained_on"]["images"]
    for trained_on, word in [
        ({**honest, "images": {**honest["images"], "renamed.png": digest[test_names[0]]}}, "renamed.png"),
        ({**honest, "patients": [*honest["patients"], patient]}, f"such as {patient}"),
    ]:
        (leak / "expansion.json").write_text(json.dumps({**facts, "trained_on": trained_on}))
        refused(*classify, "--extra", leak, "--fold", 0, says=[*says, word])
    (leak / "expansion.json").write_text(json.dumps({**facts, "labels": {"names": ["drusen"], "exclusive": False}}))
    refused(*classify, "--extra", leak, "--fold", 0, says=["has the labels drusen, but"])
    (leak / "expansion.json").write_text(json.dumps({**facts, "replaced": None}))
    refused(*classify, "--extra", leak, "--fold", 0, says=["is not finished"])
    (leak / "expansion.json").write_text(json.dumps(facts))
    next((leak / "images").glob("*.png")).unlink()
    refused(*classify, "--extra", leak, "--fold", 0, says=["lists 1 files that"])
    refused(*classify, "--extra", images, "--fold", 0, says=["holds no expansion.json"])
    other = write_table(tmp_path / "other.csv", [{**r, "scar": 1 - r["scar"]} for r in table_rows()])
    refused(
        *("classify", images, "--labels", other, "--split", split, *QUICK, "--out", tmp_path / "never"),
        *("--baseline", tmp_path / "alone"),
        says=["was tested on other images, folds or labels"],
    )
    changed = tmp_path / "changed"  # another picture of the same name
    shutil.copytree(images, changed)
    shutil.copy(changed / "01.png", changed / "00.png")
    refused(
        *("classify", changed, *data[1:], *QUICK, "--out", tmp_path / "never", "--baseline", tmp_path / "alone"),
        says=["was tested on other images, folds or labels"],
    )
    old = {**json.loads((tmp_path / "alone" / "results.json").read_text()), "format": "morphogen-classification-1"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    refused(*classify, "--baseline", tmp_path / "old.json", says=["old.json", "make it anew"])


@pytest.mark.slow
def test_classes_seeds_and_augmentation(tmp_path: Path, cli: Cli, refused: Callable[..., str]) -> None:
    for name, first in (("a", 0), ("b", 20)):
        draw_images(tmp_path / "set" / name, 12, 12, first)
    results = run(cli, tmp_path / "set", "--seeds", 2, "--augment", "none", "--out", tmp_path / "r")
    assert results["over"] == "seeds" and results["units"] == [0, 1] and results["level"] == "image"
    assert results["figures"]["image"]["sensitivity"]["deviation"] is not None
    assert results["name"] == "no augmentation" and any("of one patient" in remark for remark in results["remarks"])
    one = json.loads((tmp_path / "r" / "test-seed-0.json").read_text())
    np.testing.assert_allclose(np.sum(one["probabilities"], axis=1), 1, atol=1e-5)  # classes exclude one another

    # what is done already is done again for other pixels, and the baseline's other pixels are named
    data = (tmp_path / "set", "--seeds", 2, "--augment", "none", "--domain", "pathology")
    other = run(cli, *data, "--baseline", tmp_path / "r", "--out", tmp_path / "other")
    assert any(f"{tmp_path / 'r'} had another domain, flip_y, turns" in remark for remark in other["remarks"])
    run(cli, *data, "--out", tmp_path / "r")
    assert json.loads((tmp_path / "r" / "test-seed-0.json").read_text())["pixels"]["domain"] == "pathology"
    # a table that learns which eyes there are changes no training, but adds their scores
    names = [p.relative_to(tmp_path / "set").as_posix() for p in sorted((tmp_path / "set").glob("*/*.png"))]
    rows = [{"file": name, "patient": k // 2} for k, name in enumerate(names)]
    data = (tmp_path / "set", "--labels", tmp_path / "t.csv", "--out", tmp_path / "eyes")
    write_table(tmp_path / "t.csv", rows)
    assert run(cli, *data)["level"] == "image"
    stamp = (tmp_path / "eyes" / "test-seed-0.json").stat().st_mtime_ns
    write_table(tmp_path / "t.csv", [{**row, "eye": "left"} for row in rows])
    eyes = run(cli, *data)
    assert eyes["level"] == "eye" and 2 * eyes["runs"][0]["eye"]["count"] == eyes["runs"][0]["image"]["count"]
    assert (tmp_path / "eyes" / "test-seed-0.json").stat().st_mtime_ns == stamp
    before = snapshot(tmp_path / "set")
    refused("classify", tmp_path / "set", "--fold", 0, says=["--fold 0 needs a split file"])
    refused("classify", tmp_path / "set", "--steps", 1, "--epochs", 1, says=["give one of --steps and --epochs"])
    refused(
        "classify", tmp_path / "set", "--augment", "colour", says=["--augment colour: it should be geometric or none"]
    )
    refused("classify", tmp_path / "set", "--test", "z", says=["--test z: it should be t or wilcoxon"])
    refused("classify", tmp_path / "set" / "a", says=["no labels"])
    refused("classify", tmp_path / "set", *QUICK, "--baseline", tmp_path / "set", says=["cannot be read"])
    refused(
        *("classify", tmp_path / "set", *QUICK, "--baseline", tmp_path / "r", "--out", tmp_path / "s"),
        says=["has the seeds [0, 1], not [0]"],
    )
    assert snapshot(tmp_path / "set") == before
    draw_images(tmp_path / "set", 1, 12, 50)
    said = refused("classify", tmp_path / "set", *QUICK, says=["1 images without a label", "50.png"])
    assert "--labels none" not in said  # it would be refused too


@pytest.mark.slow
def test_a_copy_across_folds_is_the_datas_fault_not_the_expansions(tmp_path: Path, cli: Cli) -> None:
    """The lists of what a run saw are made up here; that `expand` writes them, another test checks."""
    for name, first in (("a", 0), ("b", 20)):
        draw_images(tmp_path / "set" / name, 12, 12, first)
    names = sorted(p.relative_to(tmp_path / "set").as_posix() for p in (tmp_path / "set").glob("*/*.png"))
    shutil.copy(tmp_path / "set" / names[0], tmp_path / "set" / names[1])
    for name in names[2:4]:  # not to be read, which makes no copies of them
        (tmp_path / "set" / name).unlink()
        os.mkfifo(tmp_path / "set" / name)
    part = {name: "train" if k % 2 else "test" for k, name in enumerate(names)}
    split = {"format": "morphogen-split-1", "by": "image", "folds": None, "assignment": part}
    (tmp_path / "split.json").write_text(json.dumps(split))
    (tmp_path / "extra" / "a").mkdir(parents=True)
    shutil.copy(tmp_path / "set" / names[5], tmp_path / "extra" / "a" / "0.png")
    data = build_dataset(DataConfig(source=str(tmp_path / "set"), size=8, split=str(tmp_path / "split.json")))
    seen = {name: data.digests[name] for name in names if part[name] == "train"}
    facts = Expansion(
        run="run",
        settings={},
        labels=data.labels,
        times=1,
        images=1,
        trained_on=TrainedOn(source="set", fingerprint="", images=seen),
        replaced=0,
    )
    write_expansion(tmp_path / "extra", facts)
    argv = (tmp_path / "set", "--split", tmp_path / "split.json", "--extra", tmp_path / "extra")
    remarks = run(cli, *argv, "--out", tmp_path / "out")["remarks"]
    assert any(
        f"1 test images are exact copies of training images, such as {names[0]} of {names[1]}" in r for r in remarks
    )


def coloured(tmp_path: Path) -> tuple[Examples, Any]:
    """Reddish and greenish squares, and how such images may be mirrored."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (32, 3, 16, 16), generator=draw, dtype=torch.uint8)
    images[::2, 0] += 130
    images[1::2, 1] += 130
    draw_images(tmp_path / "set", 12, 16)
    recipe = build_dataset(DataConfig(source=str(tmp_path / "set"), size=16), progress=False).fitting
    return Examples(images, torch.eye(2)[torch.arange(32) % 2]), recipe


@pytest.mark.slow
def test_a_classifier_is_a_function_of_its_seed(tmp_path: Path) -> None:
    data, recipe = coloured(tmp_path)
    settings = ClassifierSettings(steps=2, batch_size=4)
    first, again, other = (
        predict(train_classifier(data, None, True, recipe, settings, seed, quiet=True), data.images[:8], True)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("schedule", "mix", "generated", "shares"),
    [
        ("mix", 0.5, 160, (0.5, 0.5)),
        ("mix", 1.0, 160, (5 / 6, 5 / 6)),  # their share of the whole set
        ("mix", 0.5, 8, (0.2, 0.2)),  # no more often than the real images
        ("both", 0.25, 160, (0.25, 0.0)),
        ("pretrain", 0.5, 160, (1.0, 0.0)),
        ("mix", 0.0, 160, (0.0, 0.0)),
    ],
)
def test_real_images_keep_their_share_of_every_batch(
    schedule: Any, mix: float, generated: int, shares: tuple[float, float]
) -> None:
    real = Examples(torch.zeros(32, 3, 8, 8, dtype=torch.uint8), torch.zeros(32, 2))
    extra = Examples(torch.ones(generated, 3, 8, 8, dtype=torch.uint8), torch.ones(generated, 2))
    settings = ClassifierSettings(steps=60, batch_size=8, mix=mix, schedule=schedule)
    counts = [int(rows[:, 0].sum()) for _, rows in _batches(real, extra, settings, 0)]
    assert all(
        int(images.sum()) == 3 * 64 * n
        for (images, _), n in zip(_batches(real, extra, settings, 0), counts, strict=True)
    )
    for half, share in zip((counts[:30], counts[30:]), shares, strict=True):
        assert abs(sum(half) - share * 8 * 30) <= 1  # exact but for one image that is carried over
        assert all(abs(n - share * 8) < 1 for n in half)
    # real images come in the order in which they come without an expansion, each once an epoch
    numbered = Examples(torch.arange(32, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8), real.rows)
    order = [int(n) for images, _ in _batches(numbered, None, settings, 0) for n in images[:, 0, 0, 0]]
    assert all(sorted(order[k : k + 32]) == list(range(32)) for k in range(0, 320, 32))


def test_a_network_of_timm_and_weights_of_a_file(tmp_path: Path, cli: Cli, refused: Callable[..., str]) -> None:
    import timm
    from safetensors.torch import save_file

    for name, first in (("a", 0), ("b", 20)):
        draw_images(tmp_path / "set" / name, 12, 36, first)
    file = tmp_path / "w.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), file)  # ten labels, not two
    data = (tmp_path / "set", "--network", "timm:test_resnet", "--size", 32, "--steps", 1, "--device", "cpu")
    for options in ((), ("--weights", file)):
        outcome = cli("classify", *data, *options, "--out", tmp_path / f"r{len(options)}", "--json")
        assert outcome.code == 0, outcome.err
        said = json.loads(outcome.out)["network"]
        assert said == f"timm:test_resnet, {f'weights {file}' if options else 'untrained'}, Adam"
    one, other = (json.loads((tmp_path / r / "test-seed-0.json").read_text())["probabilities"] for r in ("r0", "r2"))
    assert not np.allclose(one, other)
    network = build_network(2, 0, "timm:test_resnet", str(file))
    with safe_open(file, "pt") as saved:
        assert torch.equal(network.state_dict()["conv1.0.weight"], saved.get_tensor("conv1.0.weight"))
    out = ("--out", tmp_path / "never")
    refused("classify", *data, *out, "--weights", tmp_path / "none.safetensors", says=["none.safetensors: there is no"])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    refused("classify", *data, *out, "--weights", tmp_path / "bad.safetensors", says=["cannot be read as safetensors"])
    other_network = ("--network", "resnet34", "--weights", file)
    refused("classify", *data, *out, *other_network, says=["is of another network", "--network"])
    refused("classify", *data, *out, "--network", "resnet34", "--weights", "imagenet", says=["timm:resnet34"])
    refused("classify", *data, *out, "--network", "resnet50", says=["--network resnet50", "timm:resnet50"])
    refused("classify", *data, *out, "--network", "timm:vit_tiny_patch16_224", says=["takes no images of 32x32"])
    for option, value in (("--mix", 0.3), ("--schedule", "mix")):
        refused("classify", *data, *out, option, value, says=[option, "without --extra"])
    for option, value, word in (("--mix", 1.5, "between 0 and 1"), ("--schedule", "late", "mix, pretrain, both")):
        refused("classify", *data, *out, "--extra", tmp_path, option, value, says=[option, word])
    assert not (tmp_path / "never").exists()


def test_geometric_augmentation_moves_and_mirrors_as_the_data_allows(tmp_path: Path) -> None:
    draw_images(tmp_path / "set", 12, 16)
    recipes = [
        build_dataset(DataConfig(source=str(tmp_path / "set"), size=16, domain=d), progress=False).fitting
        for d in ("icons", "photo", "microscopy")
    ]
    ramp = torch.linspace(-1, 1, 16).view(1, 1, 1, 16).expand(64, 3, 16, 16)
    across = [  # how often the ramp still rises from left to right in the middle
        float((moved[:, 0, 8, 12] > moved[:, 0, 8, 4]).float().mean())
        for moved in (geometric(ramp, list(range(64)), recipe) for recipe in recipes)
    ]
    assert across[0] == 1.0 and 0.3 < across[1] < 0.7 and 0.3 < across[2] < 0.7
    moved = geometric(ramp[:3], [1, 2, 1], recipes[0])
    assert torch.equal(moved[0], moved[2]) and not torch.equal(moved[0], moved[1])
    assert moved.abs().max() <= 1 + 1e-6


@pytest.mark.slow
def test_validation_images_choose_with_or_without(
    labelled: tuple[Path, Path], split: Path, tmp_path: Path, cli: Cli
) -> None:
    """By default the classifier is the better one on validation images: without the expansion it is the baseline's."""
    images, table = labelled
    words = (images, "--labels", table, "--split", split, "--fold", 0)
    trained = cli("train", *words, *TINY_GECA, "--steps", 1, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert cli("expand", tmp_path / "run", *EXPAND, "--out", tmp_path / "more").code == 0
    extra = ("--extra", tmp_path / "more")
    alone = ("--seeds", 3, "--out", tmp_path / "alone")
    run(cli, *words, *alone)
    found = run(cli, *words, *extra, "--seeds", 3, "--out", tmp_path / "chosen")
    run(cli, *words, *extra, "--seeds", 3, "--schedule", "both", "--out", tmp_path / "both")
    assert found["settings"]["schedule"] == "choose" and found["settings"]["mix"] == 0.25
    without = 0
    for seed in range(3):
        of = {
            name: json.loads((tmp_path / name / f"fold-0-seed-{seed}.json").read_text())
            for name in ("alone", "chosen", "both")
        }
        validation = of["chosen"]["validation"]
        rejected = validation["with"] <= validation["without"]
        assert of["chosen"]["probabilities"] == of["alone" if rejected else "both"]["probabilities"]
        assert "validation" not in of["alone"] and "validation" not in of["both"]
        without += rejected
    assert f"{without} of 3 classifiers were trained without generated images" in found["remarks"][-1]
    parts = json.loads(split.read_text())
    parts = {
        **parts,
        "folds": None,
        "assignment": {k: ("train", "test")[v == 0] for k, v in parts["assignment"].items()},
    }
    (tmp_path / "two.json").write_text(json.dumps(parts))
    two = (images, "--labels", table, "--split", tmp_path / "two.json", *extra, "--out", tmp_path / "two")
    for _ in range(2):  # a second time it is done already
        found = run(cli, *two)
        assert "no validation images to choose by" in found["remarks"][-1]
