"""Decoded images in memory, up to a number of bytes."""

from __future__ import annotations

import threading

import numpy as np

from morphogen.data.decode import Pixels


class Cache:
    """Up to `limit` bytes of images, by slot 0..count-1; what does not fit is not kept. Thread-safe.

    shape: (H, W, C) of all images where it is the same, for one array; None where sizes differ. Pickled (to another
    process) it is empty: the images can be decoded again.
    """

    def __init__(self, count: int, limit: int, shape: tuple[int, int, int] | None) -> None:
        self._count, self._limit, self._shape = count, limit, shape
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._used = 0
        self._images: dict[int, Pixels] = {}
        kept = 0 if self._shape is None else min(self._count, self._limit // int(np.prod(self._shape)))
        self._array = np.empty((kept, *(self._shape or ())), np.uint8)
        self._filled = np.zeros(kept, np.bool_)

    def __getstate__(self) -> dict[str, object]:
        return {"_count": self._count, "_limit": self._limit, "_shape": self._shape}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["_count"], state["_limit"], state["_shape"])  # type: ignore[misc]

    def get(self, slot: int) -> Pixels | None:
        """The image (H, W, C) of a slot, read-only by agreement, or None."""
        if self._shape is None:
            return self._images.get(slot)
        return self._array[slot] if slot < len(self._filled) and self._filled[slot] else None

    def put(self, slot: int, image: Pixels) -> Pixels:
        """Keep an image if there is room, and return it."""
        if self._shape is not None:
            if slot < len(self._filled):
                self._array[slot] = image
                self._filled[slot] = True
            return image
        with self._lock:
            if slot not in self._images and self._used + image.nbytes <= self._limit:
                self._images[slot] = image
                self._used += image.nbytes
        return image
