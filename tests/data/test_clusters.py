"""Maps without annotation: `auto:K` finds classes, keeps them in the run, and gives any picture its map."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import Outcome

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.models import load_model

pytest.importorskip("sklearn")
COLOURS = np.array([[60, 30, 90], [200, 90, 120], [240, 235, 240]], np.uint8)  # dark to bright


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three kinds of ground in large patches, a little noisy, and what they are of beside the folder."""
    folder = tmp_path_factory.mktemp("fields") / "set"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for k in range(6):
        kinds = draw.integers(0, 3, (3, 3)).repeat(32, 0).repeat(32, 1)
        pixels = COLOURS[kinds] + draw.normal(0, 8, (96, 96, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.png")
        np.save(folder.parent / f"{k}.npy", kinds)
    return folder


def test_the_classes_are_the_grounds_from_dark_to_bright_and_follow_crops(fields: Path) -> None:
    config = DataConfig(source=str(fields), size=48, maps="auto:3", split="none", domain="texture")
    data = build_dataset(config, progress=False)
    assert data.clusters is not None and len(data.clusters.centres) == 3
    agreed = []
    for n in range(12):
        image, found = data[n][0].permute(1, 2, 0).numpy().astype(int), data.map(n).numpy()
        nearest = np.abs(image[None] - COLOURS.astype(int)[:, None, None]).sum(axis=3).argmin(axis=0)
        agreed.append((nearest == found).mean())
    assert np.mean(agreed) > 0.8  # blurred by 4 pixels, so borders are rounded; by chance a third
    again = build_dataset(config, progress=False)
    assert again.clusters == data.clusters and (again.map(5) == data.map(5)).all()


def test_a_run_keeps_what_it_found_and_maps_other_pictures(
    cli: Callable[..., Outcome], fields: Path, tmp_path: Path
) -> None:
    words = (
        "train",
        fields,
        "--maps",
        "auto:3",
        "--size",
        32,
        "--batch-size",
        2,
        "--split",
        "none",
        "--domain",
        "texture",
    )
    words = (*words, "--set", "architecture.hidden=16", "--set", "architecture.nca_steps=2", "--precision", "float32")
    words = (*words, "--set", "training.saving.sample_images=0")
    for steps in (2, 4):
        assert cli(*words, "--steps", steps, "--out", tmp_path / "parts").code == 0
    assert cli(*words, "--steps", 4, "--out", tmp_path / "whole").code == 0
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    model = load_model(tmp_path / "whole")
    kept = json.loads((tmp_path / "whole" / "config.json").read_text())["condition"]["clusters"]
    assert len(kept["centres"]) == 3 and list(model.classes.values()) == ["class 1", "class 2", "class 3"]
    done = cli("data", "map", tmp_path / "whole", fields, "--out", tmp_path / "maps")
    assert done.code == 0 and "6 maps in" in done.out, done.err
    found = np.asarray(Image.open(tmp_path / "maps" / "2.png"))
    assert (found == np.load(fields.parent / "2.npy")).mean() > 0.8
    painted = cli(
        "paint", tmp_path / "whole", tmp_path / "maps" / "2.png", "--sampling-steps", 2, "--out", tmp_path / "p"
    )
    assert painted.code == 0, painted.err
    pairs = cli("expand", tmp_path / "whole", "--times", 1, "--sampling-steps", 2, "--out", tmp_path / "pairs")
    assert pairs.code == 0 and "6 of 6 images, each with its map" in pairs.out, pairs.err


def test_what_is_refused(cli: Callable[..., Outcome], fields: Path, tmp_path: Path) -> None:
    for words, sentence in (
        (("--maps", "auto:1"), "--maps auto:1: K should be 2 to 64"),
        (("--maps", "auto"), "--maps auto: it should be auto:K"),
        (("--maps", "auto:3", "--levels", 2, "--factor", 2), "which levels would find differently"),
    ):
        done = cli("train", fields, "--size", 32, *words, "--steps", 1, "--out", tmp_path / "run")
        assert done.code == 2 and sentence in done.err, done.err
    plain = tmp_path / "plain"
    plain.mkdir()
    for k in range(2):
        Image.new("RGB", (40, 40), (90, 40, 140)).save(plain / f"{k}.png")
    with pytest.raises(InputError, match="--maps auto:3: the images have 1 colours and textures; ask for fewer"):
        build_dataset(DataConfig(source=str(plain), size=32, maps="auto:3", split="none"), progress=False)
    done = cli("data", "map", "tissue-texture", fields, "--out", tmp_path / "maps")
    assert done.code == 2 and "was not trained with --maps auto:K" in done.err
    done = cli("segment", fields, "--maps", "auto:3", "--out", tmp_path / "seg")
    assert done.code == 2 and "there is nothing to learn from maps that follow from the images" in done.err
