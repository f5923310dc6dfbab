"""Masks as people draw and export them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.tasks.masks import as_mask

MARKED = np.zeros((5, 7), bool)
MARKED[1, 2:4] = True
LABELS = MARKED.astype(np.uint8)


def palette(labels: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(labels).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colours)
    return image


def said(mask: Any, value: int | None = None) -> str:
    with pytest.raises(InputError) as error:
        as_mask(mask, (5, 7), "m.png", value)
    assert "m.png" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(LABELS),
        Image.fromarray(LABELS.astype(np.uint16)),
        Image.fromarray(LABELS.astype(np.int32)),
        Image.fromarray(LABELS.astype(np.float32)),
        Image.fromarray(np.dstack([LABELS] * 3)),
        palette(LABELS, [0, 0, 0, 255, 0, 0]),
        palette(LABELS, [9, 9, 9, 12, 40, 12]),
        LABELS,
        LABELS.astype(np.int64),
        (LABELS * 255).astype(np.uint16),
        Image.fromarray((LABELS * 255).astype(np.uint16)),
        Image.fromarray(LABELS.astype(np.uint16) * 65535),
    ],
    ids=range(12),
)
def test_zero_and_one_and_white_are_understood(mask: Any) -> None:
    assert torch.equal(as_mask(mask, (5, 7)), torch.from_numpy(MARKED))


def test_other_values_are_named_and_can_be_given() -> None:
    three = LABELS * 3
    three[4, 4] = 1
    assert "highest value is 3 of 255" in said(Image.fromarray(three)) and "--mask-value 3" in said(three)
    labels = palette(three, [0, 0, 0, 255, 255, 255, 1, 2, 3, 128, 0, 0])
    assert "holds the labels 0, 1, 3 of a palette (the highest is 3)" in said(labels)
    for mask in (Image.fromarray(three), three, labels, Image.fromarray(three.astype(np.uint16))):
        assert torch.equal(as_mask(mask, (5, 7), value=3), torch.from_numpy(MARKED))
        assert as_mask(mask, (5, 7), value=1).sum() == 1
        assert "it holds 0, 1, 3 (the highest is 3)" in said(mask, 2)
    many = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert "11 and 23 more" in said(many, 200)
    assert "highest value is 1000 of 65535" in said(Image.fromarray(LABELS.astype(np.uint16) * 1000))


def test_nothing_marked_is_no_guess() -> None:
    assert not as_mask(np.zeros((5, 7), np.uint8), (5, 7)).any()


def test_a_mask_is_turned_as_its_exif_says() -> None:
    turned = Image.fromarray(np.rot90(MARKED.astype(np.uint8) * 255).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.info["exif"] = exif.tobytes()
    assert torch.equal(as_mask(turned, (5, 7)), torch.from_numpy(MARKED))


def test_the_real_masks() -> None:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} with files that went wrong once is not there")
    for name in ("mask-0-1.png", "mask-palette-labels.png"):
        with Image.open(folder / name) as image:
            found = as_mask(image, (96, 96), name)
            assert torch.equal(found, torch.from_numpy(np.asarray(image) == 1)) and found.any() and not found.all()
