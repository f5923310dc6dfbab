"""Running the studio's server on this machine, for this machine only."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from morphogen.core.errors import InputError
from morphogen.studio.app import make_app
from morphogen.studio.connections import MOST, Connection
from morphogen.studio.queue import TileQueue

HOST = "127.0.0.1"
_SECONDS_TO_LEAVE = 2


class _Server(uvicorn.Server):
    """Turns those away who wait for tiles before it waits for their connections to end."""

    def __init__(self, config: uvicorn.Config, queue: TileQueue, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._queue, self._ready = queue, ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own would raise the signal again at the end; to stop a server is no error."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._queue.close()
        await super().shutdown(sockets)


def listen(port: int) -> socket.socket:
    """A socket on this machine's own address; port 0 is any free one. Raises InputError where the port is in use."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would share the port with whoever has it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port {port} is in use by another program; choose another one, or 0 for any") from None
        raise InputError(f"--port {port} cannot be used: {error.strerror or error}") from None
    return listening


def run(queue: TileQueue, listening: socket.socket, ready: Callable[[], None], root_path: str = "") -> None:
    """Serve until Ctrl-C or SIGTERM. `ready` is called once the server answers. root_path: see `make_app`."""
    config = uvicorn.Config(
        make_app(queue, root_path),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST + 1,
        http=Connection,
        timeout_graceful_shutdown=_SECONDS_TO_LEAVE,
        lifespan="off",
        ws="none",
    )
    try:
        _Server(config, queue, ready).run(sockets=[listening])
    finally:
        queue.close()
        listening.close()
