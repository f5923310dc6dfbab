"""Between tensors and pictures, and what is written into files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from morphogen.core import images


def level(value: float) -> float:
    """A grey level 0..255 on the scale [-1, 1]."""
    return value / 127.5 - 1


def one(*values: float) -> Tensor:
    """A gray image of one row."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def test_bytes_round_to_the_nearest_level_and_clip() -> None:
    values = one(-1, 1, level(100.4), level(100.6), level(0.4), level(254.6), -1.5, 7, float("inf"), float("-inf"))
    assert images.to_bytes(values)[0, 0, :, 0].tolist() == [0, 255, 100, 101, 0, 255, 0, 255, 255, 0]
    assert images.to_bytes(values).dtype == np.uint8


def test_all_levels_come_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    floats = images.to_float(levels)
    assert (float(floats[0]), float(floats[255])) == (-1.0, 1.0) and floats.dtype == torch.float32
    assert images.to_bytes(floats.view(1, 1, 16, 16)).ravel().tolist() == levels.tolist()


def test_axes() -> None:
    batch = torch.full((2, 3, 4, 5), -1.0)
    batch[1, 2, 3, 0] = 1.0  # second image, blue, last row, first column
    array = images.to_bytes(batch)
    assert array.shape == (2, 4, 5, 3)
    assert array[1, 3, 0].tolist() == [0, 0, 255] and array.sum() == 255
    pictures = images.to_pil(batch)
    assert [p.size for p in pictures] == [(5, 4), (5, 4)]
    assert pictures[1].mode == "RGB" and pictures[1].getpixel((0, 3)) == (0, 0, 255)
    assert images.to_pil(batch[:, :1])[0].mode == "L"


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [(1, None, (5, 4)), (4, None, (12, 10)), (5, None, (19, 10)), (6, 2, (12, 16)), (3, 5, (33, 4))],
)
def test_grid(count: int, columns: int | None, size: tuple[int, int]) -> None:
    """Images of 5x4 with gaps of two: across, then down, on white."""
    sheet = images.sample_grid([Image.new("RGB", (5, 4), (i, 0, 0)) for i in range(count)], columns)
    assert sheet.size == size
    across = columns or int(np.ceil(count**0.5))
    for i in range(count):
        assert sheet.getpixel(((i % across) * 7, (i // across) * 6)) == (i, 0, 0)
    if size[0] > 5:
        assert sheet.getpixel((5, 0)) == (255, 255, 255)


def test_gray_grid() -> None:
    sheet = images.sample_grid([Image.new("L", (2, 2), 7)] * 2)
    assert sheet.mode == "L" and sheet.getpixel((2, 0)) == 255 and sheet.getpixel((4, 1)) == 7


def test_png_keeps_pixels_and_metadata(tmp_path: Path) -> None:
    picture = images.to_pil(torch.rand(1, 3, 9, 7) * 2 - 1)[0]
    metadata = {"model": "tissue-ü", "seed": 2**64 - 1, "settings": {"sampler": "dpm++", "steps": [1, 2.5, None]}}
    images.save_png(tmp_path / "a.png", picture, metadata)
    with Image.open(tmp_path / "a.png") as read:
        assert json.loads(read.info[images.METADATA_KEY]) == metadata
        assert np.array_equal(np.asarray(read), np.asarray(picture))
    images.save_png(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as read:
        assert images.METADATA_KEY not in read.info
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_metadata_are_read_back_or_are_none(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3))
    images.save_png(tmp_path / "a.png", picture, {"seed": 2**64 - 1})
    assert images.read_metadata(tmp_path / "a.png") == {"seed": 2**64 - 1}
    picture.save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:30])
    (tmp_path / "d.png").write_text("no image")
    images.save_png(tmp_path / "e.png", picture, None)
    for name in ("b.png", "c.png", "d.png", "e.png", "nowhere.png"):
        assert images.read_metadata(tmp_path / name) is None


@pytest.mark.parametrize("suffix", ["webp", "gif", "png", "WEBP"])
def test_film(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 6), (40 * i, 255 - 40 * i, 7)) for i in range(5)]
    path = tmp_path / f"film.{suffix}"
    images.save_film(path, frames, seconds=2.0, hold=1.0)
    with Image.open(path) as film:
        assert film.n_frames == 5 and film.size == (8, 6)
        for i in range(5):
            film.seek(i)
            # GIF has a palette and WebP is lossy, within a grey level or three on flat colours; PNG is exact.
            allowed = 0 if suffix == "png" else 3
            assert np.abs(np.asarray(film.convert("RGB")).astype(int) - np.asarray(frames[i])).max() <= allowed


def test_film_of_one_frame(tmp_path: Path) -> None:
    images.save_film(tmp_path / "film.webp", [Image.new("RGB", (8, 6), "red")])
    with Image.open(tmp_path / "film.webp") as film:
        assert film.n_frames == 1
