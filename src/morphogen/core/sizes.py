"""Sizes of images as users write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*(\d{1,12})\s*(?:[xX×]\s*(\d{1,12})\s*)?")


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of `64` or `64x96`. Raises ValueError, saying what it should be, for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"size {text!r} should be one number or HEIGHTxWIDTH, such as 64 or 64x96")
    return int(match[1]), int(match[2] or match[1])
