"""`morphogen compare`: several small models under one budget, killed, resumed, and written down."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from label_sets import draw_labelled
from onnx_files import write_network
from run_helpers import ForkServer, Outcome, Process, draw_images, until

from morphogen.core.errors import InputError
from morphogen.experiments.comparison import locked
from morphogen.experiments.comparison_report import interval
from morphogen.experiments.comparison_spec import config_of, published_rows, read_spec, spec_names, trials
from morphogen.experiments.plots import Point, scatter
from morphogen.models import PRESETS

TINY = {"architecture.channels": 8, "architecture.hidden": 16, "architecture.nca_steps": 2}


@pytest.fixture
def spec(tmp_path: Path, own_cache: Path) -> Path:
    """Two automata and a U-Net for three steps each, with two seeds."""
    network = write_network(tmp_path / "toy.onnx", side=16)
    small = {"diffusion.timesteps": 10}
    content = {
        "title": "A toy",
        "data": {"source": str(draw_images(tmp_path / "images", 60)), "size": 16},
        "budget": {"images": 12},
        "seeds": [0, 1],
        "evaluate": {"images": 8, "networks": [f"onnx:{network}"], "lpips": "none", "batch_size": 8},
        "training": {"batch_size": 4, "sample_images": 0, "validate_every": 3, "validation_images": 2},
        "published": "celeba64",
        "models": [
            {"name": "nca, s=2", "model": "diff-nca-small", "set": {**TINY, **small}},
            {"name": "unet", "model": "unet-50k", "recipe": "paper", "set": small, "published": "unet-s"},
        ],
    }
    content["models"][0]["name"] = "nca s=2"  # type: ignore[index]
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_comparison_is_a_table_plots_and_samples(cli: Callable[..., Outcome], spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = cli("compare", spec, "--out", out)
    assert ended.code == 0, ended.err
    names = {p.name for p in out.iterdir()}
    assert names >= {"table.md", "results.json", "parameters.svg", "cost.svg", "samples.png", "runs"}
    table = (out / "table.md").read_text()
    assert "| nca s=2 | 3,488 | 2 | 3 |" in table
    assert "| unet | 50,103 | 2 | 3 |" in table
    assert "published FID" in table and "175.3" in table
    assert "8 generated against 6 real" in table
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["runs"] for row in rows] == [2, 2]
    figure = rows[0]["figures"]["FD (toy)"]
    assert figure["mean"] == pytest.approx(sum(figure["values"]) / 2)
    assert figure["interval"] == pytest.approx(interval(figure["values"])[1])
    for name in ("parameters.svg", "cost.svg"):
        assert (out / name).read_text().count("<circle") == 2

    left = cli("compare", spec, "--out", out, "--dry-run", "--json")
    assert json.loads(left.out)["hours"] == json.loads(left.out)["disk_bytes"] == 0
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/**/*") if p.is_file()}
    again = cli("compare", spec, "--out", out)  # nothing is left to do
    assert again.code == 0
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/**/*") if p.is_file()} == before

    wider = cli("compare", spec, "--out", out, "-n", 10, "--json")  # measured anew, not trained anew
    assert wider.code == 0
    assert json.loads(wider.out)["rows"][0]["images"]["generated"] == 10
    weights = out / "runs" / "unet" / "seed-0" / "model.safetensors"
    assert weights.read_bytes()
    assert len(list(out.glob("runs/unet/seed-0/evaluation/images/*/*.png"))) == 10


@pytest.fixture
def estimate(cli: Callable[..., Outcome], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """estimate(*options): what --dry-run --json prints; it makes no folder."""

    def run(*options: object) -> dict[str, Any]:
        found = cli("compare", *options, "--out", tmp_path / "out", "--dry-run", "--device", "cpu", "--json")
        assert found.code == 0, found.err
        assert not (tmp_path / "out").exists()
        return dict(json.loads(found.out))

    return run


def test_what_a_comparison_takes_is_said_beforehand(
    cli: Callable[..., Outcome],
    estimate: Callable[..., dict[str, Any]],
    spec: Path,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    options = ("--out", tmp_path / "out", "--dry-run", "--device", "cpu")
    ended = cli("compare", spec, *options)
    assert ended.code == 0, ended.err
    header, first, second, whole = ended.out.splitlines()
    assert header.split() == ["LINE", "RUNS", "PARAMETERS", "STEPS", "TRAINING", "SAMPLING", "CLASSIFIER", "DISK"]
    assert re.match(r"nca s=2 +2 +3,488 +3 ", first) and re.match(r"unet +2 +50,103 +3 ", second)
    assert whole.startswith("in all about")
    timed = estimate(spec, "--minutes", 3)
    assert [line["training_hours"] for line in timed["lines"]] == pytest.approx([2 * 3 / 60] * 2)
    # with more images sampling takes as much longer, and their files as much more room
    few, many = estimate(spec), estimate(spec, "-n", 8000)
    for one, other in zip(few["lines"], many["lines"], strict=True):
        assert 50 * one["sampling_hours"] < other["sampling_hours"]  # a thousand times, but for the noise of a clock
    assert many["disk_bytes"] - few["disk_bytes"] == 2 * 2 * (8000 - 8) * 3 * 16 * 16
    refused("compare", spec, *options, "--data", tmp_path / "nowhere", says=["nowhere"])


def test_what_a_comparison_of_training_sets_takes(estimate: Callable[..., dict[str, Any]], folds: Path) -> None:
    more, alone, _ = estimate(folds)["lines"]
    assert more["runs"] == alone["runs"] == 3 and more["steps"] == 1 and alone["steps"] is None
    assert min(more["training_hours"], more["sampling_hours"], more["classifier_hours"]) > 0
    assert alone["training_hours"] == alone["sampling_hours"] == 0 and alone["classifier_hours"] > 0


@pytest.fixture
def start(forks: ForkServer, own_cache: Path) -> Callable[..., Process]:
    """start(*argv): `morphogen` in a process of its own."""
    return lambda *argv: forks.start(*argv, env={"MORPHOGEN_CACHE": str(own_cache)})


def test_killed_and_resumed(start: Callable[..., Process], spec: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle: what was finished stays, the rest follows, and the figures are those of a whole run."""
    out = tmp_path / "out"
    process = start("compare", spec, "--out", out)
    until(lambda: (out / "runs" / "nca-s-2" / "seed-0" / "figures.json").exists())
    process.kill()
    done = (out / "runs" / "nca-s-2" / "seed-0" / "figures.json").stat().st_mtime_ns
    assert not (out / "results.json").exists()
    early = start("compare", spec, "--out", out, "--report")
    assert early.wait() == 0, early.err
    assert len(json.loads((out / "results.json").read_text())["rows"]) in (1, 2)
    resumed = start("compare", spec, "--out", out)
    assert resumed.wait() == 0, resumed.err
    assert (out / "runs" / "nca-s-2" / "seed-0" / "figures.json").stat().st_mtime_ns == done
    whole = start("compare", spec, "--out", tmp_path / "whole")
    assert whole.wait() == 0, whole.err

    def values(folder: Path) -> Any:
        rows = json.loads((folder / "results.json").read_text())["rows"]
        return [[f["values"] for f in row["figures"].values()] for row in rows]

    assert values(out) == values(tmp_path / "whole")


def test_processes_side_by_side(start: Callable[..., Process], spec: Path, tmp_path: Path) -> None:
    """Two processes share the two trainings."""
    out = tmp_path / "out"
    ended = start("compare", spec, "--out", out, "--gpus", "cpu0,cpu1", "--seeds", 1)
    assert ended.wait() == 0, ended.err
    assert [row["runs"] for row in json.loads((out / "results.json").read_text())["rows"]] == [1, 1]


def test_the_specs_of_the_package(tmp_path: Path) -> None:
    kalkhof = ["paper-table-1", "paper-table-2", "quick", "quick-texture"]
    assert spec_names() == ["geca-heredity", "geca-table-1", "geca-table-2", *kalkhof]
    for name in kalkhof:
        spec = read_spec(name, {"data": {"source": "folder"}})
        planned = trials(spec, tmp_path)
        assert len(planned) == len(spec.models) * len(spec.seeds)
        for entry in spec.models:
            assert entry.published is None or entry.published in published_rows(spec.published)
    ablation = {trial.entry.name: trial.config for trial in trials(read_spec("paper-table-1"), tmp_path)}
    steps = {name: config.architecture_settings()["nca_steps"] for name, config in ablation.items()}
    assert steps == {"s=20": 20, "s=10": 10, "s=30": 30, "h=256": 20, "c=48": 20}
    assert ablation["h=256"].architecture_settings()["hidden"] == 256
    assert ablation["c=48"].architecture_settings()["channels"] == 48
    assert {c.training.steps for c in ablation.values()} == {200_000}
    table = {trial.entry.name: trial.config for trial in trials(read_spec("paper-table-2"), tmp_path)}
    assert (table["unet-m"].training.optimizer.learning_rate, table["unet-m"].training.batch_size) == (3e-5, 32)
    assert table["vnca"].training.optimizer.learning_rate == 1e-4
    geca = trials(read_spec("geca-table-1", {"data": {"source": "folder"}}), tmp_path)
    assert {trial.config.training.steps * 128 for trial in geca} == {14_000 * 1080}  # type: ignore[operator]
    assert all(trial.config.diffusion.variance == "learned" and trial.config.autoencoder for trial in geca)


def test_budgets(tmp_path: Path, spec: Path) -> None:
    found = {j.entry.name: j.config.training for j in trials(read_spec(str(spec)), tmp_path)}
    assert (found["unet"].steps, found["nca s=2"].steps) == (3, 3)
    timed = trials(read_spec(str(spec), {"budget": {"minutes": 2.5}}), tmp_path)[0].config.training
    assert (timed.minutes, timed.steps) == (2.5, None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": {"steps": 1, "minutes": 2}}, "give one of steps, images and minutes"),
        ({"models": []}, "models"),
        ({"model": []}, "there is no setting 'model'; did you mean 'models'?"),
        ({"models": [{"name": "a", "model": "diff-nca-smal"}]}, "model 'a': there is no model 'diff-nca-smal'"),
        ({"models": [{"name": "a", "model": "unet-s", "set": {"training.stepz": 3}}]}, "training.stepz"),
        ({"models": [{"name": "a", "model": "fourier-diff-nca"}]}, "model 'a': its settings: the size 16x16 is too"),
        ({"models": [{"name": "a b", "model": "unet-s"}, {"name": "a-b", "model": "unet-s"}]}, "called 'a-b'"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"data": {"size": 16}}, "--data is needed"),
        ({"evaluate": {"images": 1}}, "images"),
        ({"published": "celeba128"}, "no published table"),
    ],
)
def test_wrong_specs_are_refused(
    refused: Callable[..., str], spec: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    content = yaml.safe_load(spec.read_text()) | change
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(content))
    if "published" in change:
        with pytest.raises(InputError, match=says):
            published_rows("celeba128")
        return
    refused("compare", wrong, "--out", tmp_path / "never", says=[says])
    assert not (tmp_path / "never").exists()


def test_wrong_use_is_refused(refused: Callable[..., str], spec: Path, tmp_path: Path) -> None:
    refused("compare", "nothing", "--out", tmp_path / "x", says=["no spec 'nothing'", "paper-table-1"])
    refused("compare", spec, "--out", spec, says=["is a file"])
    refused("compare", spec, "--out", tmp_path / "x", "--steps", 1, "--minutes", 1, says=["one of --minutes"])
    refused("compare", spec, "--out", tmp_path / "x", "--report", says=["holds no finished runs"])
    refused("compare", "quick", "--out", tmp_path / "x", says=["--data is needed"])


def test_plots_show_every_point_and_name_those_they_cannot() -> None:
    points = [
        Point("a", 1e5, 20.0, 2.0),
        Point("b", 4e6, 0.02),
        Point("c", 1e5, -0.001),
        Point("d", 2e5, 5, None, True),
    ]
    picture = scatter(points, "parameters", "KD <x>")
    assert picture.count("<circle") == 3
    assert "not above zero: c" in picture
    assert "KD &lt;x&gt;" in picture
    assert 'fill="white" stroke' in picture
    assert scatter([], "x", "y").startswith("<svg")


def test_names_of_points_at_one_place_are_beside_one_another() -> None:
    points = [Point(name, 1e5, 100.0, 10.0) for name in ("first", "second", "third", "fourth")] + [Point("x", 2e5, 1.0)]
    name = r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(start|end)" fill[^>]*>([a-z]+)<'
    found = re.findall(name, scatter(points, "", ""))
    assert [name for *_, name in found] == [p.name for p in points]
    places = [(anchor, float(y)) for _, y, anchor, _ in found[:4]]
    for i, (anchor, y) in enumerate(places):  # a line is 12 pixels high
        assert all(a != anchor or abs(y - other) >= 12 for a, other in places[:i])


def test_bars_of_errors_stay_on_the_axes() -> None:
    picture = scatter([Point("a", 1e5, 10.0, 90.0), Point("b", 2e5, 12.0)], "", "")
    low, high = (float(v) for v in re.findall(r'<path d="M[\d.]+ ([\d.]+)V([\d.]+)" stroke="#2', picture)[0])
    assert high > 20  # the upper end of 100 is not cut off at the axis' end
    assert low == 370


def test_a_narrow_axis_has_more_than_one_number() -> None:
    svg = scatter([Point("a", 50e3, 4.5), Point("b", 200e3, 3.4)], "parameters", "distance")
    assert ">4</text>" in svg and ">100k</text>" in svg


def test_intervals() -> None:
    assert interval([3.0]) == (3.0, None)
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # Student's t with two degrees of freedom
    twelve = [float(k) for k in range(12)]
    assert interval(twelve)[1] == pytest.approx(2.201 * 13**0.5 / 12**0.5, rel=1e-3)  # with eleven; variance 13


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Two training sets without a generator and one with, over three folds by patient, of a multi-label table."""
    images, table = draw_labelled(tmp_path)
    tiny = {"architecture.width": 8, "architecture.heads": 2, "architecture.mlp": 8, "architecture.hidden": 4}
    content = {
        "title": "Toy folds",
        "data": {"source": str(images), "labels": str(table), "size": 8, "flips": "none"},
        "budget": {"steps": 1},
        "classify": {
            "baseline": "alone",
            "folds": 3,
            "size": 8,
            "steps": 1,
            "batch_size": 4,
            "times": 1,
            "sampling_steps": 1,
        },
        "training": {"batch_size": 4, "sample_images": 0, "validation_images": 1},
        "published": "geca_classification",
        "models": [
            {"name": "more", "model": "geca-xs", "set": {**tiny, "diffusion.timesteps": 4}, "published": "geca-s"},
            {"name": "alone", "published": "geometric augmentation"},
            {"name": "bare", "augment": "none"},
        ],
    }
    path = tmp_path / "folds.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_training_sets_are_compared_over_folds(
    folds: Path, tmp_path: Path, cli: Callable[..., Outcome], refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    refused("compare", folds, "--out", out, "--gpus", "0,1", says=["--gpus are for lists that evaluate"])
    ended = cli("compare", folds, "--out", out, "--device", "cpu", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    more, alone, bare = found["rows"]
    assert [row["name"] for row in found["rows"]] == ["more", "alone", "bare"] and found["level"] == "eye"
    assert more["units"] == [0, 1, 2] and len(more["extra"]) == 3 and alone["extra"] is None
    assert alone["baseline"] is None and bare["baseline"]["name"] == more["baseline"]["name"] == "alone"
    assert more["published"]["map"] == [73.28, 5.58] and bare["published"] is None
    assert alone["settings"]["flip_x"] is False  # of the data's settings, for classifiers too
    split = json.loads((out / "split.json").read_text())
    assert split["by"] == "patient" and split["folds"] == 3
    for fold in range(3):
        seen = json.loads((out / "expanded" / "more" / f"fold{fold}" / "expansion.json").read_text())["trained_on"]
        held_out = {name for name, place in split["assignment"].items() if place == fold}
        assert held_out and not held_out & set(seen["images"])
    table = (out / "table.md").read_text()
    assert "| published mAP |" in table and "73.28 ± 5.58" in table and "over 3 folds" in table
    page = (out / "report.html").read_text()
    assert "73.28 ± 5.58" in page and "not measured here" in page
    made = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")} | {
        p: p.stat().st_mtime_ns for p in out.rglob("fold-*-seed-*.json")
    }
    assert cli("compare", folds, "--out", out, "--device", "cpu").code == 0  # nothing is done twice
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in made.items())
    with locked(out):  # as while it compares
        early = cli("compare", folds, "--out", out, "--report", "--json")
        assert early.code == 0 and len(json.loads(early.out)["rows"]) == 3
    other = ("compare", folds, "--out", out, "--set", "classify.steps=2", "--report")
    refused(*other, says=["no finished lines"])  # those there are of other settings
    says = [f"{out / 'split.json'} has 3 folds, but classify.folds is 4", "another --out"]
    refused("compare", folds, "--out", out, "--set", "classify.folds=4", says=says)
    refused("compare", folds, "--out", tmp_path / "none", "--report", says=["no finished lines"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classify": None}, "a line without a model is only for a comparison that classifies"),
        ({"classify": {"steps": 1, "baseline": "gone"}}, "the baseline 'gone' is none of the lines"),
        ({"classify": {"steps": 1, "epochs": 2}}, "give one of steps and epochs"),
    ],
)
def test_wrong_lists_of_training_sets(folds: Path, change: dict[str, Any], says: str) -> None:
    values = {**yaml.safe_load(folds.read_text()), **change}
    folds.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=says):
        read_spec(str(folds))


@pytest.mark.parametrize("name", ["geca-table-1", "geca-table-2", "geca-heredity"])
def test_the_lists_of_the_geca_paper_have_published_figures(name: str) -> None:
    chosen = read_spec(name)
    rows = published_rows(chosen.published)
    assert all(entry.published in rows for entry in chosen.models)
    heredity = {entry.set.get("architecture.heredity") for entry in chosen.models}
    assert heredity == ({"none", "out", "both", "hidden"} if name == "geca-heredity" else {None})
    known = [entry for entry in chosen.models if entry.model in PRESETS]
    assert known, "GeCA at least"
    for entry in known:
        config_of(chosen, entry, {"source": "x", **chosen.data}, 0)
