"""Writing files so that a crash never leaves half of one, and reading files that others wrote without trusting them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError

_LARGEST_TEXT = 64 * 2**20
LARGEST_IMAGE = 2 * 2**30
"""Bytes of an encoded image that is read at once."""


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in a folder durable, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes | str) -> None:
    """Put content at path at once: whoever reads sees the old file or the new one, never a part.

    A text is written as UTF-8; what of file names no UTF-8 can hold is escaped.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write_durably(temporary, content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


JsonObject = dict[str, Any]
"""An object of a JSON file, as `json` reads it: nothing is known of its values until they are looked at."""


def json_bytes(value: object) -> bytes:
    """A value as indented JSON with a final newline."""
    return (json.dumps(value, indent=2) + "\n").encode()


@contextlib.contextmanager
def open_ordinary(path: Path, what: str = "") -> Iterator[BufferedReader]:
    """An ordinary file, open to be read. Raises InputError, naming it, for a device, a pipe, or what cannot be read.

    what: such as `the split file `, for messages.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe would wait for a writer
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{what}{path} cannot be read: it is not an ordinary file")
            yield file
    except OSError as error:
        raise InputError(f"{what}{path} cannot be read: {error.strerror or error}") from None


def read_bytes(path: Path, what: str = "", limit: int = _LARGEST_TEXT) -> bytes:
    """The content of an ordinary file of at most `limit` bytes. Raises InputError as `open_ordinary` does, and for a
    larger file.
    """
    with open_ordinary(path, what) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise InputError(f"{what}{path} is too large; it should have at most {limit // 2**20:,} MiB")
    return content


def read_text(path: Path) -> str:
    """The text of a file of settings. Raises InputError as `read_bytes` does, and where it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8") from None


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError as `read_bytes` does, and where it is no JSON."""
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not valid JSON") from None


def sha256(path: Path, what: str = "") -> str:
    """The SHA-256 of an ordinary file's content, in hexadecimal. Raises InputError as `open_ordinary` does."""
    with open_ordinary(path, what) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
