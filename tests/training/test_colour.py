"""Sets of gray and of transparent images make models of such, from training to every task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import TINY, Outcome

import morphogen
from morphogen.core.errors import InputError
from morphogen.core.images import sample_grid, save_film, to_bytes, to_pil, to_rgb
from morphogen.data.colour_choice import choose_colour
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.metrics.image_sets import of_dataset
from morphogen.models import create_model
from morphogen.tasks.pictures import as_picture
from morphogen.training.recipes import resolve

Cli = Callable[..., Outcome]
RNG = np.random.default_rng(3)


def icon(seed: int, side: int = 16) -> Image.Image:
    """A disc of one colour with a soft edge on nothing; what lies beneath transparent pixels is noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    alpha = np.clip((side / 2.5 - np.hypot(x, y)) * 90, 0, 255).astype(np.uint8)
    pixels = np.where(
        alpha[..., None] > 0, rng.integers(0, 256, 3, dtype=np.uint8), rng.integers(0, 256, (side, side, 3))
    )
    return Image.fromarray(np.dstack([pixels.astype(np.uint8), alpha]))


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    folder = tmp_path / "icons"
    folder.mkdir()
    for i in range(12):
        icon(i).save(folder / f"{i:02d}.png")
    return folder


def choice(folder: Path, **settings: object) -> str:
    return choose_colour(DataConfig(source=str(folder), **settings)).colour  # type: ignore[arg-type]


def test_what_a_set_is(icons: Path, tmp_path: Path) -> None:
    assert choice(icons) == "rgba"
    assert choice(icons, background="black") == "rgb"
    assert choice(icons, colour="gray") == "gray"
    assert choice(icons, stain_jitter=0.1) == "rgb"
    for i in range(12, 25):  # now most are opaque, though they have an alpha channel
        icon(i).convert("RGB").convert("RGBA").save(icons / f"{i}.png")
    assert choice(icons) == "rgb"
    gray = tmp_path / "gray"
    gray.mkdir()
    for i, kind in enumerate(("a.png", "b.jpg", "c.tif", "d.bmp", "e.webp")):
        image = icon(i, 64).convert("L")
        (image if i % 2 else image.convert("RGB")).save(gray / kind, **({"lossless": True} if i == 4 else {}))
    Image.fromarray(RNG.integers(0, 65536, (64, 64), dtype=np.uint16)).save(gray / "f.png")
    assert choice(gray) == "gray"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(gray / "z.png")
    assert choice(gray) == "rgb"
    assert choice(tmp_path / "nowhere") == "rgb"  # which reading it will refuse by name
    assert choose_colour(DataConfig(source="builtin:brick")).colour == "gray"
    assert choose_colour(DataConfig(source="builtin:tissue")).colour == "rgb"


def test_a_single_coloured_image_among_many_gray_ones_is_seen(tmp_path: Path) -> None:
    for i in range(40):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:02d}.png")
    assert choice(tmp_path) == "gray"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "01.png")
    assert choice(tmp_path) == "rgb"


def test_it_is_said_and_can_be_said_otherwise(icons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"source": str(icons), "size": 16}
    assert resolve({"data": data}).data.colour == "rgba"
    assert "12 of 12 images looked at are transparent" in capsys.readouterr().err
    for other in ({"background": "black"}, {"colour": "rgb"}):
        assert resolve({"data": {**data, **other}}).data.colour == "rgb"
    assert resolve({"data": data, "model": "vnca"}).data.colour == "rgb"  # which makes no fourth channel
    assert resolve({"data": data}, assignments=["architecture.channels=6", "architecture.patch=1"]).data.colour == "rgb"
    before = resolve({"data": {**data, "colour": "gray"}})
    assert resolve({"data": data}, before=before).data.colour == "gray"  # as the run has been trained
    assert not capsys.readouterr().err


def test_colours_are_multiplied_by_alpha(icons: Path) -> None:
    with Image.open(icons / "00.png") as image:
        straight = np.asarray(image).astype(float)
    config = DataConfig(source=str(icons), size=16, colour="rgba", split="none", domain="icons", fit="crop")
    pixels = build_dataset(config, progress=False).fixed(0)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels[..., 3], straight[..., 3])
    # Pillow's product of bytes is within one level of the exact one.
    assert np.abs(pixels[..., :3] - straight[..., :3] * straight[..., 3:] / 255).max() <= 1
    assert (pixels[..., :3] <= pixels[..., 3:]).all()
    for fit in ("crop", "pad", "stretch"):
        small = build_dataset(config.model_copy(update={"size": (8, 10), "fit": fit}), progress=False).fixed(0)[0]
        assert small.shape == (4, 8, 10) and (small[:3] <= small[3:]).all()
    whole = of_dataset(build_dataset(config, progress=False))[0].numpy().transpose(1, 2, 0)
    over = Image.alpha_composite(Image.new("RGBA", (16, 16), "white"), Image.fromarray(straight.astype(np.uint8)))
    assert np.abs(whole.astype(int) - np.asarray(over)[..., :3]).max() <= 1


def test_bytes_and_pictures_of_four_channels() -> None:
    given = icon(0)
    picture = as_picture(given)
    seen = picture.for_model(4)
    assert seen[:, 0, 0].tolist() == [-1, -1, -1, -1]
    out = to_pil(seen[None])[0]
    assert out.mode == "RGBA"
    visible = np.asarray(given)[..., 3] > 0
    # What is multiplied and divided in float32 and rounded once comes back exactly.
    np.testing.assert_array_equal(np.asarray(out)[visible], np.asarray(given)[visible])
    assert (np.asarray(out)[~visible] == 0).all()
    np.testing.assert_array_equal(np.asarray(picture.painted(seen).given())[visible], np.asarray(given)[visible])
    over = Image.alpha_composite(Image.new("RGBA", (16, 16), "white"), given).convert("RGB")
    assert np.abs(to_bytes(to_rgb(seen[None]))[0].astype(int) - np.asarray(over)).max() <= 1
    plain = as_picture(over)
    assert torch.equal(plain.for_model(4)[3], torch.ones(16, 16))
    np.testing.assert_array_equal(np.asarray(plain.painted(plain.for_model(4)).given()), np.asarray(over))
    assert sample_grid([out] * 3).getpixel((16, 3)) == (0, 0, 0, 0)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(InputError, match="2 channels"):
        as_picture(icon(0)).for_model(2)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_films_are_transparent(tmp_path: Path, suffix: str) -> None:
    save_film(tmp_path / f"film{suffix}", [icon(i) for i in range(3)])
    with Image.open(tmp_path / f"film{suffix}") as film:
        film.seek(2)
        shown = np.asarray(film.convert("RGBA"))
    assert shown[0, 0, 3] == 0 and shown[8, 8, 3] == 255


def test_from_icons_to_icons(cli: Cli, icons: Path, tmp_path: Path) -> None:
    """Train, sample with a grid and a film, inpaint, vary, upscale, evaluate: transparency all the way."""
    run, out = tmp_path / "run", tmp_path / "out"
    (icons / "11.png").unlink()
    assert "nothing wrong; most are transparent in places" in cli("data", "check", icons, "--size", 16).out
    assert json.loads(cli("data", "check", icons, "--size", 16, "--json").out)["colour"] == "rgba"
    trained = cli("train", icons, "--out", run, *TINY, "--steps", 2, "--domain", "icons")
    assert "11 of 11 images looked at are transparent in places" in trained.err
    assert json.loads((run / "config.json").read_text())["image"]["channels"] == 4
    assert cli("train", icons, "--out", run, *TINY, "--steps", 3, "--domain", "icons").code == 0  # goes on
    cli("sample", run, "-n", 2, "--grid", "--film", "--out", out)
    cli("inpaint", run, icons / "00.png", "--box", "2,3,4,5", "--out", out / "inpainted")
    cli("vary", run, icons / "00.png", "--out", out / "varied")
    cli("upscale", run, icons / "00.png", "--out", out / "enlarged")
    for name in ("0.png", "grid.png", "inpainted/00.png", "varied/00.png", "enlarged/00.png"):
        with Image.open(out / name) as image:
            assert image.mode == "RGBA", name
    with Image.open(out / "inpainted" / "00.png") as image:
        after, before = np.asarray(image).copy(), np.asarray(icon(0)).copy()
    after[2:6, 3:8] = before[2:6, 3:8] = 0
    np.testing.assert_array_equal(after, before)
    pipeline = morphogen.Pipeline.from_pretrained(run)
    assert pipeline(seeds=[0], output_type="np").images.shape == (1, 16, 16, 4)


def test_gray_models_make_gray_pictures() -> None:
    model = create_model("diff-nca-small", size=16, image_channels=1, nca_steps=2, channels=8, hidden=8)
    assert morphogen.Pipeline(model)(seeds=[0], num_inference_steps=2).images[0].mode == "L"
