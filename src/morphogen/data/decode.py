"""Image files of many kinds to uint8 arrays."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.core.notices import say_once
from morphogen.data import tiffs
from morphogen.data.colours import profile_of, to_srgb
from morphogen.data.formats import BadImage, as_bad, check_pixel_count, frame_count, opened

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Colour = Literal["rgb", "gray", "rgba"]

MAX_PIXELS = 200_000_000
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientations, and what Pillow's `transpose` calls them
_DESCRIPTION, _BITS, _SAMPLES, _PLANAR = 270, 258, 277, 284  # TIFF tags


class Facts(NamedTuple):
    """Facts about an image file that its decoded pixels do not hold."""

    frames: int = 1
    """How many frames, pages or slices it holds, of which the first is taken."""
    largest: int | None = None
    """The largest value of an image of more than 8 bits that is read by the full range of its type; None of others."""
    mpp: tuple[float, float] | None = None
    """Micrometres a pixel, down and across, of a slide that says so."""


class Decoded(NamedTuple):
    """An image file's pixels, uint8 (H, W, C), and what is not in them."""

    pixels: Pixels
    facts: Facts = Facts()


def _orientation(image: Image.Image, loaded: bool) -> int:
    """The EXIF orientation 1..8; damaged EXIF data counts as none. Reads no pixels unless they are loaded."""
    if image.format == "TIFF" or (not loaded and "exif" not in image.info):
        return 1  # of a TIFF, Pillow turns size and pixels itself
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, UserWarning):
        return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image) -> Image.Image:
    """A loaded image as a viewer that honours its EXIF orientation shows it, which is then no longer in its EXIF data;
    itself if there is none.
    """
    from PIL import Image

    how = _UPRIGHT.get(_orientation(image, loaded=True))
    if how is None:
        return image
    turned = image.transpose(Image.Transpose(how))
    for name in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # those that Pillow looks into
        turned.info.pop(name, None)
    return turned


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels (H, W, ...) as a viewer that honours the EXIF orientation shows them."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 7, 6):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _wide_planes(image: Any) -> bool:
    """Whether a TIFF stores each colour apart in more than 8 bits, which Pillow reads wrongly without a word."""
    return bool(image.tag_v2.get(_PLANAR, 1) == 2 and np.max(image.tag_v2.get(_BITS, 1)) > 8)


def _loses_bits(image: Any) -> bool:
    """Whether a file has values of more than 8 bits that Pillow reads as 8, without a word. Of one channel it keeps
    them, in modes of their own.
    """
    if image.mode[0] in "IF":
        return False
    if image.format == "TIFF":
        return bool(np.max(image.tag_v2.get(_BITS, 1)) > 8)
    args = image.tile[0].args if image.tile else ()
    if image.format == "PPM":
        return isinstance(args, tuple) and any(isinstance(a, int) and a > 255 for a in args)
    return image.format == "PNG" and ";16" in str(args)


def _too_deep(name: str) -> BadImage:
    return BadImage(
        name,
        "colours of more than 8 bits would lose some; save it with 8 bits, or in Python give the Pipeline a uint16 "
        "array, of which all are kept",
    )


def image_size(data: bytes, name: str, max_pixels: int) -> tuple[int, int]:
    """(height, width) of an encoded image from its header. Raises BadImage."""
    try:
        with opened(data, name) as image:
            width, height = image.size
            check_pixel_count(name, height, width, max_pixels)
            return (width, height) if _orientation(image, loaded=False) >= 5 else (height, width)
    except BadImage as error:
        if error.kind != "oversized" and data[:4] in tiffs.MAGIC:
            return _tiff_values(data, name, max_pixels, error).shape[:2]
        raise


def frames_of(data: bytes, name: str) -> int:
    """How many frames, pages or slices an encoded image has, from its headers. Raises BadImage."""
    with opened(data, name) as image:
        return _layout(image, data).frames


def _layout(image: Image.Image, data: bytes) -> tiffs.Layout:
    """How many pictures an opened file holds, and in how many planes the first of them lies."""
    frames = frame_count(image)
    return tiffs.layout(data) if frames > 1 and image.format == "TIFF" else tiffs.Layout(frames, 1)


def _load(image: Image.Image, name: str) -> None:
    """Read the pixels of an opened file. Raises BadImage."""
    try:
        image.load()
    except Exception as error:  # damaged pixels raise errors of many types
        raise as_bad(name, error) from error


def decode(
    data: bytes,
    name: str,
    background: str = "white",
    colour: Colour = "rgb",
    max_pixels: int = MAX_PIXELS,
    max_value: int | None = None,
) -> Pixels:
    """The pixels that `decode_image` gives."""
    return decode_image(data, name, background, colour, max_pixels, max_value).pixels


def decode_image(
    data: bytes,
    name: str,
    background: str = "white",
    colour: Colour = "rgb",
    max_pixels: int = MAX_PIXELS,
    max_value: int | None = None,
) -> Decoded:
    """Decode an image file to uint8 (H, W, 3); (H, W, 1) where gray; (H, W, 4) where rgba, alpha last, colours already
    multiplied by it.

    Palettes are resolved, colours brought to sRGB by the file's profile, transparency put on `background` (but for
    rgba), float values scaled from 0..1, EXIF rotation applied; of several frames or pages the first is taken.
    Integers of more than 8 bits are scaled by `max_value`, else by the bits that an OME-TIFF says it uses, else by the
    full range of their type; brighter ones are white. Raises BadImage for anything damaged, of more than `max_pixels`,
    of channels that are no colours, or of values that have no obvious range.
    """
    from PIL import Image

    frames, orientation, top, largest = 1, 1, max_value, None
    profile: bytes | None = None
    try:
        with opened(data, name) as image:
            check_pixel_count(name, image.size[1], image.size[0], max_pixels)
            (frames, planes), profile = _layout(image, data), profile_of(image)
            values: NDArray[Any] | None = None
            if image.format == "TIFF":
                found: Any = image
                top = top or _used_range(str(found.tag_v2.get(_DESCRIPTION, "")))
                deep = top is not None and np.max(found.tag_v2.get(_BITS, 1)) > 8
                if planes > 1 or _wide_planes(image) or (deep and found.tag_v2.get(_SAMPLES, 1) > 1):
                    unread = BadImage(name, "its planes or its colours of more than 8 bits cannot be read")
                    values = _tiff_values(data, name, max_pixels, unread)
            elif top is not None and _loses_bits(image):
                raise BadImage(
                    name, f"colours of more than 8 bits are read by their full range, not by --max-value {top}; "
                    "save it as TIFF"
                )  # fmt: skip
            if values is None:
                _load(image, name)
                orientation = _orientation(image, loaded=True)
                if image.mode[0] in "IF":  # I;16 and its kin, I, F: one channel of more than 8 bits
                    values = np.asarray(image)
                else:
                    flat = _flatten(image, background, name, colour)
    except BadImage as error:
        if error.kind == "oversized" or data[:4] not in tiffs.MAGIC:
            raise
        values = _tiff_values(data, name, max_pixels, error)
    if values is not None:
        if values.dtype.kind in "ui" and values.itemsize > 1 and top is None and values.size:
            largest = int(values.max())
        bare = Image.fromarray(_to_uint8(values, name, top))
        bare.info["icc_profile"] = profile
        flat = _flatten(bare, background, name, colour)
    pixels = np.asarray(flat if flat.mode == "RGBa" else flat.convert("L" if colour == "gray" else "RGB"))
    pixels = np.ascontiguousarray(_turned(pixels, orientation))
    return Decoded(pixels[:, :, None] if colour == "gray" else pixels, Facts(frames, largest))


def open_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS, whole: bool = False) -> Image.Image:
    """Decode an image file as it is, in the mode and with the transparency and colour profile it has, but turned
    upright.

    Of several frames or pages the first is taken, which is said once. Raises BadImage for anything damaged, or of more
    than `max_pixels`; and where every bit of its values is wanted, `whole`, for colours of more than 8 bits, which
    Pillow cuts to 8.
    """
    from PIL import Image

    with opened(data, name) as image:
        check_pixel_count(name, image.size[1], image.size[0], max_pixels)
        frames, planes = _layout(image, data)
        if frames > 1:
            say_once(f"note: {name} holds {frames} frames or pages; the first is used")
        if whole and _loses_bits(image):
            raise _too_deep(name)
        try:
            if image.format == "TIFF" and (planes > 1 or _wide_planes(image)):
                raise BadImage(name, "its planes cannot be read")
            _load(image, name)
        except BadImage as error:
            if data[:4] not in tiffs.MAGIC:
                raise
            values = _tiff_values(data, name, max_pixels, error)
            if whole and values.dtype != np.uint8:
                raise _too_deep(name) from None
            return Image.fromarray(_to_uint8(values, name))
        return upright(image).copy()


def _used_range(description: str) -> int | None:
    bits = tiffs.significant_bits(description)
    return None if bits is None or bits % 8 == 0 else 2**bits - 1


def _flatten(image: Image.Image, background: str, name: str, colour: Colour) -> Image.Image:
    """An 8-bit image in sRGB: L or RGB without transparency, or for rgba RGBa, colours multiplied by alpha."""
    from PIL import Image

    try:
        gray, alpha, flat = image.mode in ("1", "L", "LA", "La"), None, image
        if image.has_transparency_data:
            flat = image.convert("RGBA")
            alpha = flat.getchannel("A")
        if flat.mode not in ("L", "RGB", "CMYK"):
            flat = flat.convert("L" if gray else "RGB")
        flat = to_srgb(flat)
        if alpha is None and colour != "rgba":
            return flat if flat.mode == "L" else flat.convert("RGB")
        over = flat.convert("RGBA")
        if alpha is not None:
            over.putalpha(alpha)
        if colour == "rgba":
            return over.convert("RGBa")
        return Image.alpha_composite(Image.new("RGBA", over.size, background), over).convert("RGB")
    except ValueError as error:
        raise BadImage(name, f"colour mode {image.mode} is not supported; convert it to RGB") from error


def _to_uint8(values: NDArray[Any], name: str, top: int | None = None) -> Pixels:
    """Values of any numeric type to 0..255: unsigned ones by `top`, else by their full range; floats by 0..1."""
    if values.dtype == np.uint8:
        return values
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if np.issubdtype(values.dtype, np.integer):
        if low >= 0 and high <= 65535:  # 16-bit values, perhaps in a wider type
            brightest = 65535 if top is None else top
            limited = np.minimum(values.astype(np.uint32), brightest)
            return ((limited * 510 + brightest) // (2 * brightest)).astype(np.uint8)
    elif np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:  # False for NaN
        return np.rint(values * 255.0).astype(np.uint8)
    kind = (
        "floating-point values outside 0..1" if values.dtype.kind == "f" else f"{values.dtype} values outside 0..65535"
    )
    raise BadImage(name, f"{kind} ({low:g} to {high:g}) have no obvious brightness; convert it to 8 or 16 bits")


def _tiff_values(data: bytes, name: str, max_pixels: int, first: BadImage) -> NDArray[Any]:
    """The first image of a TIFF by its axes, (H, W) or (H, W, 3 or 4). Raises BadImage, `first` where tifffile cannot
    read it either.
    """
    values = tiffs.read_first(data, name, max_pixels)
    if values is None:
        raise first
    return values
