"""Blocks of an endless slide at every timestep, kept on disk up to a size."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.slides.canvas import DISK_FULL

Values = NDArray[np.float32]


class Block(NamedTuple):
    """Where a block lies: after how many steps, and at which row and column of the grid of blocks (any sign)."""

    steps: int
    row: int
    column: int


class BlockCache:
    """The blocks that were used last, float32 of one shape each, in one file of at most `most_bytes`.

    The file has no name, so that nothing is left of it however the process ends. Blocks that were used longest ago are
    forgotten first, also where the disk is full. For one thread at a time. Raises InputError where `folder` (the
    system's folder for temporary files by default) cannot be written.
    """

    def __init__(self, shape: tuple[int, ...], most_bytes: int, folder: Path | None = None) -> None:
        self.shape = shape
        self.block_bytes = 4 * math.prod(shape)
        self.most = most_bytes // self.block_bytes
        self._slots: OrderedDict[Block, int] = OrderedDict()
        self._used = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            where = folder or tempfile.gettempdir()
            raise InputError(f"the cache cannot be written in {where}: {error.strerror or error}") from None
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, block: Block) -> bool:
        return block in self._slots

    @property
    def disk_bytes(self) -> int:
        """How much of the disk is in use."""
        return self._used * self.block_bytes

    def get(self, block: Block) -> Values | None:
        """A block's values, or None where they are not kept."""
        slot = self._slots.get(block)
        if slot is None:
            return None
        self._slots.move_to_end(block)
        self._file.seek(slot * self.block_bytes)
        return np.frombuffer(self._read(), np.float32).reshape(self.shape)

    def _read(self) -> bytes:
        parts, left = [], self.block_bytes
        while left:
            parts.append(self._file.read(left))
            if not parts[-1]:
                raise OSError(errno.EIO, "the cache's file has become shorter")
            left -= len(parts[-1])
        return b"".join(parts)

    def put(self, block: Block, values: Values) -> None:
        """Keep a block's values, in the place of what was used longest ago if there is no more room."""
        slot = self._slots.pop(block, None)
        if slot is None and self._used >= self.most:
            if not self._slots:
                return
            slot = self._slots.popitem(last=False)[1]
        new = slot is None
        slot = self._used if slot is None else slot
        try:
            self._file.seek(slot * self.block_bytes)
            left = memoryview(np.ascontiguousarray(values, np.float32).tobytes())
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            if new:  # the disk is full: what there is stays, and is used again
                self.most = self._used
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), self._used * self.block_bytes)
            return
        self._used += new
        self._slots[block] = slot
