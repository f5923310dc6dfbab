"""Pixels as image files, in memory."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from morphogen.core.errors import InputError, first_line


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """Pixels uint8 (H, W, 1 or 3) as a file of a kind that Pillow writes."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_bytes(pixels: np.ndarray, quality: int) -> bytes:
    """Pixels uint8 (H, W, 1 or 3) as a JPEG file without subsampled colours."""
    return encoded(pixels, "JPEG", quality=quality, subsampling=0)


def decode_rgb(content: bytes, name: str, largest: int) -> np.ndarray:
    """An image file as uint8 (H, W, 3). Raises InputError, naming it, where it is damaged or has more than `largest`
    pixels.
    """
    try:
        # Of `image.open`'s own limit only the warning could be met first; the size is known before a pixel is decoded.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"))
        if image.width * image.height > largest:
            raise InputError(f"{name} has {image.width * image.height:,} pixels; a tile may have {largest:,}")
        return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # damaged files raise errors of many types
        raise InputError(f"{name} cannot be read: {first_line(error)}") from None
