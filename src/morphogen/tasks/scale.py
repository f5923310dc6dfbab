"""Micrometres a pixel of pictures and models: what files say, and pictures brought from one scale to another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.core.images import scale_of
from morphogen.pyramids.pyramid import SAME_SCALE
from morphogen.tasks.pictures import Picture

_TIFF = (".tif", ".tiff")


def scale_of_file(path: Path) -> float | None:
    """The micrometres a pixel that an image file states: our own PNG, or a TIFF as slides have it."""
    if path.suffix.lower() in _TIFF:
        from morphogen.pyramids.opening import open_pyramid

        try:
            mpp = open_pyramid(path).mpp
        except InputError:  # no pyramid, or no reader here: then its scale is not known
            return None
        return None if mpp is None else mpp[1]
    try:
        with Image.open(path) as image:
            return scale_of(image)
    except (OSError, SyntaxError, ValueError):
        return None


def other_scale(mpp: float | None, own: float | None) -> tuple[float, float] | None:
    """The micrometres a pixel of a picture, and the model's `own`, where both are known and differ."""
    return (mpp, own) if mpp is not None and own is not None and abs(mpp / own - 1) > SAME_SCALE else None


def at_scale(picture: Picture, mpp: float, own: float, hole: Tensor | None) -> tuple[Picture, Tensor | None]:
    """A picture of `mpp` micrometres a pixel, and its hole, boolean (H, W), brought to `own` ones.

    Colours are resampled with their alpha (bicubic, without aliasing); a pixel of the hole follows from the nearest.
    """
    height, width = size = rescaled_size(picture.size, mpp, own)
    values = picture.values.float()[None]
    top = 1.0 if picture.values.is_floating_point() else float(picture.top)
    alpha = values[:, -1:] / top if picture.alpha() is not None else None
    if alpha is not None:
        values = torch.cat([values[:, :-1] * alpha, values[:, -1:]], dim=1)
    values = F.interpolate(values, size, mode="bicubic", antialias=True)
    if alpha is not None:
        opacity = (values[:, -1:] / top).clamp(min=0.5 / top)
        values = torch.cat([values[:, :-1] / opacity, values[:, -1:]], dim=1)
    if picture.values.is_floating_point():
        new = values[0].clamp(-1, 1)
    else:
        new = values[0].round().clamp(0, top).to(picture.values.dtype)
    if hole is not None:
        rows, columns = (
            ((torch.arange(n) + 0.5) * of / n).long() for n, of in zip((height, width), picture.size, strict=True)
        )
        hole = hole[rows][:, columns]
    return replace(picture, values=new, mpp=own), hole


def rescaled_size(size: tuple[int, int], mpp: float, own: float) -> tuple[int, int]:
    """(height, width) of a picture of `mpp` micrometres a pixel brought to `own` ones."""
    return max(1, round(size[0] * mpp / own)), max(1, round(size[1] * mpp / own))
