"""Colour profiles: from an image's own colours to sRGB, and back."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

Profiled = Literal["L", "RGB", "CMYK"]
_SPACES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile that a file carries, if there is one that says something."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str, back: bool) -> Any:
    """The transform of an image of this mode to sRGB, or from sRGB back; None where it changes nothing or cannot be."""
    from PIL import ImageCms

    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if _SPACES.get(own.profile.xcolor_space) != mode or "sRGB" in (own.profile.profile_description or ""):
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        how = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        if back:
            return ImageCms.buildTransform(srgb, own, "RGB", mode, *how)
        return ImageCms.buildTransform(own, srgb, mode, "RGB", *how)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged, or of one direction only
        return None


def to_srgb(image: Image.Image) -> Image.Image:
    """An image of 8 bits (L, RGB or CMYK) in sRGB by its profile, RGB; the image itself where it has none, has sRGB's,
    or one that is damaged or of another kind of colours.
    """
    from PIL import ImageCms

    profile = profile_of(image)
    transform = None if profile is None else _transform(profile, image.mode, False)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


def from_srgb(image: Image.Image, profile: bytes | None, mode: Profiled) -> Image.Image:
    """An RGB image in sRGB as an image of this mode in a profile's colours; itself if there is no way."""
    from PIL import ImageCms

    transform = None if profile is None else _transform(profile, mode, True)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


def is_wide(profile: bytes | None, mode: Profiled) -> bool:
    """Whether by a profile an image's values are other colours than sRGB's, and both ways between them are known."""
    return profile is not None and all(_transform(profile, mode, back) is not None for back in (False, True))
