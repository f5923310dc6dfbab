"""Masks as people draw and export them, as one boolean for each pixel."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.data.decode import upright
from morphogen.tasks.pictures import Picture, transparent

_LISTED = 12  # values in a message


def as_mask(mask: object, size: tuple[int, int], name: str = "the mask", value: int | None = None) -> Tensor:
    """Boolean (H, W), True where to fill.

    mask: a PIL image, a numpy array boolean or of integers (H, W), or a torch tensor boolean (H, W) or (1, H, W).
    Marked is what is white (at least half bright, transparency being black); in a mask of nothing but 0 and 1, or with
    these two labels of a palette, 1. value: what is marked instead, as the file holds it: a label, or a level of gray.
    Raises InputError, naming it, where it is of another size, nothing of these, or where what it marks is not plain.
    """
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        found = mask.detach().cpu()
        found = found[0] if found.ndim == 3 and len(found) == 1 else found
    elif isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        found = torch.from_numpy(np.ascontiguousarray(mask))
    elif isinstance(mask, Image.Image):
        found = torch.from_numpy(_of_image(upright(mask), name, value))
    elif isinstance(mask, np.ndarray) and mask.dtype.kind in "ui":
        top = 65535 if mask.dtype.itemsize > 1 and mask.size and mask.max() > 255 else 255
        found = torch.from_numpy(_marked(mask, top, name, value))
    else:
        raise InputError(f"{name} should be a PIL image, a boolean or integer array, or a boolean tensor")
    if found.shape != size:
        shape = "x".join(map(str, found.shape))
        raise InputError(f"{name} is {shape}, but the image is {size[0]}x{size[1]} (height x width)")
    return found


def _of_image(mask: Image.Image, name: str, value: int | None) -> np.ndarray:
    if mask.mode == "F" or mask.mode.startswith("I"):
        levels = np.asarray(mask)
        return _marked(levels, 65535 if levels.max(initial=0) > 255 else 255, name, value)
    if mask.mode == "P" and not mask.has_transparency_data:
        labels, colours = np.asarray(mask), np.asarray(mask.convert("RGB"))
        if value is not None or not _is_drawn(colours):
            return _marked_label(labels, name, value)
    over = Image.new("RGBA", mask.size, "black")
    return _marked(np.asarray(Image.alpha_composite(over, mask.convert("RGBA")).convert("L")), 255, name, value)


def _is_drawn(colours: np.ndarray) -> bool:
    """Whether a palette's colours (H, W, 3) are grays up to white, as a drawn mask has them, and no labels."""
    gray = (colours == colours[..., :1]).all()
    return bool(gray and colours.max(initial=0) >= 128)


def _marked(levels: np.ndarray, top: int, name: str, value: int | None) -> np.ndarray:
    """Which levels of gray are marked: those of a value, else white ones, else the 1 of 0 and 1."""
    if value is not None:
        return _equal(levels, name, value)
    white = levels > top // 2
    if white.any() or not levels.any():
        return np.ascontiguousarray(white)
    if levels.max() == 1:
        return np.ascontiguousarray(levels == 1)
    highest = f"{levels.max():g}"
    raise InputError(
        f"{name} has no white to fill: its highest value is {highest} of {top}, and white begins at {top // 2 + 1}; "
        f"draw what to fill in white, or name its value, such as --mask-value {highest}"
    )


def _marked_label(labels: np.ndarray, name: str, value: int | None) -> np.ndarray:
    if value is not None:
        return _equal(labels, name, value)
    if labels.max(initial=0) <= 1:
        return np.ascontiguousarray(labels == 1)
    raise InputError(
        f"{name} holds the labels {_listed(labels)} of a palette (the highest is {labels.max()}); say which one is to "
        f"be filled, such as --mask-value {labels.max()}"
    )


def _equal(values: np.ndarray, name: str, value: int) -> np.ndarray:
    marked: np.ndarray = values == value
    if not marked.any():
        raise InputError(
            f"--mask-value {value}: {name} has no such pixel; it holds {_listed(values)} (the highest is "
            f"{values.max():g})"
        )
    return np.ascontiguousarray(marked)


def _listed(values: np.ndarray) -> str:
    there = np.unique(values)
    more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    return ", ".join(f"{v:g}" for v in there[:_LISTED]) + more


def hole_of(picture: Picture, mask: object, value: int | None) -> Tensor:
    """Where a picture is to be filled: what a mask says, or without one what is transparent. Raises InputError for a
    mask that cannot be, and where there is neither.
    """
    if mask is not None:
        return as_mask(mask, picture.size, value=value)
    hole = transparent(picture)
    if hole is None:
        raise InputError("there is no mask, and the image has no transparent pixels; give one of the two")
    return hole
