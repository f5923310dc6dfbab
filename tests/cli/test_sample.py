"""`morphogen sample`: files, metadata, and images that depend on their seeds alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import Outcome, RealCommand, snapshot, until

import morphogen
from morphogen._version import VERSION
from morphogen.automata.fused.build import has_bfloat16
from morphogen.core.images import METADATA_KEY


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def metadata(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        return dict(json.loads(image.info[METADATA_KEY]))


@pytest.fixture
def sampled(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> Callable[..., Path]:
    """sampled("name", *options): the folder of samples. said: what is said beside it."""

    def make(name: str, *options: object, said: str = "") -> Path:
        ended = cli("sample", run, "--out", tmp_path / name, *options)
        assert ended.code == 0, ended.err
        assert ended.err.startswith(said) if said else ended.err == ""
        return tmp_path / name

    return make


def test_one_png_a_seed_a_grid_and_the_settings_inside(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    out = tmp_path / "some" / "where"
    before = snapshot(run)
    ended = cli("sample", run, "-n", 5, "--seed", 7, "--size", "20x24", "--sampler", "ddpm", "--out", out)
    assert ended.code == 0
    assert "5 images in" in ended.out
    assert {p.name for p in out.iterdir()} == {"7.png", "8.png", "9.png", "10.png", "11.png", "grid.png"}
    for seed in range(7, 12):
        assert picture(out / f"{seed}.png").shape == (20, 24, 3)
        wanted = {"model": run.name, "seed": seed, "height": 20, "width": 24, "sampler": "ddpm", "sampling_steps": 10}
        assert metadata(out / f"{seed}.png").items() >= {**wanted, "morphogen": VERSION}.items()
    assert picture(out / "grid.png").shape == (2 * 20 + 2, 3 * 24 + 2 * 2, 3)
    assert metadata(out / "grid.png")["seeds"] == [7, 8, 9, 10, 11]
    np.testing.assert_array_equal(picture(out / "grid.png")[:20, 26:50], picture(out / "8.png"))
    assert snapshot(run) == before


def test_the_image_of_a_seed_is_the_same_in_any_company(sampled: Callable[..., Path]) -> None:
    whole = sampled("whole", "-n", 6)
    for name, options in {
        "in pairs": ("-n", 6, "--batch-size", 2),
        "of four": ("-n", 6, "--batch-size", 4),
        "alone": ("-n", 1, "--seed", 4),
        "of the end": ("-n", 3, "--seed", 3),
    }.items():
        for path in sampled(name, *options).glob("[0-9].png"):
            # One grey level: convolutions sum in another order at another batch size.
            difference = np.abs(picture(path) - picture(whole / path.name))
            assert difference.max() <= 1, f"{path.name} {name}"
    again = sampled("again", "-n", 6)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def test_different_seeds_are_different_images(sampled: Callable[..., Path]) -> None:
    out = sampled("some", "-n", 4)
    found = [picture(out / f"{k}.png") for k in range(4)]
    assert all((found[i] != found[j]).mean() > 0.1 for i in range(4) for j in range(i))


def test_the_command_and_the_pipeline_agree(sampled: Callable[..., Path], run: Path) -> None:
    out = sampled("some", "-n", 3, "--size", "18", "--sampling-steps", 4)
    pipeline = morphogen.Pipeline.from_pretrained(run)
    images = pipeline(seeds=range(3), height=18, width=18, num_inference_steps=4).images
    for k, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(image), picture(out / f"{k}.png"))


# Some of diffusers' schedulers hand tensors to NumPy 2 as NumPy 1 wanted them.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize(
    "sampler",
    ["ddpm", "ddim", "dpm++", "dpm++-single", "dpm++-sde", "unipc", "euler", "euler-a", "heun"],
)
def test_every_sampler(sampled: Callable[..., Path], sampler: str) -> None:
    out = sampled("some", "-n", 2, "--sampler", sampler, "--sampling-steps", 5)
    assert metadata(out / "0.png")["sampler"] == sampler
    assert metadata(out / "0.png")["sampling_steps"] == 5
    alone = sampled("alone", "-n", 1, "--seed", 1, "--sampler", sampler, "--sampling-steps", 5)
    assert np.abs(picture(alone / "1.png") - picture(out / "1.png")).max() <= 1


def test_film(sampled: Callable[..., Path]) -> None:
    out = sampled("film", "-n", 2, "--film", "--sampling-steps", 8)
    with Image.open(out / "film.webp") as film:
        assert film.n_frames == 8
        film.seek(7)
        last = np.asarray(film.convert("RGB")).astype(int)
    # The last frame is the grid, but for WebP's loss, which takes most from the colours of noise.
    shown, grid = last.mean(axis=2).ravel(), picture(out / "grid.png").mean(axis=2).ravel()
    assert np.corrcoef(shown, grid)[0, 1] > 0.9


def test_without_a_grid(sampled: Callable[..., Path]) -> None:
    assert {p.name for p in sampled("some", "-n", 2, "--no-grid").iterdir()} == {"0.png", "1.png"}
    assert {p.name for p in sampled("one", "-n", 1).iterdir()} == {"0.png"}


def test_other_files_in_the_folder_stay(sampled: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    sampled("mine", "-n", 1)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_model_folder_without_a_run(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "model" / name)
    assert cli("sample", tmp_path / "model", "-n", 1, "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "0.png").is_file()


def test_bfloat16_is_nearly_the_same(sampled: Callable[..., Path]) -> None:
    out = sampled("some", "-n", 2, "--precision", "float32")
    said = "" if has_bfloat16() else "note: sampling without the fast kernel: "
    narrow = sampled("narrow", "-n", 2, "--precision", "bfloat16", said=said)
    assert metadata(narrow / "0.png")["precision"] == "bfloat16"
    difference = np.abs(picture(out / "0.png") - picture(narrow / "0.png"))
    # bfloat16 has 8 bits, and ten steps add up.
    assert 0 < difference.mean() < 6


def test_the_largest_seed(sampled: Callable[..., Path]) -> None:
    seed = 2**64 - 1
    assert metadata(sampled("some", "-n", 1, "--seed", seed) / f"{seed}.png")["seed"] == seed


def test_it_goes_on_where_it_was_stopped(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    """What is there stays, what is missing comes as in an undisturbed run, and shards make the same images."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    sample = ("sample", run, "-n", 7, "--batch-size", 1, "--out")
    assert cli(*sample, whole).code == 0
    for shard in ("3/3", "1/3"):
        ended = cli(*sample, parts, "--shard", shard)
        assert ended.code == 0 and "grid" not in ended.out
    made = {p.name: p.stat().st_mtime_ns for p in parts.iterdir()}
    assert made.keys() == {"0.png", "2.png", "3.png", "5.png", "6.png"}
    assert "7 images" in (ended := cli(*sample, parts)).out and "(5 were there already)" in ended.out
    assert {p.name: p.read_bytes() for p in parts.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    assert all((parts / name).stat().st_mtime_ns == then for name, then in made.items())
    assert "(7 were there already)" in cli("sample", run, "-n", 9, "--out", parts).out, "more of the same"


def test_long_work_is_said_beforehand(command: RealCommand, run: Path, tmp_path: Path) -> None:
    """And what is done when it is stopped is kept."""
    out = tmp_path / "many"
    process = command.start("sample", run, "-n", 10**5, "--batch-size", 1, "--out", out)
    until(lambda: "the same command goes on" in process.err)
    assert re.search(r"100,000 images: about \d+ (minutes|h|days); Ctrl-C keeps what is done", process.err)
    assert len(list(out.iterdir())) < 1000, "near the beginning"
    until(lambda: (out / "0.png").exists())
    process.send(signal.SIGINT)
    assert process.wait() == 3, process.err
    assert (out / "0.png").exists()


def test_nothing_of_others_is_replaced(
    cli: Callable[..., Outcome], refused: Callable[..., str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("sample", run, "-n", 2).code == 0
    shutil.copytree(run, "other")
    refused("sample", "other", "-n", 2, says=["samples/0.png", "model was", "--overwrite"], keeps=[tmp_path])
    refused("sample", run, "-n", 2, "--sampler", "euler", says=["sampler was ddim, is euler"], keeps=[tmp_path])
    refused("sample", run, "-n", 2, "--seed", 5, says=["grid.png shows other seeds"], keeps=[tmp_path])
    assert cli("sample", run, "-n", 2, "--seed", 5, "--no-grid").code == 0
    for name in ("0.png", "grid.png", "film.webp"):
        (tmp_path / name).write_text("mine")
        refused("sample", run, "-n", 2, "--film", "--out", ".", says=[f"{name} is there"], keeps=[tmp_path])
        (tmp_path / name).unlink()
    (tmp_path / "0.png").symlink_to("nowhere.png")
    refused("sample", run, "-n", 2, "--out", ".", says=["0.png is there"])
    (tmp_path / "gone").symlink_to("nowhere")
    refused("sample", run, "--out", "gone", says=["--out gone is a link to something that is not there"])
    assert cli("sample", "other", "-n", 2, "--overwrite").code == 0
    assert metadata(tmp_path / "samples" / "0.png")["model"] == "other"
    shutil.copytree(run, tmp_path / "elsewhere" / "other")
    refused("sample", "elsewhere/other", "-n", 2, says=["the model was in another folder"], keeps=[tmp_path])


def test_files_tell_no_path_of_this_machine(
    cli: Callable[..., Outcome], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published picture names its model: a folder by its last part, a model of the hub by its id and revision."""
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    Image.new("RGB", (24, 20)).save(photo)
    assert cli("sample", run, "-n", 2, "--film", "--out", out).code == 0
    assert cli("vary", run, photo, "--film", "--out", out).code == 0
    for path in out.iterdir():
        assert os.fsencode(run.parent) not in path.read_bytes(), path
    cached = tmp_path / "hub" / "models--lab--nuclei-2" / "snapshots" / "0a1b2c"
    shutil.copytree(run, cached)
    monkeypatch.setattr("morphogen.models._fetch", lambda name: cached)
    assert cli("sample", "lab/nuclei-2", "-n", 1, "--out", tmp_path / "named").code == 0
    found = metadata(tmp_path / "named" / "0.png")
    assert (found["model"], found["revision"]) == ("lab/nuclei-2", "0a1b2c")
    assert "model_place" not in found
    assert str(tmp_path) not in str(found)
    slide = ("slide", "lab/nuclei-2", "--size", 24, "--sampling-steps", 1, "--out", tmp_path / "a.dzi")
    assert cli(*slide).code == 0
    assert "there already" in cli(*slide).out
    said = json.loads((tmp_path / "a_files" / "morphogen.json").read_text())
    assert (said["model"], said["revision"]) == ("lab/nuclei-2", "0a1b2c")
    assert str(tmp_path) not in str(said)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3"])
def test_wrong_shards(refused: Callable[..., str], run: Path, tmp_path: Path, shard: str) -> None:
    refused("sample", run, "--shard", shard, "--out", tmp_path / "out", says=[f"--shard {shard}", "such as 2/4"])


def test_a_film_of_an_interrupted_run(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    film = ("sample", run, "-n", 3, "--film", "--sampling-steps", 4, "--out", tmp_path / "out")
    assert cli(*film[:4], *film[5:]).code == 0
    assert cli(*film).code == 0
    with Image.open(tmp_path / "out" / "film.webp") as shown:
        assert shown.n_frames == 4
    before = (tmp_path / "out" / "film.webp").stat().st_mtime_ns
    assert "(3 were there already)" in cli(*film).out
    assert (tmp_path / "out" / "film.webp").stat().st_mtime_ns == before
