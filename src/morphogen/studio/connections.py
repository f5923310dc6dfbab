"""Connections to the server that may not wait for ever: half a request blocks nobody."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS_FOR_HEAD = 10.0
MOST = 256
"""Connections at once. Beyond, the one that has waited longest without a whole request is closed."""


class Connection(H11Protocol):
    """A connection that is closed where the head of a request is not there in time."""

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0

    def _waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._waits():
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._since = time.monotonic()
            self._timer = self.loop.call_later(SECONDS_FOR_HEAD, self.transport.close)

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= MOST:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c._waits()]
            if waiting:
                min(waiting, key=lambda c: c._since).give_up()
        super().connection_made(transport)
        self._watch()

    def give_up(self) -> None:
        """Make room at once: what closes later still counts till then."""
        self.connections.discard(self)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
