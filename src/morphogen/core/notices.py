"""Things worth saying once in a process, on standard error."""

from __future__ import annotations

import sys

_said: set[str] = set()


def say_once(text: str) -> None:
    """Print a sentence to standard error, unless it has been said already."""
    if text not in _said:
        _said.add(text)
        print(text, file=sys.stderr, flush=True)
