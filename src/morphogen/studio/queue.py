"""The line in which requests for tiles wait for the one thread that computes."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from morphogen.studio.endless import Stopped
from morphogen.studio.views import Tile, View

_TOGETHER = 2**17  # pixels of tiles that are computed together


class Full(Exception):
    """So many wait already that another one is refused."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A tile that somebody waits for, until `end` (of time.monotonic) or until they give it up."""

    tile: Tile
    end: float
    result: Future[bytes] = field(default_factory=Future)

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
            waiting = Waiting(tile, time.monotonic() + self.deadline_s)
            if self._stopped:
                waiting.result.set_exception(Stopped())
                return waiting.result
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
            while self._line and not (batch and pixels + self.view.pixels_of(self._line[0].tile) > _TOGETHER):
                waiting = self._line.popleft()
                batch.append(waiting)
                pixels += self.view.pixels_of(waiting.tile)
            return batch

    def _work(self) -> None:
        while not self._stopped:
            self._serve(self._next())
        _refuse(list(self._line), Stopped())

    def _serve(self, batch: list[Waiting]) -> None:
        alive = [waiting for waiting in batch if not waiting.over()]
        try:
            found = self.view.pictures(
                [waiting.tile for waiting in alive], lambda: self._stopped or all(waiting.over() for waiting in alive)
            )
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
