"""Which tiles are how far, and the checksums of what they left: 16 bytes a tile, written after the tile itself.

So a kill loses tiles in hand, and what a power cut or a bad disk has changed is found before it is used.
"""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from morphogen.core.files import replace_file

FILE = "progress"
# done: evaluations behind the tile. last, before: CRC-32 of what the last of them left, and of what the one before did,
# which the tile's neighbours may still have to read. check: CRC-32 of the three and of the tile's place in the list.
_RECORD = np.dtype([("done", "<u4"), ("last", "<u4"), ("before", "<u4"), ("check", "<u4")])


def checksum(values: np.ndarray) -> int:
    """CRC-32 of an array's values."""
    return zlib.crc32(np.ascontiguousarray(values).data)


class TileProgress:
    """The record of each tile of a slide in work. folder: of the work. tiles: how many there are.

    damaged: the tiles, by their place in the list, whose record cannot be believed; theirs is that of a tile which
    nothing has been done of.
    """

    def __init__(self, folder: Path, tiles: int) -> None:
        path = folder / FILE
        fresh = np.zeros(tiles, _RECORD)
        fresh["check"] = [self._check(number, 0, 0, 0) for number in range(tiles)]
        if path.is_dir():  # which no record is: all are damaged
            shutil.rmtree(path)
            path.touch()
        if not path.exists():
            replace_file(path, fresh.tobytes())
        content = path.read_bytes()[: fresh.nbytes]
        self._records = np.frombuffer(content.ljust(fresh.nbytes, b"\0"), _RECORD).copy()
        self.damaged = [
            number
            for number, (done, last, before, check) in enumerate(self._records.tolist())
            if check != self._check(number, done, last, before)
        ]
        self._records[self.damaged] = fresh[self.damaged]
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(fresh.nbytes)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether anything has been painted in a folder."""
        return (folder / FILE).exists()

    @staticmethod
    def _check(number: int, done: int, last: int, before: int) -> int:
        return zlib.crc32(np.array([number, done, last, before], "<u4").data)

    @property
    def done(self) -> np.ndarray:
        """Evaluations behind each tile."""
        return self._records["done"].astype(np.int64)

    def left_by(self, number: int, evaluation: int) -> int:
        """The checksum of what an evaluation, the tile's last or the one before, left."""
        record = self._records[number]
        return int(record["last"] if record["done"] == evaluation + 1 else record["before"])

    def mark(self, number: int, left: int) -> None:
        """Count one more evaluation for a tile, by its place in the list. left: the checksum of what it left."""
        record = self._records[number]
        self.set(number, int(record["done"]) + 1, left, int(record["last"]))

    def set(self, number: int, done: int, last: int = 0, before: int = 0) -> None:
        """Write a tile's record."""
        self._records[number] = (done, last, before, self._check(number, done, last, before))
        self._file.seek(number * _RECORD.itemsize)
        self._file.write(self._records[number].tobytes())

    def close(self) -> None:
        """Wait until all is on the disk, and let go of the file."""
        os.fsync(self._file.fileno())
        self._file.close()
