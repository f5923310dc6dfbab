"""Which tiles are how far: two bytes a tile, written after the tile itself, so a kill loses tiles in flight."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from morphogen.core.files import replace_file

_FILE = "ledger"
_TYPE = np.dtype("<u2")


class TileProgress:
    """How many evaluations each of a manifest's tiles has behind it. folder: of the work. tiles: how many there are."""

    def __init__(self, folder: Path, tiles: int) -> None:
        path = folder / _FILE
        if not path.exists():
            replace_file(path, bytes(tiles * _TYPE.itemsize))
        self.done = np.frombuffer(path.read_bytes(), _TYPE).copy()
        self._file = path.open("r+b", buffering=0)

    def mark(self, number: int) -> None:
        """Count one more evaluation for a tile, by its place in the manifest's list."""
        self.done[number] += 1
        self._file.seek(number * _TYPE.itemsize)
        self._file.write(self.done[number].tobytes())

    def close(self) -> None:
        """Wait until all is on the disk, and let go of the file."""
        os.fsync(self._file.fileno())
        self._file.close()
