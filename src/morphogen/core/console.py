"""Printing: one line at a time, harmless to a terminal whoever wrote the text, and never more than it can show.

File names, settings and labels come from strangers. A control character in them could hide or rewrite what a terminal
shows, and a line break could forge a line of ours; so everything that is printed goes through `say` or `say_json`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from morphogen.core.errors import InputError

# Controls (C0, DEL, C1), what breaks lines or changes the direction of writing, invisible ones, halves of characters.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_RAW_BYTES = range(0xDC80, 0xDD00)  # how Python keeps bytes of a file name that are no UTF-8


def printable(text: str) -> str:
    r"""The text with everything that is no plain character escaped: `\n`, `\x1b`, `\u202e`; a raw byte as `\xe9`."""
    return _HARMFUL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if code in _RAW_BYTES else found[0].encode("unicode_escape").decode()


def say(text: object = "", *, error: bool = False, flush: bool = False) -> None:
    """Print one line, to standard error if `error`; what the console's encoding lacks is escaped as well.

    Raises InputError where standard output cannot be written, as on a full disk.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed, as under cron
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(str(text)).encode(encoding, "backslashreplace").decode(encoding)
    with writable(stream):
        print(line, file=stream, flush=flush or error)


@contextlib.contextmanager
def writable(stream: TextIO) -> Iterator[None]:
    """Let go of what a standard stream cannot take, such as one into a file on a full disk: what standard error would
    have said is lost, of standard output it is said: InputError.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read it has gone, which is no fault
        raise
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # or Python would try again at its end
        os.close(nowhere)
        if stream is not sys.stderr:
            raise InputError(f"standard output cannot be written: {error.strerror or error}") from None


def flush_output() -> None:
    """Hand what was printed to the system, while what goes wrong can still be said. Raises InputError as `say` does."""
    if sys.stdout is not None:
        with writable(sys.stdout):
            sys.stdout.flush()


def say_json(value: object) -> None:
    """Print a value as indented JSON, in ASCII."""
    for line in json.dumps(value, indent=2).split("\n"):
        say(line)


def prepare_streams() -> None:
    """Make the standard streams take any text, and give those that are closed somewhere to go.

    A closed descriptor would otherwise become that of the next file opened.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
            atexit.register(nowhere.close)
            setattr(sys, name, nowhere)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
