"""Training from Python: the same runs as by the command, and what a run gives back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import TINY, Outcome, assert_same_run
from slide_files import write_zarr

import morphogen
from morphogen.core.errors import InputError
from morphogen.training.run_folder import read_run

SMALL = {
    "size": 16,
    "batch_size": 4,
    "architecture": {"channels": 8, "hidden": 16, "nca_steps": 2},
    "training": {"saving": {"sample_images": 0}},
}


def test_a_run_from_python_is_that_of_the_command(
    cli: Callable[..., Outcome], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = morphogen.train(images, out=tmp_path / "here", steps=3, progress=False, **SMALL)
    assert capsys.readouterr().err == ""
    assert run.step == 3
    again = morphogen.train(str(images), out=str(tmp_path / "here"), steps=5, **SMALL)
    assert "resuming" in capsys.readouterr().err
    assert again.step == run.step == 5
    assert run.resume(steps=7, progress=False).step == 7
    assert cli("train", images, "--out", tmp_path / "there", *TINY, "--steps", 7).code == 0
    assert_same_run(tmp_path / "here", tmp_path / "there")


def test_what_a_run_gives(images: Path, tmp_path: Path) -> None:
    settings = {"saving": {"sample_images": 2, "sample_every": 2, "validate_every": 2}}
    plain = {**SMALL, "training": settings, "diffusion": {"timesteps": 5}}
    run = morphogen.train(images, model="diff-nca-small", out=tmp_path / "run", steps=4, progress=False, **plain)
    table = run.metrics()
    assert table["step"] == [1, 2, 3, 4]
    assert [error is None for error in table["held_out_noise_error"]] == [True, False, True, False]
    assert {len(column) for column in table.values()} == {4}
    grids = run.samples()
    assert list(grids) == [2, 4]
    assert grids[4].size == (2 * 16 + 2, 16)
    assert run.load().parameter_count() == 3488
    assert len(morphogen.Pipeline.from_pretrained(run.path)(seeds=[1], num_inference_steps=1).images) == 1
    assert morphogen.Run(tmp_path / "run").config == run.config
    assert "step 4" in repr(run)


def test_wrong_settings_are_named(images: Path, tmp_path: Path) -> None:
    for settings, says in (
        ({"learning_rate": 1e-3}, "morphogen.train: there is no setting 'learning_rate'; did you mean 'training.optim"),
        ({"modle": "diff-nca"}, "did you mean 'model'"),
        ({"steps": 0}, "training.steps"),
        ({"model": "diff-nsa"}, "there is no model 'diff-nsa'"),
    ):
        with pytest.raises(InputError, match=says):
            morphogen.train(images, out=tmp_path / "run", **settings)
    with pytest.raises(InputError, match="does not exist"):
        morphogen.train(tmp_path / "nowhere", out=tmp_path / "run")
    with pytest.raises(InputError, match="is not a run folder"):
        morphogen.Run(tmp_path)
    assert not (tmp_path / "run").exists()


# --- where things lie ---


def test_paths_are_absolute_and_move_with_the_folder(
    cli: Callable[..., Outcome], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place := tmp_path / "place").mkdir()
    shutil.copytree(images, place / "photos")
    monkeypatch.chdir(place)
    assert cli("data", "split", "photos", "--out", "split.json").code == 0
    options = ("--split", "split.json", *TINY, "--steps")
    assert cli("train", "photos", "--out", "run", *options, 2).code == 0
    assert cli("train", "photos", "--out", "tuned", *options, 2, "--init", "run", "--seed", 1).code == 0
    written = json.loads((place / "tuned" / "run.json").read_text())
    assert written["data"]["source"] == str(place / "photos")
    assert written["data"]["split"] == str(place / "split.json")
    assert written["init"] == str(place / "run")
    assert written["relative_to_run"] == {"data.source": "../photos", "data.split": "../split.json", "init": "../run"}
    assert cli("train", "photos", "--out", "tuned", *options, 3, "--init", "run", "--seed", 1).code == 0

    monkeypatch.chdir(tmp_path)
    assert read_run(place / "tuned").data.source == str(place / "photos")
    place.rename(tmp_path / "moved")
    found = read_run(tmp_path / "moved" / "tuned")
    assert found.data.source == str(tmp_path / "moved" / "photos")
    assert found.data.split == str(tmp_path / "moved" / "split.json")
    assert found.init == str(tmp_path / "moved" / "run")
    moved = tmp_path / "moved"
    options = ("--split", moved / "split.json", *TINY, "--steps")
    assert cli("train", moved / "photos", "--out", moved / "run", *options, 4).code == 0


@pytest.mark.parametrize("name", ["model card", "config"])
def test_local_paths_are_not_published(images: Path, tmp_path: Path, name: str) -> None:
    run = morphogen.train(images, out=tmp_path / "run", steps=1, progress=False, **SMALL)
    text = (run.path / ("README.md" if name == "model card" else "config.json")).read_text()
    assert str(images.parent) not in text
    assert str(tmp_path) not in text
    assert name == "config" or f"- source: {images.name}" in text


def test_a_model_remembers_the_scale_of_its_images() -> None:
    from morphogen.core.model import ImageConfig

    image = ImageConfig(height=64, width=32, mpp=0.5)
    assert image.scaled(1 / 8, 4) == ImageConfig(height=8, width=4, channels=4, mpp=4.0)
    assert image.scaled(1 / 8, 4).scaled(8, 3) == image
    assert "mpp" not in ImageConfig().settings()
    model = morphogen.create_model("diff-nca-small", size=16, channels=8, hidden=16)
    model.image = model.image.model_copy(update={"mpp": 0.25})
    assert model.config_dict()["image"]["mpp"] == 0.25
    assert model.picture.mpp == 0.25


def test_the_scale_of_slides_stays_with_the_model(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    (slides := tmp_path / "slides").mkdir()
    for name in ("a", "b"):
        write_zarr(slides / f"{name}.ome.zarr", 3, unit="micrometer", scale=0.5)
    for number, (option, mpp) in enumerate(((("--downscale", 2), 1.0), (("--mpp", 0.75), 0.75), ((), 0.5))):
        run = tmp_path / str(number)
        ended = cli("train", slides, "--out", run, *TINY, *option, "--steps", 1, "--split", "none")
        assert ended.code == 0, ended.err
        assert morphogen.Run(run).load().picture.mpp == pytest.approx(mpp)
    run = tmp_path / "plain"
    assert cli("train", images, "--out", run, *TINY, "--steps", 1).code == 0
    assert morphogen.Run(run).load().picture.mpp is None
