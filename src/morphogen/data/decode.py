"""Image files of many kinds to uint8 arrays."""

from __future__ import annotations

import struct
import threading
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
BadKind = Literal["unreadable", "truncated", "too small", "oversized"]

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    )
)
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientations, and what Pillow's `transpose` calls them
_open_lock = threading.Lock()


class BadImage(InputError):
    """One image cannot be used: `name`, what `kind` of trouble, and the `reason`; the message holds name and reason."""

    def __init__(self, name: str, reason: str, kind: BadKind = "unreadable") -> None:
        super().__init__(name, reason, kind)
        self.name, self.reason, self.kind = name, reason, kind

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def _refuse_bomb(name: str, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        reason = f"{width}x{height} is {height * width:,} pixels; the limit is {max_pixels:,}"
        raise BadImage(name, reason, "oversized")
    if height * width == 0:
        raise BadImage(name, f"the image is empty ({width}x{height} pixels)")


def _as_bad(name: str, error: BaseException) -> BadImage:
    """What a library said of a damaged file, as a BadImage with the kind told from the words."""
    text = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    text = text.replace("<_io.BytesIO object", "file").split(" at 0x")[0]
    cut = any(
        word in text.lower() for word in ("truncated", "broken data stream", "unexpected end", "not enough image data")
    )
    return BadImage(name, f"the file is truncated ({text})" if cut else text, "truncated" if cut else "unreadable")


def _open(data: bytes, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImage(name, "the file is empty")
    # Pillow's own bomb check warns or raises while it opens; ours follows at once, with the limit of the configuration.
    with _open_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            raise BadImage(name, "not an image of a known format, or its header is damaged") from None
        except Exception as error:  # damaged headers raise errors of many types
            raise _as_bad(name, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image, loaded: bool) -> int:
    """The EXIF orientation 1..8; damaged EXIF data counts as none. Reads no pixels unless they are loaded."""
    if image.format == "TIFF" or (not loaded and "exif" not in image.info):
        return 1  # of a TIFF, Pillow turns size and pixels itself
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, UserWarning):
        return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


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
    bits, planar = image.tag_v2.get(258, 1), image.tag_v2.get(284, 1)
    return bool(planar == 2 and np.max(bits) > 8)


def _loses_bits(image: Any) -> bool:
    """Whether a file has values of more than 8 bits that Pillow reads as 8, without a word. Of one channel it keeps
    them, in modes of their own.
    """
    if image.mode[0] in "IF":
        return False
    if image.format == "TIFF":
        return bool(np.max(image.tag_v2.get(258, 1)) > 8)
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
        with _open(data, name) as image:
            width, height = image.size
            _refuse_bomb(name, height, width, max_pixels)
            return (width, height) if _orientation(image, loaded=False) >= 5 else (height, width)
    except BadImage as error:
        if error.kind != "oversized" and data[:4] in _TIFF_MAGIC:
            return _tiff_pixels(data, name, max_pixels, error).shape[:2]
        raise


def decode(
    data: bytes, name: str, background: str = "white", gray: bool = False, max_pixels: int = 200_000_000
) -> Pixels:
    """Decode an image file to uint8 (H, W, 3), or (H, W, 1) where gray.

    Palettes are resolved, transparency is composited on `background`, 16-bit values are scaled by their full range,
    float values by 0..1, EXIF rotation is applied, of several frames or pages the first is taken. Raises BadImage for
    anything damaged, of more than `max_pixels`, or of values that have no obvious range.
    """
    from PIL import Image

    try:
        with _open(data, name) as image:
            _refuse_bomb(name, image.size[1], image.size[0], max_pixels)
            if image.format == "TIFF" and _wide_planes(image):
                raise BadImage(name, "its separate colour planes of more than 8 bits cannot be read")  # but see below
            try:
                image.load()
            except Exception as error:  # damaged pixels raise errors of many types
                raise _as_bad(name, error) from error
            orientation = _orientation(image, loaded=True)
            if image.mode[0] in "IF":  # I;16 and its kin, I, F: one channel of more than 8 bits
                values: NDArray[Any] = _to_uint8(np.asarray(image), name)
                flat = Image.fromarray(values)
            else:
                flat = _flatten(image, background, name)
    except BadImage as error:
        if error.kind == "oversized" or data[:4] not in _TIFF_MAGIC:
            raise
        flat = _flatten(Image.fromarray(_tiff_pixels(data, name, max_pixels, error)), background, name)
        orientation = 1
    pixels = np.ascontiguousarray(_turned(np.asarray(flat.convert("L" if gray else "RGB")), orientation))
    return pixels[:, :, None] if gray else pixels


def open_picture(data: bytes, name: str, max_pixels: int = 200_000_000, whole: bool = False) -> Image.Image:
    """Decode an image file as it is, in the mode and with the transparency it has, but turned upright.

    Of several frames or pages the first is taken. Raises BadImage for anything damaged, or of more than `max_pixels`;
    and where every bit of its values is wanted, `whole`, for colours of more than 8 bits, which Pillow cuts to 8.
    """
    from PIL import Image

    with _open(data, name) as image:
        _refuse_bomb(name, image.size[1], image.size[0], max_pixels)
        if whole and _loses_bits(image):
            raise _too_deep(name)
        try:
            if image.format == "TIFF" and _wide_planes(image):
                raise ValueError("its separate colour planes of more than 8 bits cannot be read")
            image.load()
        except Exception as error:  # damaged pixels raise errors of many types
            if data[:4] in _TIFF_MAGIC:
                return Image.fromarray(_tiff_pixels(data, name, max_pixels, _as_bad(name, error), whole))
            raise _as_bad(name, error) from error
        upright = _UPRIGHT.get(_orientation(image, loaded=True))
        return image.copy() if upright is None else image.transpose(Image.Transpose(upright))


def _flatten(image: Image.Image, background: str, name: str) -> Image.Image:
    """An 8-bit image without transparency: L or RGB."""
    from PIL import Image

    try:
        if image.has_transparency_data:
            over = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", over.size, background), over).convert("RGB")
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except ValueError as error:
        raise BadImage(name, f"colour mode {image.mode} is not supported; convert it to RGB") from error


def _to_uint8(values: NDArray[Any], name: str) -> Pixels:
    """Values of any numeric type to 0..255: unsigned ones by their full range, floats by 0..1."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if np.issubdtype(values.dtype, np.integer):
        if low >= 0 and high <= 65535:  # 16-bit values in a wider type
            return _to_uint8(values.astype(np.uint16), name)
    elif np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:  # False for NaN
        return np.rint(values * 255.0).astype(np.uint8)
    kind = (
        "floating-point values outside 0..1" if values.dtype.kind == "f" else f"{values.dtype} values outside 0..65535"
    )
    raise BadImage(name, f"{kind} ({low:g} to {high:g}) have no obvious brightness; convert it to 8 or 16 bits")


def _tiff_pixels(data: bytes, name: str, max_pixels: int, first: BadImage, whole: bool = False) -> Pixels:
    """The first page of a TIFF that Pillow cannot read, as uint8 (H, W) or (H, W, 3 or 4). Raises BadImage; where every
    bit is wanted, `whole`, for values of more than 8 too.
    """
    import tifffile

    log = tifffile.logger()
    heard, log.disabled = log.disabled, True  # what it says of damaged files would come without their names
    try:
        with tifffile.TiffFile(BytesIO(data)) as tiff:
            page = tiff.pages[0]
            _refuse_bomb(name, page.imagelength, page.imagewidth, max_pixels)
            values = np.asarray(page.asarray())
    except BadImage:
        raise
    except Exception as error:  # damaged files raise errors of many types
        if "imagecodecs" in str(error):
            raise BadImage(
                name, f"this TIFF compression needs another program ({error}); save it uncompressed"
            ) from error
        raise first from error
    finally:
        log.disabled = heard
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[2] not in (3, 4):
        values = values.transpose(1, 2, 0)  # planes, one a colour
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if (values.ndim == 3 and values.shape[2] > 4) or values.ndim not in (2, 3) or values.shape[2:] == (2,):
        raise BadImage(name, f"a TIFF of shape {values.shape}; images need 1, 3 or 4 channels")
    if whole and values.dtype != np.uint8:
        raise _too_deep(name)
    return np.ascontiguousarray(_to_uint8(values, name))
