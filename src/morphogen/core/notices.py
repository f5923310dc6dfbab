"""Things worth saying once in a process, on standard error."""

from __future__ import annotations

from morphogen.core.console import say

_said: set[str] = set()


def say_once(text: str) -> None:
    """Print a sentence to standard error, unless it has been said already."""
    if text not in _said:
        _said.add(text)
        say(text, error=True)
