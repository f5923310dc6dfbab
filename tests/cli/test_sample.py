"""`morphogen sample`: files, metadata, and images that depend on their seeds alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import Outcome, snapshot

import morphogen
from morphogen._version import VERSION
from morphogen.core.images import METADATA_KEY


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def metadata(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        return dict(json.loads(image.info[METADATA_KEY]))


@pytest.fixture
def sampled(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> Callable[..., Path]:
    """sampled("name", *options): the folder of samples."""

    def make(name: str, *options: object) -> Path:
        ended = cli("sample", run, "--out", tmp_path / name, *options)
        assert ended.code == 0, ended.err
        assert ended.err == ""
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
        wanted = {"model": str(run), "seed": seed, "height": 20, "width": 24, "sampler": "ddpm", "sampling_steps": 10}
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
    narrow = sampled("narrow", "-n", 2, "--precision", "bfloat16")
    assert metadata(narrow / "0.png")["precision"] == "bfloat16"
    difference = np.abs(picture(out / "0.png") - picture(narrow / "0.png"))
    # bfloat16 has 8 bits, and ten steps add up.
    assert 0 < difference.mean() < 6


def test_the_largest_seed(sampled: Callable[..., Path]) -> None:
    seed = 2**64 - 1
    assert metadata(sampled("some", "-n", 1, "--seed", seed) / f"{seed}.png")["seed"] == seed
