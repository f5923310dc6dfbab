"""diffusers' words for our options, and the nearest option to a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from run_helpers import Outcome

from morphogen.cli.aliases import in_our_words
from morphogen.core.errors import InputError


def test_our_own_words_stay() -> None:
    words = ["sample", "run", "--size", "64", "-n", "3", "--out=here", "--label", "--", "--height", "--out=~/x"]
    assert in_our_words(words) == words
    assert in_our_words(["slide", "run", "--size=64"]) == ["slide", "run", "--size=64"]
    assert in_our_words([]) == []


def test_diffusers_words() -> None:
    words = ["sample", "run", "--num-inference-steps", "20", "--guidance-scale=2", "--height", "64", "--width=96"]
    wanted = ["sample", "run", "--sampling-steps", "20", "--guidance=2", "--size", "64x96"]
    assert in_our_words(words) == wanted
    home = Path.home()
    assert in_our_words(["sample", "--out=~/x", "--out=~"]) == ["sample", f"--out={home}/x", f"--out={home}"]
    with pytest.raises(InputError, match="--height needs --width"):
        in_our_words(["sample", "--height", "64"])


def test_a_command_in_diffusers_words(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    words = ("--num-images", 1, "--height", 18, "--width", 20, "--num-inference-steps", 2, "--scheduler", "euler")
    assert cli("sample", run, *words, "--out", tmp_path).code == 0
    with Image.open(tmp_path / "0.png") as image:
        assert image.size == (20, 18)
    assert "num-inference" not in cli("sample", "--help").out


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("--steps", "did you mean --nca-steps or --sampling-steps?"),
        ("--lable", "did you mean --label?"),
        ("--precison", "did you mean --precision?"),
        ("--guidance_scale", "--guidance?"),
        ("--num-inference-step", "did you mean --num-inference-steps?"),
        ("--heigth", "did you mean --height?"),
        ("--zzz", "(see "),
    ],
)
def test_the_nearest_option(refused: Callable[..., str], wrong: str, meant: str) -> None:
    refused("sample", "tissue", wrong, 3, says=[f"there is no option {wrong}", meant])


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("--learning-rate", "did you mean --set training.optimizer.learning_rate=...?"),
        ("--lr", "did you mean --set training.optimizer.learning_rate=...?"),
        ("--warmup", "did you mean --set training.schedule.warmup=...?"),
        ("--decay", "--set training.schedule.decay=... or --set training.averaging.decay=...?"),
        ("--epochs", "did you mean --steps?"),
        ("--batchsize", "did you mean --batch-size?"),
        ("--mintues", "did you mean --minutes?"),
        ("--recipies", "did you mean --recipe?"),
        ("--zzz", "(see "),
    ],
)
def test_the_nearest_setting_of_a_training(refused: Callable[..., str], wrong: str, meant: str) -> None:
    refused("train", "builtin:tissue", wrong, 1, says=[f"there is no option {wrong}", meant])
