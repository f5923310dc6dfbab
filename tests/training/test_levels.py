"""`train --levels N`: a run for every level, resumed bit for bit after a kill at any of them, and refusals."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import ForkServer, Outcome, draw_images, until

from morphogen.core.errors import InputError
from morphogen.diffusion.ladder import Ladder
from morphogen.models import load_model
from morphogen.training.levels import find_levels, finer_preset
from morphogen.training.recipes import resolve

TINY = (
    *("--size", "16", "--batch-size", "2", "--fit", "random", "--factor", "2", "--levels", "3"),
    *("--set", "architecture.channels=8", "--set", "architecture.patch=1", "--set", "architecture.hidden=16"),
    *("--set", "architecture.nca_steps=2", "--set", "training.saving.sample_images=0"),
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("levels") / "images", count=3, size=70)


def weights(run: Path) -> dict[str, bytes]:
    files = sorted(run.rglob("model.safetensors"))
    return {str(file.relative_to(run)): file.read_bytes() for file in files if "checkpoints" not in file.parts}


def test_a_pyramid_is_trained_extended_and_sampled(cli: Callable[..., Outcome], large: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = cli("train", large, "--out", whole, *TINY, "--steps", 6)
    assert ended.code == 0, ended.err
    assert "level 0 at 1/4: 16x16, about 4" in ended.err  # three images of 17.5x17.5
    assert "level 0 has few independent patches: below 50" in ended.err
    for steps in (2, 6):
        assert cli("train", large, "--out", parts, *TINY, "--steps", steps).code == 0
    assert weights(whole) == weights(parts)
    assert set(weights(whole)) == {"model.safetensors", *(f"levels/{k}/model.safetensors" for k in range(3))}
    ladder = load_model(whole)
    assert isinstance(ladder, Ladder)
    assert [level.condition is None for level in (ladder[0], ladder[1], ladder[2])] == [True, False, False]
    assert ladder[1].architecture.channels == 8 + 4  # type: ignore[attr-defined]

    for level, side in ((None, 40), (1, 20), (0, 17)):
        more = () if level is None else ("--level", level)
        out = tmp_path / f"level-{level}"
        ended = cli("sample", whole, "-n", 1, "--size", side, "--sampling-steps", 2, "--out", out, *more)
        assert ended.code == 0, ended.err
        with Image.open(out / "0.png") as picture:
            assert picture.size == (side, side)
            assert json.loads(picture.text["morphogen"]).get("level") == level  # type: ignore[attr-defined]
    ended = cli("sample", whole, "--level", 3, "--out", tmp_path / "none")
    assert (ended.code, (tmp_path / "none").exists()) == (2, False)
    assert "no level 3; this model has the levels 0 (coarsest) to 2" in ended.err
    told = cli("sample", whole / "levels" / "1", "-n", 1, "--out", tmp_path / "none")
    assert told.code == 2
    assert "name the run of all levels" in told.err
    ended = cli("info", whole, "--json")
    assert ended.code == 0
    facts = json.loads(ended.out)
    assert facts["levels"]["0"]["scale"] == "1/4"
    assert facts["levels"]["2"]["condition"]["factor"] == 2
    other = cli("train", large, "--out", whole, *TINY, "--factor", 4, "--steps", 6)
    assert other.code == 2


def test_killed_at_each_level_and_gone_on_with(forks: ForkServer, large: Path, tmp_path: Path) -> None:
    options = (*TINY, "--steps", 30, "--set", "training.saving.checkpoint_every=5")
    whole = tmp_path / "whole"
    assert forks.start("train", large, "--out", whole, *options).wait() == 0
    run = tmp_path / "killed"
    for k, what in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        process = forks.start("train", large, "--out", run, *options)
        until(lambda k=k: any((run / "levels" / str(k) / "checkpoints").glob("step-*")))
        process.send(what)
        assert process.wait() in (-signal.SIGKILL, 3, 0)
    assert forks.start("train", large, "--out", run, *options).wait() == 0
    assert weights(run) == weights(whole)


def test_the_plan_says_what_each_level_learns_from(cli: Callable[..., Outcome], large: Path, tmp_path: Path) -> None:
    ended = cli("train", large, "--out", tmp_path / "run", *TINY, "--minutes", 3, "--dry-run", "--json")
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)["estimate"]["levels"]
    assert [level["scale"] for level in plan] == [4, 2, 1]
    assert [level["size"] for level in plan] == [[16, 16]] * 3
    assert plan[2]["patches"] == pytest.approx(3 * (70 / 16) ** 2)
    ended = cli("train", large, "--out", tmp_path / "run", *TINY, "--minutes", 3, "--dry-run")
    assert "# level 0 at 1/4: 16x16, about 4 independent patches (few: below 50" in ended.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--levels", "4", "--factor", "2"), "at 1/8 the smallest image of .* is 9x9 .*; use fewer levels"),
        (("--levels", "2", "--factor", "9"), "levels.factor: .*less than or equal to 8"),
        (("--levels", "2", "--factor", "1"), "levels.factor: .*greater than or equal to 2"),
        (("--levels", "9"), "levels.count: .*less than or equal to 6"),
        (("--factor", "4"), "give --levels 2 or more, or leave it out"),
        (("--levels", "2", "--autoencoder", "learn:4"), "works in pixels, from the beginning; leave --autoencoder out"),
        (("--levels", "2", "--model", "vnca"), "vnca predicts no noise, which a level does"),
        (("--levels", "2", "--fit", "crop", "--factor", "3"), "1/3 of them, which should be whole pixels"),
    ],
)
def test_refusals(
    cli: Callable[..., Outcome], large: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    fit = () if "--fit" in options else ("--fit", "random")
    ended = cli("train", large, "--out", tmp_path / "run", "--size", 16, "--steps", 2, *fit, *options)
    assert ended.code == 2, ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert re.search(message, ended.err), ended.err
    assert not (tmp_path / "run").exists()


def test_the_finer_levels_of_a_model_that_sees_everything_are_local(tmp_path: Path) -> None:
    draw_images(tmp_path / "images", count=12, size=64)
    flags = {
        "model": "fourier-diff-nca-small",
        "levels": {"count": 2, "factor": 4},
        "data": {"source": str(tmp_path / "images"), "size": 64, "fit": "crop"},
        "training": {"steps": 5},
        "architecture": {"window": 4, "patch": 1},
    }
    config = resolve(flags)
    assert finer_preset(config) == "diff-nca-small"
    coarse, fine = find_levels(config)
    assert (coarse.config.model, coarse.config.data.size, coarse.patches) == ("fourier-diff-nca-small", (16, 16), 12)
    assert (fine.config.model, fine.config.data.size) == ("diff-nca-small", (64, 64))
    assert fine.config.condition is not None
    assert np.isclose(fine.config.training.steps or 0, 5)
    with pytest.raises(InputError, match="no model 'unet-x'"):
        resolve({**flags, "levels": {"count": 2, "finer": "unet-x"}})
