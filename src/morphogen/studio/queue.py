"""The line in which requests for tiles, and strokes of the brush, wait for the one thread that computes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from morphogen.studio.endless import Stopped
from morphogen.studio.views import Tile, View

_TOGETHER = 2**17  # pixels of tiles that are computed together


class Full(Exception):
    """So many wait already that another one is refused."""


Work = Callable[[Callable[[], bool]], Any]
"""What is computed of a stroke: given what says whether to stop, its result."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A tile, or a stroke's work, that somebody waits for, until `end` (of time.monotonic) or until they give it up."""

    what: Tile | Work
    end: float
    result: Future[Any] = field(default_factory=Future)

    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.result.done() or time.monotonic() >= self.end


class TileQueue:
    """Computes the tiles of a view in one thread, first come first served, neighbours together.

    most: how many may wait. deadline_s: how long each may; what has been computed of it by then is kept by the view.
    """

    def __init__(self, view: View, most: int = 64, deadline_s: float = 60.0) -> None:
        self.view, self.most, self.deadline_s = view, most, deadline_s
        self._line: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="tiles", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._line)

    def submit(self, tile: Tile) -> Future[bytes]:
        """The tile's PNG, when it is there: cancelling the future gives it up. Raises Full.

        The future raises Stopped where the deadline passed or the queue was closed.
        """
        with self._changed:
            if len(self._line) >= self.most:
                self._line = deque(waiting for waiting in self._line if not waiting.over())
            if len(self._line) >= self.most:
                raise Full
            return self._wait(tile)

    def compute(self, work: Work, first: bool = False) -> Future[Any]:
        """The result of a stroke's work, when it is there. first: before all who wait. Raises Full and Stopped as
        `submit`.
        """
        with self._changed:
            if sum(not isinstance(waiting.what, Tile) for waiting in self._line) >= self.most:
                raise Full
            return self._wait(work, first)

    def _wait(self, what: Tile | Work, first: bool = False) -> Future[Any]:
        waiting = Waiting(what, time.monotonic() + self.deadline_s)
        if self._stopped:
            waiting.result.set_exception(Stopped())
            return waiting.result
        if first:
            self._line.appendleft(waiting)
        else:
            self._line.append(waiting)
        self._changed.notify()
        return waiting.result

    def close(self) -> None:
        """Stop computing and turn away all who wait."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _next(self) -> list[Waiting]:
        """Who is served next: the first in the line, and after it those that are cheap enough to come along."""
        with self._changed:
            while not self._line and not self._stopped:
                self._changed.wait()
            batch: list[Waiting] = []
            pixels = 0
            while self._line:
                what = self._line[0].what
                if not isinstance(what, Tile):
                    return batch or [self._line.popleft()]
                pixels += self.view.pixels_of(what)
                if batch and pixels > _TOGETHER:
                    break
                batch.append(self._line.popleft())
            return batch

    def _work(self) -> None:
        while not self._stopped:
            self._serve(self._next())
        _refuse(list(self._line), Stopped())

    def _serve(self, batch: list[Waiting]) -> None:
        alive = [waiting for waiting in batch if not waiting.over()]

        def stop() -> bool:
            return self._stopped or all(waiting.over() for waiting in alive)

        try:
            found = [waiting.what(stop) for waiting in alive if not isinstance(waiting.what, Tile)]
            if not found:
                found = self.view.pictures([w.what for w in alive if isinstance(w.what, Tile)], stop)
            for waiting, content in zip(alive, found, strict=True):
                if waiting.result.set_running_or_notify_cancel():
                    waiting.result.set_result(content)
        except Exception as error:  # is the business of those who wait
            if len(alive) < 2:
                _refuse(alive, error)
            else:  # the fault may be with one of them
                for waiting in alive:
                    self._serve([waiting])
        _refuse(batch, Stopped())


def _refuse(batch: list[Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.result.done() and waiting.result.set_running_or_notify_cancel():
            waiting.result.set_exception(error)
