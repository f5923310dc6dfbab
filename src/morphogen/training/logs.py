"""A run's logs: JSON lines that survive interruptions, full disks and careless hands."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

from morphogen.core.files import replace_file

LogRecord = dict[str, float]
"""Numbers by their names, `step` among them."""


def read_records(path: Path) -> list[LogRecord]:
    """The records of a log; broken lines are passed over. Empty if there is no log."""
    return [record for _, record in _lines(path) if record is not None]


def last_record(path: Path) -> LogRecord | None:
    """The last whole record of a log, or None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    records = (_parsed(line) for line in reversed(lines))
    return next((record for record in records if record is not None), None)


def _lines(path: Path) -> Iterator[tuple[bytes, LogRecord | None]]:
    """The lines of a log, each with its record: None for one that is broken, or not whole."""
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            yield line, _parsed(line) if line.endswith(b"\n") else None


def _parsed(line: bytes) -> LogRecord | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None


class Log:
    """A file of records with a step each, that waits while the disk is full."""

    def __init__(self, path: Path, step: int | None = None) -> None:
        """step: the last to keep of what an interrupted run wrote; None to keep all."""
        self.path = path
        if step is not None and path.is_file():
            lines = list(_lines(path))
            kept = b"".join(line for line, record in lines if record is not None and record["step"] <= step)
            whole = b"".join(line for line, _ in lines)
            if whole.startswith(kept):
                os.truncate(path, len(kept))
            else:
                replace_file(path, kept)
        self._waiting = b""
        self.length = path.stat().st_size if path.exists() else 0
        """Bytes written or waiting."""

    def what_is_gone(self, length: int) -> str | None:
        """A sentence on what is missing of the `length` bytes that a checkpoint knew; None where nothing is."""
        if self.length >= length:
            return None
        last = last_record(self.path)
        rest = "all its records are gone" if last is None else f"records are gone; the last is of step {last['step']}"
        return f"{self.path} has {self.length} of {length} bytes: {rest}, and it goes on from here"

    def write(self, record: LogRecord) -> None:
        """Append a record."""
        line = (json.dumps(record) + "\n").encode()
        self._waiting += line
        self.length += len(line)
        self.flush()

    def flush(self, durably: bool = False) -> None:
        """Hand everything that waits to the system. A full disk leaves it waiting.

        durably: to the disk as well, or raise OSError.
        """
        try:
            with self.path.open("ab", buffering=0) as file:
                while self._waiting:
                    written = file.write(self._waiting)
                    self._waiting = self._waiting[written:]
                if durably:
                    os.fsync(file.fileno())
        except OSError as error:
            if durably or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
