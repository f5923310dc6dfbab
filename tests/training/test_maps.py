"""`train --maps`: what a run learns and says, resumed bit for bit, alone, in levels and in latents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from map_helpers import draw_map
from PIL import Image
from run_helpers import Outcome

from morphogen.core.condition import class_names
from morphogen.models import load_model

COLOURS = np.array([[250, 240, 245], [90, 40, 140], [200, 120, 160]], np.uint8)
TINY = (
    *("--maps", "maps", "--size", "16", "--batch-size", "2", "--split", "none", "--precision", "float32"),
    *("--set", "architecture.hidden=16", "--set", "architecture.nca_steps=2", "--set", "architecture.channels=14"),
    *("--set", "architecture.patch=1", "--set", "training.saving.sample_images=0"),
)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated") / "set"
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True)
    for k in range(3):
        values = draw_map(folder / "maps" / f"{k}.png", (40, 48), k)
        Image.fromarray(COLOURS[values]).save(folder / "images" / f"{k}.png")
    (folder.parent / "classes.json").write_text(json.dumps({"0": "background", "1": "nucleus", "2": "rim"}))
    return folder


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("more", [(), ("--levels", 2, "--factor", 2, "--fit", "random")], ids=["alone", "levels"])
def test_a_run_stopped_and_gone_on_with_is_the_longer_run(
    cli: Callable[..., Outcome], annotated: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    words = ("train", annotated, *TINY, *more, "--classes", annotated.parent / "classes.json")
    for steps in (2, 5):
        assert cli(*words, "--out", tmp_path / "parts", "--steps", steps).code == 0
    assert cli(*words, "--out", tmp_path / "whole", "--steps", 5).code == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    model = load_model(tmp_path / "whole")
    assert class_names(dict(model.classes)) == ["background", "nucleus", "rim"]
    assert "classes: ['background', 'nucleus', 'rim']" in (tmp_path / "whole" / "README.md").read_text()
    plain = cli("train", annotated / "images", *TINY[2:], *more, "--out", tmp_path / "plain", "--steps", 5)
    assert plain.code == 0 and weights(tmp_path / "plain") != weights(tmp_path / "whole")
    other = annotated.parent / "other.json"
    other.write_text(json.dumps({"0": "background", "1": "nucleus", "2": "nucleus"}))
    changed = cli(*words[:-1], other, "--out", tmp_path / "whole", "--steps", 6)
    assert changed.code == 2 and "Traceback" not in changed.err


def test_in_latents_and_of_other_families(cli: Callable[..., Outcome], annotated: Path, tmp_path: Path) -> None:
    settings = ("--maps", "maps", "--size", "32", "--batch-size", "2", "--split", "none", "--steps", 2)
    settings = (*settings, "--fit", "crop", "--set", "training.saving.sample_images=2")
    learnt = ("--autoencoder", "learn:4", "--set", "architecture.nca_steps=2")
    for name, more in (("latents", learnt), ("geca", ("--model", "geca-xs")), ("unet", ("--model", "unet-s"))):
        done = cli("train", annotated, *settings, *more, "--out", tmp_path / name)
        assert done.code == 0, done.err
        assert class_names(dict(load_model(tmp_path / name).classes)) == ["0", "1", "2"]
        painted = cli(
            "paint",
            tmp_path / name,
            annotated / "maps" / "0.png",
            "--sampling-steps",
            2,
            "--out",
            tmp_path / f"{name}-painted",
        )
        assert painted.code == 0, painted.err


def test_what_is_refused(cli: Callable[..., Outcome], annotated: Path, tmp_path: Path) -> None:
    for words, sentence in (
        (("--maps", "maps", "--model", "vnca"), "--maps: vnca paints from none; use a diffusion model"),
        (("--classes", annotated.parent / "classes.json"), "classes are those of maps; give maps too"),
        (("--maps", annotated / "maps" / "0.png"), "--maps 0.png: it is no folder"),
        (("--maps", annotated.parent / "nowhere"), "--maps nowhere: it is no folder"),
    ):
        done = cli("train", annotated, "--size", 16, *words, "--out", tmp_path / "run", "--steps", 1)
        assert done.code == 2 and sentence in done.err and "Traceback" not in done.err, done.err
