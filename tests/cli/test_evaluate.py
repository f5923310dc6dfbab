"""`morphogen evaluate` and `morphogen weights`: from a run to figures and a report, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_sets import TINY_GECA, draw_labelled
from ladder_helpers import save_ladder
from onnx_files import write_network
from PIL import Image
from run_helpers import TINY, ForkServer, Outcome, draw_images, pixels, snapshot, until

import morphogen
from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.metrics.evaluate import EvaluationSettings
from morphogen.metrics.evaluate import evaluate as evaluate_in_python
from morphogen.metrics.records import EvaluationResults
from morphogen.metrics.weights import FILES
from morphogen.models import load_model

OFFLINE = "http://127.0.0.1:9/"  # where nothing listens


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path) -> None:
    """Files and features of these tests only; fetching fails at once."""
    from dataclasses import replace

    monkeypatch.setenv("MORPHOGEN_WEIGHTS", str(tmp_path / "no-weights"))
    for name, file in list(FILES.items()):
        monkeypatch.setitem(FILES, name, replace(file, url=OFFLINE + file.name))


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A feature network for --network."""
    return f"onnx:{write_network(tmp_path_factory.mktemp('network') / 'toy.onnx', features=6, side=16)}"


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred different pictures: 80 to train on, 10 held out for testing."""
    return draw_images(tmp_path_factory.mktemp("many") / "images", 100)


@pytest.fixture
def evaluate(cli: Callable[..., Outcome], network: str) -> Callable[..., dict[str, Any]]:
    """evaluate(*options): what --json prints."""

    def run(*options: object) -> dict[str, Any]:
        ended = cli("evaluate", *options, "--network", network, "--lpips", "none", "--json")
        assert ended.code == 0, ended.err
        return dict(json.loads(ended.out))

    return run


def test_a_run_is_measured_against_what_it_held_out(
    cli: Callable[..., Outcome], many: Path, network: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    tiny = [f"--set=architecture.{s}" for s in ("channels=8", "hidden=16", "nca_steps=2")]
    trained = cli(
        *("train", many, "--out", run, "--size", 16, "--steps", 3, "--batch-size", 4, *tiny),
        *("--set=diffusion.timesteps=10", "--set=training.saving.sample_images=0"),
    )
    assert trained.code == 0, trained.err
    ended = cli("evaluate", run, "-n", 12, "--network", network)
    assert ended.code == 0, ended.err
    for text in ("FD (toy)", "KD (toy)", "precision (toy)", "generalisation gap (toy)", "copies", "12 against 10"):
        assert text in ended.out
    assert not re.search(r"^(FID|KID)", ended.out, re.MULTILINE)  # this network is not the FID one
    assert "LPIPS was left out" in ended.out
    assert FILES["lpips-vgg"].sha256 in ended.out
    results = json.loads((run / "evaluation" / "results.json").read_text())
    figures = results["figures"][0]
    assert figures["images"] == {"generated": 12, "real": 10}
    assert figures["floor"]["images"] == {"generated": 12, "real": 10}
    assert figures["floor"]["frechet"]["value"] < figures["frechet"]["value"]
    assert results["data"]["parts"] == {"train": 80, "val": 10, "test": 10}
    assert results["copies"]["copies"] == 0
    assert len(list((run / "evaluation" / "images").glob("*/*.png"))) == 12
    page = (run / "evaluation" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 + 12
    assert "<polyline" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs nothing else

    shutil.rmtree(many.parent / "moved", ignore_errors=True)  # the run's split is kept to, wherever the images are
    shutil.copytree(many, many.parent / "moved")
    again = json.loads(
        cli(
            "evaluate", run, "-n", 12, "--network", network, "--data", many.parent / "moved", "--overwrite", "--json"
        ).out
    )
    assert again["figures"] == results["figures"]


def test_broken_lines_of_a_log_are_left_out_of_the_report(
    evaluate: Callable[..., dict[str, Any]], run: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    options = ("-n", 4, "--part", "train", "--sampling-steps", 1)
    evaluate(broken, *options)
    curves = (broken / "evaluation" / "report.html").read_text().split("<h2>Training</h2>")[1].split("<h2>")[0]
    assert "<polyline" in curves
    lines = (broken / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    wrong = [
        b'{"step": 3, "lo\n',
        b"\xff\x00\n",
        b"[1, 2]\n",
        b'{"loss": 1.0}\n',
        b'{"step": 4, "loss": "x"}\n',
        b"[" * 9999 + b"\n",
    ]
    (broken / "metrics.jsonl").write_bytes(b"".join([*lines[:2], *wrong, *lines[2:], b'{"step": 99, "loss": 1.0']))
    evaluate(broken, *options)
    assert curves in (broken / "evaluation" / "report.html").read_text()
    (broken / "metrics.jsonl").unlink()
    evaluate(broken, *options)
    assert "<polyline" not in (broken / "evaluation" / "report.html").read_text()


def test_a_run_is_measured_and_expanded_from_another_folder(
    cli: Callable[..., Outcome], network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was begun with relative paths; the data is where it was, then moved, then named."""
    (tmp_path / "work").mkdir()
    (tmp_path / "other").mkdir()
    draw_labelled(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    started = cli("train", "images", "--labels", "labels.csv", "--out", "run", *TINY_GECA, "--steps", 1)
    assert started.code == 0, started.err
    monkeypatch.chdir(tmp_path / "other")
    options = ("-n", 4, "--network", network, "--lpips", "none", "--sampling-steps", 1)

    def both(run: Path, *data: object, **tables: Path) -> None:
        table = [f"--labels={path}" for path in tables.values()]
        shutil.rmtree(tmp_path / "expanded", ignore_errors=True)
        replaced = ("--data", *data, "--overwrite") if data else ()  # figures of data elsewhere are others
        measured = cli("evaluate", run, *options, *replaced, *table)
        assert measured.code == 0, measured.err
        made = cli("expand", run, *data, *table, "--times", 1, "--sampling-steps", 1, "--out", tmp_path / "expanded")
        assert made.code == 0, made.err

    both(Path("..") / "work" / "run")
    other = cli("evaluate", Path("..") / "work" / "run", *options, "--seed", 5)
    assert other.code == 2 and "seed was 0, is 5" in other.err
    (tmp_path / "work").rename(tmp_path / "moved")  # the whole tree: the run finds its data beside it
    both(tmp_path / "moved" / "run")
    (tmp_path / "moved" / "images").rename(tmp_path / "pictures")
    (tmp_path / "moved" / "labels.csv").rename(tmp_path / "table.csv")
    both(tmp_path / "moved" / "run", tmp_path / "pictures", labels=tmp_path / "table.csv")


def test_evaluation_from_python_is_that_of_the_command(
    cli: Callable[..., Outcome], run: Path, network: str, tmp_path: Path
) -> None:
    options = ("-n", 6, "--network", network, "--lpips", "none", "--part", "train")
    assert cli("evaluate", run, *options, "--out", tmp_path / "command").code == 0
    settings: dict[str, Any] = {"num_images": 6, "networks": network, "lpips": "none", "part": "train"}
    found = morphogen.evaluate(morphogen.Run(run), **settings, out=tmp_path / "python", progress=False)
    by_command, by_python = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("command", "python")
    )
    assert by_python["figures"] == by_command["figures"] == json.loads(json.dumps(found.as_json()))["figures"]
    with pytest.raises(InputError, match=r"results\.json"):
        morphogen.evaluate(run, **{**settings, "num_images": 8}, out=tmp_path / "python", progress=False)
    with pytest.raises(InputError, match="name either a run or a model, or give images=FOLDER"):
        morphogen.evaluate()


def test_a_network_from_python(run: Path, tmp_path: Path, own_cache: Path) -> None:
    settings = EvaluationSettings(
        count=4,
        networks=(torch.nn.Conv2d(3, 5, 3),),
        lpips="none",
        part="train",
        request=SamplingRequest(steps=1),
        quiet=True,
    )
    results = evaluate_in_python(load_model(run), None, run, None, settings, tmp_path / "out")
    assert results.figures[0].network == "Conv2d" and results.figures[0].dimensions == 5
    assert results.as_json()["figures"][0]["frechet"]["label"] == "FD (Conv2d)"
    assert EvaluationResults.model_validate(json.loads((tmp_path / "out" / "results.json").read_text())) == results


def test_names_that_no_console_can_hold(
    evaluate: Callable[..., dict[str, Any]], cli: Callable[..., Outcome], many: Path, network: str, tmp_path: Path
) -> None:
    """Latin-1 bytes in file names and labels: all is computed, written as UTF-8 and printed."""
    folder = draw_images(tmp_path / "generated", 8, first=500)
    odd = os.fsdecode(b"caf\xe9.png")
    shutil.copy(many / "03.png", folder / odd)
    out = tmp_path / "out"
    found = evaluate("--images", folder, "--data", many, "--size", 20, "--part", "train", "--out", out)
    assert found["generated"]["images"] == 9
    data = tmp_path / "data"
    for name, first in ((os.fsdecode(b"\xe9"), 0), ("b", 20)):
        draw_images(data / name, 12, 20, first)
    (data / "b" / "20.png").rename(data / "b" / odd)
    quick = ("--size", 8, "--steps", 1, "--batch-size", 4, "--device", "cpu")
    done = cli("classify", data, *quick, "--out", tmp_path / "classified")
    assert done.code == 0, done.err
    compared = cli(
        "evaluate", "--images", folder, "--data", data, "--size", 20, "--network", network, "--out", tmp_path / "o2"
    )
    assert compared.code == 0, compared.err
    assert (tmp_path / "o2" / "report.html").read_text(encoding="utf-8").count("caf\\") >= 1
    for file in (out / "report.html", out / "results.json", tmp_path / "classified" / "report.html"):
        file.read_text(encoding="utf-8")  # that it is UTF-8


def test_planted_copies_of_training_images_are_found(
    evaluate: Callable[..., dict[str, Any]], many: Path, tmp_path: Path
) -> None:
    """Two among twenty honest ones, one exact and one with slight noise: found, and named with their originals."""
    from morphogen.data.config import DataConfig
    from morphogen.data.dataset import build_dataset

    train = build_dataset(DataConfig(source=str(many), size=(20, 20)), "train", progress=False)
    names = [train.source.records[i].name for i in train.indices]
    planted = draw_images(tmp_path / "generated", 20, first=500)  # names 500.png and so on
    shutil.copy(many / names[3], planted / "exact.png")
    with Image.open(many / names[7]) as image:
        pixels = np.asarray(image).astype(int) + np.random.default_rng(0).integers(-4, 5, (20, 20, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(planted / "noisy.png")
    out = tmp_path / "out"
    found = evaluate("--images", planted, "--data", many, "--size", 20, "--out", out)
    assert found["copies"]["copies"] == 2
    first = found["copies"]["nearest"][:2]
    assert [(s["image"], s["training_image"], s["copy"]) for s in first] == [
        ("exact.png", names[3], True),
        ("noisy.png", names[7], True),
    ]
    assert "exact.png" in (out / "report.html").read_text()


def test_a_folder_of_training_images_memorises_and_one_of_others_does_not(
    evaluate: Callable[..., dict[str, Any]], many: Path, tmp_path: Path
) -> None:
    from morphogen.data.config import DataConfig
    from morphogen.data.dataset import build_dataset

    everything = draw_images(tmp_path / "all", 400)
    train = build_dataset(DataConfig(source=str(everything), size=(20, 20)), "train", progress=False)
    copied = tmp_path / "copied"
    copied.mkdir()
    for i in train.indices[:100]:
        shutil.copy(everything / train.source.records[i].name, copied)
    options = ("--data", everything, "--size", 20, "--overwrite", "--out", tmp_path / "out")
    gave_back = evaluate("--images", copied, *options)
    assert gave_back["figures"][0]["memorisation"]["memorises"]
    assert gave_back["copies"]["copies"] == 100
    honest = evaluate("--images", draw_images(tmp_path / "honest", 100, first=1000), *options)
    assert not honest["figures"][0]["memorisation"]["memorises"]
    assert honest["copies"]["copies"] == 0


def test_real_against_real_is_about_its_own_floor(
    evaluate: Callable[..., dict[str, Any]], many: Path, tmp_path: Path
) -> None:
    fresh = draw_images(tmp_path / "fresh", 60, first=2000)
    figures = evaluate("--images", fresh, "--data", many, "--size", 20, "--out", tmp_path / "out")["figures"][0]
    kernel, floor = figures["kernel"], figures["floor"]["kernel"]
    assert abs(kernel["value"]) < 6 * (floor["standard_error"] or 1) or floor["standard_error"] is None
    assert figures["frechet"]["value"] < 4 * figures["floor"]["frechet"]["value"]


def test_mixed_sizes_gray_images_and_few_images(
    evaluate: Callable[..., dict[str, Any]], many: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i, (side, mode) in enumerate([(20, "RGB"), (33, "RGB"), (20, "L"), (50, "RGBA")]):
        with Image.open(many / f"{i:02d}.png") as image:
            image.resize((side, side + i)).convert(mode).save(folder / f"{i}.png")
    found = evaluate("--images", folder, "--data", many, "--size", 20, "--out", tmp_path / "out")
    figures = found["figures"][0]
    assert figures["images"]["generated"] == 4
    assert figures["kernel"]["standard_error"] is None
    assert "manifold" not in figures
    assert np.isfinite(figures["frechet"]["value"])
    assert any("with 4 images" in remark for remark in found["remarks"])


def test_images_of_an_interrupted_evaluation_are_taken_up(
    forks: ForkServer, run: Path, images: Path, network: str, tmp_path: Path
) -> None:
    """Killed while it samples, it goes on; the result is that of an uninterrupted one."""
    options = (
        "--network",
        network,
        "--lpips",
        "none",
        "--batch-size",
        1,
        "--part",
        "train",
        "-n",
        60,
        "--json",
        "--no-cache",
    )
    out = tmp_path / "killed"
    process = forks.start("evaluate", run, *options, "--out", out)
    until(lambda: len(list(out.glob("images/*/*.png"))) > 5)
    process.kill()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("images/*/*.png")}
    assert not (out / "results.json").exists()
    whole = [forks.run("evaluate", run, *options, "--out", folder) for folder in (out, tmp_path / "other")]
    assert [w.code for w in whole] == [0, 0], whole
    one, other = (json.loads(w.out) for w in whole)
    assert one["figures"] == other["figures"]
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("images/*/*.png")}
    assert sum(kept[name] == time for name, time in before.items()) >= len(before) - 1  # the last may be torn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--network", "vgg"], ["no feature network 'vgg'", "onnx:FILE"]),
        (["--network", "onnx:none.onnx"], ["none.onnx", "no such file"]),
        (["--lpips", "yes"], ["--lpips yes"]),
        (["--lpips", "lpips-vgg:none"], ["lpips-vgg:none", "no such file"]),
        (["-n", 1], ["--n", "greater than or equal to 2"]),
        (["--part", "all"], ["--part all", "test, val or train"]),
        (["--precision", "half"], ["--precision half"]),
        (["--data", "nowhere"], ["nowhere does not exist"]),
        (["--images", "nowhere"], ["--images nowhere does not exist"]),
        (["--images", "nowhere", "--seed", 0], ["--seed 0: with --images nothing is generated"]),
        (["--images", "nowhere", "--heredity", "out"], ["--heredity out: with --images nothing is generated"]),
        (["--sampler", "magic"], ["no sampler 'magic'"]),
    ],
)
def test_wrong_use_is_one_sentence(
    refused: Callable[..., str], run: Path, network: str, tmp_path: Path, options: list[object], says: list[str]
) -> None:
    given = [] if "--network" in options else ["--network", network]
    refused("evaluate", run, "-n", 4, "--json", *given, *options, "--out", tmp_path / "out", says=says)


def test_offline_the_file_to_bring_is_named(refused: Callable[..., str], run: Path, tmp_path: Path) -> None:
    file = FILES["fid-inception"]
    refused("evaluate", run, "--out", tmp_path / "out", says=[file.url, file.sha256, str(tmp_path / "no-weights")])


def test_nothing_to_measure_is_refused(refused: Callable[..., str], network: str, images: Path, tmp_path: Path) -> None:
    refused("evaluate", says=["name a run or a model, or give --images"])
    refused("evaluate", "tissue", "--network", network, "--out", tmp_path / "a", says=["--data is needed"])
    one = draw_images(tmp_path / "one", 1)
    refused(
        *("evaluate", "--images", one, "--data", images, "--size", 16, "--network", network, "--json"),
        *("--out", tmp_path / "b"),
        says=["holds 1 images", "at least two"],
    )
    few = draw_images(tmp_path / "few", 4)
    refused(
        *("evaluate", "--images", images, "--data", few, "--size", 16, "--network", network, "--out", tmp_path / "c"),
        says=["no test part", "--part train"],
    )


def test_weights_list_path_and_verify(cli: Callable[..., Outcome], refused: Callable[..., str], tmp_path: Path) -> None:
    rows = json.loads(cli("weights", "list", "--json").out)
    assert {row["network"]: row["state"] for row in rows} == dict.fromkeys(FILES, "missing")
    assert cli("weights", "path", "fid-inception").out.strip() == str(
        tmp_path / "no-weights" / FILES["fid-inception"].name
    )
    assert FILES["dinov2"].sha256 in cli("weights", "list").out
    before = snapshot(tmp_path)
    refused("weights", "verify", "fid-inception", says=["missing", FILES["fid-inception"].url])
    refused("weights", "verify", "resnet", says=["no network 'resnet'", "fid-inception"])
    assert snapshot(tmp_path) == before
    refused("weights", "fetch", "dinov2", says=["could not be fetched", FILES["dinov2"].sha256])


def test_another_split_must_not_hold_out_what_the_run_was_trained_on(
    cli: Callable[..., Outcome], many: Path, network: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other.json"
    assert cli("train", many, "--out", run, *TINY, "--steps", 1).code == 0
    assert cli("data", "split", many, "--seed", 1, "--out", other).code == 0
    options = ("--network", network, "--lpips", "none", "-n", 4, "--sampling-steps", 1, "--overwrite")
    options += ("--out", tmp_path / "found")
    refused("evaluate", run, "--split", other, *options, says=[f"{run} was trained on", "images of this test part"])
    assert cli("evaluate", run, "--split", run / "split.json", *options).code == 0
    (tmp_path / "others").mkdir()  # other images of the same names are no leak
    for k in range(100):
        Image.fromarray(pixels(20, 20, 1000 + k)).save(tmp_path / "others" / f"{k:02d}.png")
    found = cli("evaluate", run, "--data", tmp_path / "others", "--split", other, *options)
    assert found.code == 0 and "80 images that are not in the train part" in found.out


def test_images_that_went_into_the_weights_are_told_by_their_content_and_over_every_start(
    cli: Callable[..., Outcome], many: Path, network: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data, split, first, second = (tmp_path / name for name in ("data", "split.json", "first", "second"))
    shutil.copytree(many, data)
    shutil.copy(data / "00.png", data / "twin.png")
    facts = {"format": "morphogen-split-1", "by": "image", "folds": None}
    assignment = {p.name: "train" for p in data.iterdir()}
    assignment |= {"10.png": "test", "11.png": "test", "20.png": "val"}
    split.write_text(json.dumps({**facts, "assignment": assignment}))
    assert cli("train", data, "--out", first, "--split", split, *TINY, "--steps", 1).code == 0
    assignment |= {"10.png": "train", "11.png": "train", "12.png": "test", "twin.png": "test"}
    split.write_text(json.dumps({**facts, "assignment": assignment}))
    assert cli("train", data, "--out", second, "--split", split, "--init", first, *TINY, "--steps", 1).code == 0
    options = ("--network", network, "--lpips", "none", "-n", 4, "--sampling-steps", 1, "--overwrite")
    options += ("--out", tmp_path / "found")
    says = ["was trained on", "of this test part"]
    refused("evaluate", second, *options, says=[f"{first} was trained on 2", "12.png", f"{second} began with it"])
    draw_images(data, 1, first=900)  # one image more is other data, of which some were seen all the same
    assignment["900.png"] = "test"
    split.write_text(json.dumps({**facts, "assignment": assignment}))
    refused("evaluate", first, "--split", split, *options, says=[f"{first} was trained on 2 images", *says])
    (data / "12.png").rename(data / "renamed.png")
    (data / "900.png").unlink()
    assignment["renamed.png"] = assignment.pop("12.png")
    del assignment["900.png"]
    split.write_text(json.dumps({**facts, "assignment": assignment}))
    refused("evaluate", first, "--split", split, *options, says=["renamed.png", *says])
    # a copy that the run itself held out is a fault of the data, and said
    (data / "renamed.png").rename(data / "12.png")
    own = json.loads((first / "split.json").read_text())
    own["assignment"]["twin.png"] = "test"
    (first / "split.json").write_text(json.dumps(own))
    found = cli("evaluate", first, *options)
    assert found.code == 0 and "1 images of the test part are exact copies" in found.out
    # a run of an older version has no digests: names where the data is the same, else it is said that nobody knows
    del own["digests"]
    (first / "split.json").write_text(json.dumps(own))
    refused("evaluate", second, *options, says=[f"{first} was trained on 1 images", "12.png"])
    draw_images(data, 1, first=900)
    found = cli("evaluate", first, "--split", "auto", *options)
    assert found.code == 0 and f"not known which images {first} was trained on" in found.out


@pytest.mark.slow
def test_a_labelled_model_is_measured_with_the_labels_of_the_real_images(
    cli: Callable[..., Outcome], network: str, tmp_path: Path
) -> None:
    images, table = draw_labelled(tmp_path)
    learnt = ("--steps", 60, "--set", "training.optimizer.learning_rate=0.03")  # enough for labels to change pixels
    trained = cli("train", images, "--labels", table, "--out", tmp_path / "run", *TINY_GECA, *learnt)
    assert trained.code == 0, trained.err
    options = ("--network", network, "--lpips", "none", "-n", 6, "--sampling-steps", 3, "--json", "--part", "train")
    made = []
    for more in (("--guidance", 1), ("--guidance", 4), ("--labels", "none")):
        out = tmp_path / f"found{len(made)}"
        results = json.loads(cli("evaluate", tmp_path / "run", *options, *more, "--out", out).out)
        folder = Path(results["generated"]["folder"])
        made.append([np.asarray(Image.open(folder / f"{k}.png")).tobytes() for k in range(6)])
        assert ("guidance" in results["generated"]) == (more[0] == "--guidance")
        assert any("made without labels" in r for r in results["remarks"]) == (more[0] == "--labels")
    assert made[0] != made[1] != made[2] != made[0]
    both = []  # one folder, then a fresh one: with other seeds the rows are of other images
    for out in ("found0", "fresh"):
        results = json.loads(
            cli("evaluate", tmp_path / "run", *options, "--seed", 4, "--overwrite", "--out", tmp_path / out).out
        )
        folder = Path(results["generated"]["folder"])
        both.append([np.asarray(Image.open(folder / f"{k}.png")).tobytes() for k in range(4, 10)])
    assert both[0] == both[1]


def test_a_pyramid_paints_at_the_size_of_the_real_images(
    cli: Callable[..., Outcome], network: str, tmp_path: Path
) -> None:
    run, out = save_ladder(tmp_path / "pyramid"), tmp_path / "out"
    images = draw_images(tmp_path / "images", count=12, size=40)
    options = (
        "--data",
        images,
        "--size",
        32,
        "--part",
        "train",
        "--sampling-steps",
        2,
        "--lpips",
        "none",
        "--out",
        out,
    )
    ended = cli("evaluate", run, "-n", 4, "--network", network, *options)
    assert ended.code == 0, ended.err
    assert "different sizes" not in ended.out + ended.err
    painted = [path for path in (out / "images").rglob("*.png") if path.stem.isdigit()]
    assert len(painted) == 4
    for path in painted:
        with Image.open(path) as picture:
            assert picture.size == (32, 32)
