"""Who paints the tiles: this process, or several. A worker that dies is replaced, and its tile done again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from morphogen.core.errors import InputError, MorphogenError
from morphogen.slides.tile_worker import SteppedTile, TileWorker, open_worker

TRIES = 3  # how often a tile may kill its worker
_END_S = 10.0


class Executor(Protocol):
    """Paints tiles, in any order."""

    def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
        """Take evaluation number i of tiles; each one's number and what is told of it, once it is written."""

    def close(self) -> None:
        """Let the workers go."""


class InProcessExecutor:
    """This process, with as many threads as PyTorch has."""

    def __init__(self, folder: Path) -> None:
        self._worker = open_worker(folder)

    def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
        for index in tiles:
            yield index, self._worker.step(i, index)

    def close(self) -> None:
        pass


def threads_each(workers: int) -> int:
    """How many threads each of several workers on this machine computes with."""
    return max(1, torch.get_num_threads() // workers)


def died_too_often() -> InputError:
    """The message on a tile that has cost `TRIES` workers."""
    return InputError(
        f"a worker died {TRIES} times at the same tile, most likely for lack of memory; use fewer --workers or a "
        "smaller --tile"
    )


class GuardedWorker:
    """Paints in a process of its own, and hands back what goes wrong there, to be raised where the orders come from."""

    def __init__(self, folder: str, threads: int) -> None:
        self._folder, self._threads = Path(folder), threads
        self._worker: TileWorker | None = None

    def step(self, i: int, index: int) -> SteppedTile | Exception:
        """Take evaluation number i of a tile."""
        try:
            self._worker = self._worker or open_worker(self._folder, self._threads)
            return self._worker.step(i, index)
        except (MorphogenError, OSError) as error:
            return error
        except Exception as error:  # a bug, whose own traceback and type the way back may lose
            return RuntimeError("".join(traceback.format_exception(error)))


class ProcessExecutor:
    """GuardedWorker processes on this machine."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._threads = folder, threads_each(workers)
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(workers)]
        for _, connection in self._workers:
            _wait_until_ready(connection)

    def _start(self) -> tuple[Any, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(str(self._folder), self._threads, there), daemon=True)
        process.start()
        there.close()  # so that its end is seen here
        return process, here

    def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
        left, deaths = deque(tiles), Counter[int]()
        busy: dict[Connection, int] = {}

        def give(connection: Connection) -> None:
            if left:
                busy[connection] = left.popleft()
                with contextlib.suppress(OSError):  # it has died, which the next look at it shows
                    connection.send((i, busy[connection]))

        for _, connection in self._workers:
            give(connection)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                index = busy.pop(ready)
                try:
                    found = ready.recv()
                except (EOFError, OSError):
                    deaths[index] += 1
                    if deaths[index] >= TRIES:
                        raise died_too_often() from None
                    left.appendleft(index)
                    ready = self._replace(ready)
                    give(ready)
                    continue
                if isinstance(found, BaseException):
                    raise found
                give(ready)
                yield index, found

    def _replace(self, dead: Connection) -> Connection:
        at = next(k for k, (_, connection) in enumerate(self._workers) if connection is dead)
        process, _ = self._workers[at]
        dead.close()
        process.join(_END_S)
        self._workers[at] = self._start()
        _wait_until_ready(self._workers[at][1])
        return self._workers[at][1]

    def close(self) -> None:
        for process, connection in self._workers:
            connection.close()
            process.terminate()
        for process, _ in self._workers:
            process.join(_END_S)


def _work(folder: str, threads: int, connection: Connection) -> None:
    """A worker process: paint what comes in until nobody is there any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives the orders
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), hold(Path(folder)):
        worker = GuardedWorker(folder, threads)
        connection.send(None)  # ready: no order comes before the folder is held
        while True:
            connection.send(worker.step(*connection.recv()))


def _wait_until_ready(connection: Connection) -> None:
    """Wait until a worker holds the folder."""
    try:
        connection.recv()
    except (EOFError, OSError):
        raise InputError(
            "a worker ended before it could begin, most likely for lack of memory; use fewer --workers"
        ) from None


_LOCK = "workers.lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """While a worker lives, `wait_for_others` waits: one whose giver of orders was killed may still be writing."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with (folder / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def wait_for_others(folder: Path) -> None:
    """Wait until no worker of an earlier start of this work is left; each ends with the tile it is at."""
    if os.name != "posix":
        return
    import fcntl

    with (folder / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
