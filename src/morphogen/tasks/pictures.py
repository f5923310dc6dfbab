"""Pictures of any kind, as a model sees them, and results made pictures of the same kind.

A model wants float colours of its own number of channels. A picture may be gray or in colour, have an alpha channel, 8
or 16 bits, and come from Pillow, numpy or torch; its result should be of that kind too, with the pixels that a task
did not touch exactly as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.images import scale_of, to_rgb, with_scale
from morphogen.data.colours import from_srgb, is_wide, profile_of, to_srgb
from morphogen.data.decode import upright
from morphogen.tasks.windows import Window

Kind = Literal["pil", "np", "pt"]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's own conversion to gray
_AS_IT_IS = ("L", "LA", "RGB", "RGBA")


@dataclass(frozen=True)
class Picture:
    """One picture: its values (K, H, W), uint8, int32 (of 16 bits) or float32 (of [-1, 1]), and what kind it was.

    K is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA).
    """

    values: Tensor
    kind: Kind
    form: str
    """Pillow's mode, numpy's number of axes, or nothing."""
    profile: bytes | None = None
    """The ICC profile that says which colours the values are; sRGB without one."""
    dpi: tuple[float, float] | None = None
    """Pixels an inch across and down, where the file says so."""
    mpp: float | None = None
    """Micrometres a pixel, where they are known."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[-2], self.values.shape[-1]

    @property
    def top(self) -> int:
        """The brightest value of integers."""
        return 255 if self.values.dtype == torch.uint8 else 65535

    @property
    def colours(self) -> int:
        """1 for gray, 3 for RGB, without alpha."""
        return 1 if len(self.values) < 3 else 3

    def alpha(self) -> Tensor | None:
        """How opaque each pixel is, float (1, H, W) in [0, 1], or None if there is no alpha channel."""
        return None if len(self.values) in (1, 3) else self.values[-1:].float() / self.top

    def for_model(self, channels: int) -> Tensor:
        """Colours float (channels, H, W) of the scale [-1, 1], in sRGB: transparency over white, or for a model of four
        channels as the fourth, which the colours are multiplied by.

        Raises InputError where the model's images are neither gray, nor RGB, nor RGBA.
        """
        if channels not in (1, 3, 4):
            raise InputError(f"the model's images have {channels} channels, so a picture cannot be converted for it")
        colours = self._in_srgb().float()
        if not self.values.is_floating_point():
            colours = colours / (self.top / 2) - 1
        alpha = self.alpha()
        if channels == 4:
            colours = _with_channels(colours, 3)
            opacity = torch.ones_like(colours[:1]) if alpha is None else alpha
            return torch.cat([(colours + 1) * opacity - 1, 2 * opacity - 1])
        if alpha is not None:
            colours = torch.lerp(torch.ones_like(colours), colours, alpha.expand_as(colours))
        return _with_channels(colours, channels)

    def painted(self, colours: Tensor, changed: Tensor | None = None, opaque: Tensor | None = None) -> Picture:
        """A picture of this kind: of these colours where `changed`, and exactly this one's elsewhere.

        colours: float (C, H, W), as a model paints them: over white, or with alpha as the fourth channel, which then is
        the picture's too where it has one. changed: boolean (H, W), everywhere by default. opaque: boolean (H, W),
        where the alpha channel becomes full, if the model paints none; elsewhere it stays.
        """
        colours = colours.float().cpu()
        alpha = self.alpha()
        if len(colours) == 4 and alpha is not None:
            alpha = ((colours[3:] + 1) / 2).clamp(0, 1)
            colours = torch.where(alpha > 0, (colours[:3] + 1) / alpha.clamp(min=1e-6) - 1, -1.0).clamp(-1, 1)
            colours = torch.cat([_with_channels(colours, self.colours), 2 * alpha - 1])
        else:
            colours = _with_channels(to_rgb(colours[None])[0] if len(colours) == 4 else colours, self.colours)
            if alpha is not None:
                if opaque is not None:
                    alpha = alpha.masked_fill(opaque, 1.0)
                # What over white looks like the colours wanted; nothing does where nothing is seen.
                colours = torch.where(alpha > 0, 1 + (colours - 1) / alpha.clamp(min=1e-6), colours).clamp(-1, 1)
                colours = torch.cat([colours, 2 * alpha - 1])
        if self.values.is_floating_point():
            new = colours.clamp(-1, 1)
        else:
            new = ((colours + 1) * (self.top / 2)).round().clamp(0, self.top).to(self.values.dtype)
            if self._profiled():
                mode: Literal["L", "RGB"] = "L" if self.colours == 1 else "RGB"
                own = from_srgb(Image.fromarray(_rows(_with_channels(new[: self.colours], 3))), self.profile, mode)
                new[: self.colours] = _planes(np.atleast_3d(np.asarray(own)))
        if changed is not None:
            new = torch.where(changed, new, self.values)
        return replace(self, values=new)

    def given(self) -> Any:
        """The picture as it was given: a PIL image, a numpy array or a torch tensor."""
        if self.kind == "pt":
            return self.values
        array = self.values.permute(1, 2, 0).contiguous().numpy()
        if self.values.dtype != torch.uint8:
            array = array.astype(np.uint16)
        if self.kind == "np":
            return array[..., 0] if self.form == "2" else array
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        image = image.convert("1", dither=Image.Dither.NONE) if self.form == "1" else image
        kept = {"icc_profile": self.profile, "dpi": self.dpi}
        image.info.update({name: value for name, value in kept.items() if value is not None})
        return with_scale(image, self.mpp)

    def _profiled(self) -> bool:
        """Whether the values are other colours than sRGB's, and the way there and back is known."""
        mode: Literal["L", "RGB"] = "L" if self.colours == 1 else "RGB"
        return self.values.dtype == torch.uint8 and is_wide(self.profile, mode)

    def _in_srgb(self) -> Tensor:
        """The values without alpha, their colours in sRGB."""
        values = self.values[: self.colours]
        if not self._profiled():
            return values
        array = _rows(values)
        image = Image.fromarray(array[..., 0] if self.colours == 1 else array)
        image.info["icc_profile"] = self.profile
        return _planes(np.asarray(to_srgb(image)))[: self.colours]

    def cut(self, window: Window) -> Picture:
        """The part in a window."""
        return replace(self, values=window.cut(self.values))

    def with_part(self, window: Window, part: Picture) -> Picture:
        """This picture with another in a window of it."""
        if window.size == self.size:
            return part
        values = self.values.clone()
        window.cut(values).copy_(part.values)
        return replace(self, values=values)

    def enlarged(self, factor: int) -> Picture:
        """Every pixel repeated to a square; alpha between the pixels kept is interpolated."""
        values = self.values.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        if self.alpha() is not None:
            values[-1] = _interpolated(self.values[-1].float(), factor).round().to(values.dtype)
        return replace(self, values=values, mpp=None if self.mpp is None else self.mpp / factor)


def as_picture(image: object, name: str = "the image") -> Picture:
    """A picture from a PIL image; a numpy array uint8 or uint16 (H, W) or (H, W, 1 to 4); or a torch tensor float (1 or
    3, H, W) of the scale [-1, 1].

    Palettes and CMYK become RGB, EXIF rotation is applied, colour profile and resolution are kept. Raises InputError,
    naming it, for anything else.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image, name)
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
            raise InputError(
                f"{name} is an array of {image.dtype} with {image.ndim} axes; it should be uint8 or uint16 of the "
                "shape (height, width) or (height, width, channels)"
            )
        axes = image[..., None] if image.ndim == 2 else image
        if not 1 <= axes.shape[2] <= 4 or 0 in axes.shape:
            raise InputError(f"{name} is an array of the shape {image.shape}; it should have 1 to 4 channels")
        kept = axes if image.dtype == np.uint8 else axes.astype(np.int32)
        return Picture(_planes(kept), "np", str(image.ndim))
    if isinstance(image, Tensor):
        if not image.is_floating_point() or image.ndim != 3 or len(image) not in (1, 3) or image.numel() == 0:
            raise InputError(
                f"{name} is a tensor of {image.dtype} and the shape {tuple(image.shape)}; it should be float of the "
                "shape (1 or 3, height, width), on the scale [-1, 1]"
            )
        if not bool((image.abs() <= 1).all()):
            raise InputError(f"{name} is a tensor with values outside [-1, 1]")
        return Picture(image.detach().float().cpu(), "pt", "")
    raise InputError(f"{name} is a {type(image).__name__}; it should be a PIL image, a numpy array or a torch tensor")


def _from_pil(image: Image.Image, name: str) -> Picture:
    image.load()
    image = upright(image)
    if image.mode == "CMYK":  # its profile says what its inks are; after that it is sRGB
        image = to_srgb(image)
        image.info.pop("icc_profile", None)
    values, form = _values_of(image, name)
    return Picture(values, "pil", form, profile_of(image), _dpi(image), scale_of(image))


def _values_of(image: Image.Image, name: str) -> tuple[Tensor, str]:
    """The values of a picture, and Pillow's mode of its result."""
    if image.mode == "F" or 0 in image.size:
        raise InputError(f"{name} has the mode {image.mode} and the size {image.size}; it should have 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name} has values outside 0..65535; it should have 8 or 16 bits")
        return _planes(values[..., None].astype(np.int32)), "I;16"
    mode = image.mode
    if mode == "1":
        return _planes(np.asarray(image.convert("L"))[..., None]), "1"
    if image.has_transparency_data and mode not in ("LA", "RGBA"):
        image = image.convert("LA" if mode in ("L", "La") else "RGBA")
    elif mode not in _AS_IT_IS:
        image = image.convert("RGB")
    array = np.asarray(image)
    return _planes(array[..., None] if array.ndim == 2 else array), image.mode


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    found: Any = image.info.get("dpi")
    try:
        across, down = (float(value) for value in found)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < math.inf and 0 < down < math.inf else None


def _rows(values: Tensor) -> np.ndarray:
    return values.permute(1, 2, 0).contiguous().numpy()


def _planes(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)).copy())


def _with_channels(colours: Tensor, channels: int) -> Tensor:
    """Colours (1 or 3, H, W) converted to this many channels."""
    if len(colours) == channels:
        return colours
    if channels == 3:
        return colours.expand(3, -1, -1)
    gray: Tensor = torch.tensordot(torch.tensor(_LUMA), colours, dims=1)
    return gray[None]


def _interpolated(plane: Tensor, factor: int) -> Tensor:
    """A plane (H, W) enlarged linearly, with the given values at [::factor, ::factor]."""
    for axis in (0, 1):
        after = torch.cat([plane.narrow(axis, 1, plane.shape[axis] - 1), plane.narrow(axis, -1, 1)], dim=axis)
        between = [torch.lerp(plane, after, k / factor) for k in range(factor)]
        plane = torch.stack(between, dim=axis + 1).flatten(axis, axis + 1)
    return plane


def as_pictures(image: object) -> list[Picture]:
    """The pictures that a user gives, one or several. Raises InputError for none, and as `as_picture`."""
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("there are no images; give at least one")
    return [as_picture(given, f"image {i}" if len(images) > 1 else "the image") for i, given in enumerate(images)]


def transparent(picture: Picture) -> Tensor | None:
    """Where a picture is less than half opaque, boolean (H, W); None where it nowhere is, or has no alpha channel."""
    alpha = picture.alpha()
    found = None if alpha is None else alpha[0] < 0.5
    return found if found is not None and bool(found.any()) else None
