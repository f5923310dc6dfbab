"""A model's scale in pictures: they say it, and a picture of another one is refused or brought to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from run_helpers import Outcome, pixels

import morphogen
from morphogen.core.errors import InputError
from morphogen.core.images import METADATA_KEY, save_png

Cli = Callable[..., Outcome]


@pytest.fixture
def half(run: Path, tmp_path: Path) -> Path:
    """The run's model, at half a micrometre a pixel."""
    return at_scale(run, tmp_path / "half", 0.5)


def at_scale(run: Path, folder: Path, mpp: float) -> Path:
    folder.mkdir()
    shutil.copy(run / "model.safetensors", folder)
    config = json.loads((run / "config.json").read_text())
    config["image"]["mpp"] = mpp
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def said(path: Path) -> tuple[dict[str, Any], tuple[float, float]]:
    with Image.open(path) as image:
        return json.loads(image.info[METADATA_KEY]), image.info["dpi"]


def test_pictures_and_info_say_the_scale(cli: Cli, half: Path, run: Path, tmp_path: Path) -> None:
    assert cli("sample", half, "-n", 1, "--out", tmp_path / "s").code == 0
    facts, dpi = said(tmp_path / "s" / "0.png")
    assert facts["mpp"] == 0.5
    assert dpi == pytest.approx((50_800, 50_800), rel=1e-4)  # a PNG has whole pixels a metre
    assert json.loads(cli("info", half, "--json").out)["micrometres_a_pixel"] == 0.5
    assert "micrometres a pixel     0.5" in cli("info", half).out
    assert "micrometres" not in cli("info", run).out
    assert cli("upscale", half, tmp_path / "s" / "0.png", "--out", tmp_path / "u").code == 0
    facts, dpi = said(tmp_path / "u" / "0.png")
    assert facts["mpp"] == 0.25 and dpi == pytest.approx((101_600, 101_600), rel=1e-4)


@pytest.mark.parametrize("task", ["inpaint", "vary"])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_picture_of_another_scale(cli: Cli, half: Path, tmp_path: Path, task: str, kind: str) -> None:
    """Refused; with --rescale brought to the model's scale, its hole with it."""
    source, out = tmp_path / f"a.{kind}", tmp_path / "out"
    if kind == "png":
        save_png(source, Image.fromarray(pixels(40, 36, 1)), {"mpp": 0.25})
    else:
        size = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
        tifffile.imwrite(source, pixels(40, 36, 1), ome=True, photometric="rgb", metadata={"axes": "YXS", **size})
    box = ("--box", "8,8,16,12") if task == "inpaint" else ()
    outcome = cli(task, half, source, *box, "--out", out)
    assert outcome.code == 2
    assert "0.25 micrometres a pixel, but this model paints at 0.5; --rescale brings it" in outcome.err
    outcome = cli(task, half, source, *box, "--rescale", "--out", out)
    assert outcome.code == 0, outcome.err
    with Image.open(out / "a.png") as made, Image.open(source) as given:
        assert made.size == (18, 20)
        known = np.asarray(given.convert("RGB").resize((18, 20), Image.Resampling.BICUBIC), float)
        differs = (np.abs(np.asarray(made, float) - known) > 2).any(2)  # two ways of rounding
    if task == "inpaint":
        assert differs[4:12, 4:10].mean() > 0.5
        differs[4:12, 4:10] = False
        assert not differs.any()
    assert said(out / "a.png")[0].items() >= {"mpp": 0.5, "rescaled_from": 0.25}.items()
    assert "1 were there already" in cli(task, half, source, *box, "--rescale", "--out", out).out


def test_the_same_scale_and_an_unknown_one(cli: Cli, half: Path, run: Path, tmp_path: Path) -> None:
    near = at_scale(run, tmp_path / "near", 0.505)
    assert cli("sample", near, "-n", 1, "--out", tmp_path).code == 0
    assert cli("vary", half, tmp_path / "0.png", "--out", tmp_path / "v").code == 0
    Image.fromarray(pixels(20, 20, 1)).save(tmp_path / "b.png", dpi=(72, 72))  # what programs write by default
    assert cli("vary", half, tmp_path / "b.png", "--out", tmp_path / "w").code == 0
    facts, dpi = said(tmp_path / "w" / "b.png")
    assert "mpp" not in facts and dpi == pytest.approx((72, 72), rel=1e-3)


def test_from_python(half: Path, run: Path, tmp_path: Path) -> None:
    image = morphogen.Pipeline.from_pretrained(half)(seeds=1).images[0]
    assert image.info["mpp"] == 0.5
    assert morphogen.Pipeline.from_pretrained(half).upscale(image, seeds=1).images[0].info["mpp"] == 0.25
    other = morphogen.Pipeline.from_pretrained(at_scale(run, tmp_path / "one", 1.0))
    with pytest.raises(InputError, match=r"0\.5 micrometres a pixel, but this model paints at 1; resize it to 8x8"):
        other.vary(image, seeds=1)
    with pytest.raises(InputError, match="but this model paints at 1"):
        other.inpaint(image, np.eye(16, dtype=bool), seeds=1)
