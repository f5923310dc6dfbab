"""Progress of long work: a bar with rate and time left on a terminal, one line an interval elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from morphogen.core.console import printable, say

_LINE_INTERVAL_S = 10.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds + 0.5)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _count(number: float) -> str:
    """A whole number in full; one of a few units, which may be done in part, with three digits."""
    return f"{number:.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"


class Progress:
    """Progress of `total` units of work, written to standard error.

    total: how many units there are, or None where that is not known. done: how many were done before.
    """

    def __init__(
        self, what: str, total: float | None, unit: str = "images", done: float = 0, quiet: bool = False
    ) -> None:
        self.what, self.total, self.unit = printable(what), total, unit
        self.done = self._before = done
        self.note = ""
        self.quiet = quiet
        self._start = self._line = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, note="")
        return self

    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def _status(self) -> str:
        rate = self.rate()
        left = f", {_clock((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        return f"{rate:.3g} {self.unit}/s{left}" + (f", {self.note}" if self.note else "")

    def advance(self, by: float = 1, note: str = "") -> None:
        """Count `by` units as done; `note` is shown beside the rate."""
        self.update(self.done + by, note)

    def update(self, done: float, note: str = "", total: float | None = None) -> None:
        """Set how much is done, and the total where it has become known."""
        self.done, self.note = done, printable(note) or self.note
        self.total = total if total is not None else self.total
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, note=self._status())
        elif not self.quiet and time.monotonic() - self._line >= _LINE_INTERVAL_S:
            self._line = time.monotonic()
            share = f"{_count(self.done)}/{_count(self.total)}" if self.total else _count(self.done)
            self.say(f"{self.what}: {share} {self.unit}, {self._status()}")

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.console.print(printable(text), highlight=False, markup=False)
        else:
            say(text, error=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
