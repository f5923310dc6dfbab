"""TIFFs by their axes: planes and stacks that Pillow reads as one gray page, and layouts that it does not read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.data.formats import BadImage, check_pixel_count

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_reading: ContextVar[bool] = ContextVar("reading", default=False)


class Layout(NamedTuple):
    """How many images a TIFF holds, and over how many pages the channels of each are spread."""

    frames: int
    planes: int


class _Quiet(logging.Filter):
    """Drops what tifffile says of damaged files while this thread reads one: it would come without the file's name."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _reading.get()


_quiet = _Quiet()


def significant_bits(description: str) -> int | None:
    """The bits in use that OME-XML states."""
    found = re.search(r'\bSignificantBits="(\d{1,2})"', description) if "<OME" in description else None
    return int(found[1]) if found else None


@contextmanager
def _series(data: bytes) -> Iterator[tuple[Any, Any]]:
    """The opened file and its first series, tifffile being quiet. Raises errors of many types for a damaged file."""
    import tifffile

    tifffile.logger().addFilter(_quiet)  # adding it again changes nothing
    token = _reading.set(True)
    try:
        with tifffile.TiffFile(BytesIO(data)) as tiff:
            yield tiff, tiff.series[0]
    finally:
        _reading.reset(token)


def layout(data: bytes) -> Layout:
    """How the images of a TIFF of several pages lie in it; as one image a page where that cannot be told."""
    try:
        with _series(data) as (tiff, series):
            size = dict(zip(series.axes, series.shape, strict=True))
            lead = series.axes[: len(series.axes) - len(series.keyframe.axes)]
            others = sum(not s.keyframe.is_reduced for s in tiff.series[1:])
            frames = prod(n for axis, n in size.items() if axis not in "YXSC") + others
            return Layout(frames, size["C"] if "C" in lead else 1)
    except Exception:  # damaged files raise errors of many types; decoding says what is wrong
        return Layout(1, 1)


def read_first(data: bytes, name: str, max_pixels: int) -> NDArray[Any] | None:
    """The first image of a TIFF by its axes, (H, W) or (H, W, 3 or 4) of any type; None where tifffile cannot read it.

    Raises BadImage for other numbers of channels, for more than `max_pixels`, and for a compression that is not there.
    """
    try:
        with _series(data) as (_, series):
            size = dict(zip(series.axes, series.shape, strict=True))
            check_pixel_count(name, size.get("Y", 1), size.get("X", 1), max_pixels)
            return _first(series, name)
    except BadImage:
        raise
    except Exception as error:  # damaged files raise errors of many types
        if "imagecodecs" not in str(error):
            return None
        reason = f"this TIFF compression needs another program ({error}); save it uncompressed"
        raise BadImage(name, reason) from error


def _first(series: Any, name: str) -> NDArray[Any]:
    """The first image of a series, (H, W) or (H, W, C)."""
    axes, shape = series.axes, series.shape
    kind = getattr(series.keyframe.photometric, "name", "MINISBLACK")
    if kind not in ("MINISBLACK", "MINISWHITE", "RGB", "YCBCR"):
        raise BadImage(name, f"a TIFF of {kind.lower()} colours that cannot be read; save it as RGB")
    inner = series.keyframe.axes  # of one page
    lead = axes[: len(axes) - len(inner)]
    if axes.endswith(inner) and len(series.pages) == prod(shape[: len(lead)]):  # only the pages that are wanted
        planes = shape[lead.index("C")] if "C" in lead else 1
        step = prod(shape[lead.index("C") + 1 : len(lead)]) if "C" in lead else 1
        pages = [np.asarray(series.pages[c * step].asarray()).reshape(series.keyframe.shape) for c in range(planes)]
        values, left = np.stack(pages), "C" + inner
    else:
        values, left = np.asarray(series.asarray()), axes
    for axis in set(left) - set("YXSC"):
        values = values.take(0, left.index(axis))
        left = left.replace(axis, "")
    for axis in "CS":
        if axis in left and values.shape[left.index(axis)] == 1:
            values = values.take(0, left.index(axis))
            left = left.replace(axis, "")
    channels = left.replace("Y", "").replace("X", "")
    if len(channels) > 1 or sorted(left.replace(channels, "")) != ["X", "Y"]:
        raise BadImage(name, f"a TIFF of the axes {axes} and the shape {shape}; images need 1, 3 or 4 channels")
    values = values.transpose([left.index(axis) for axis in f"YX{channels}"])
    count = values.shape[2] if channels else 1
    if count not in (1, 3, 4) or (count == 4 and channels == "C"):  # four planes are four dyes, not transparency
        raise BadImage(name, f"a TIFF of {count} channels (axes {axes}, shape {shape}); images need 1 or 3 channels")
    if kind == "MINISWHITE" and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    return np.ascontiguousarray(values)
