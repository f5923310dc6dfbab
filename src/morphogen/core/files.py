"""Writing files so that a crash never leaves half of one, and reading files that others wrote without trusting them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError

_LARGEST_JSON = 64 * 2**20


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


def json_bytes(value: Any) -> bytes:
    """A value as indented JSON with a final newline."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError, naming it, where it cannot be read or is no JSON."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise InputError(f"{path} is too large to be a JSON file of Morphogen's")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not valid JSON") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
