"""Painting on a Ray cluster: many machines that see the same folder. A worker that dies is replaced by Ray."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError
from morphogen.core.notices import say_once
from morphogen.slides.executors import TRIES, GuardedWorker, died_too_often, hold, threads_each
from morphogen.slides.tile_worker import SteppedTile

LOCAL = "local"
_PATIENCE_S = 20.0


class _RayWorker(GuardedWorker):
    """A worker on the cluster."""

    def __init__(self, folder: str, threads: int) -> None:
        super().__init__(folder, threads)
        self._held = contextlib.ExitStack()
        with contextlib.suppress(OSError):  # a shared folder need not have locks
            self._held.enter_context(hold(self._folder))

    def process(self) -> int:
        """The number of its process; whoever can say it is ready."""
        return os.getpid()


class RayExecutor:
    """Workers on a Ray cluster. folder: of the work, which every machine must see under the same name. address: of the
    cluster, or `local` to start one in this process.

    Raises InputError where Ray is missing, or there is no cluster at the address.
    """

    def __init__(self, folder: Path, address: str, workers: int) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("--ray needs Ray, which `pip install 'morphogen[cluster]'` brings") from None
        self._ray: Any = ray
        options: dict[str, object] = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            if address == LOCAL:
                ray.init(address="local", num_cpus=workers, include_dashboard=False, **options)
            else:
                ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"--ray {address}: no cluster could be reached there: {reason[0]}") from None
        threads = threads_each(workers) if address == LOCAL else 1
        worker = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=TRIES - 1)(_RayWorker)
        self._workers = [worker.remote(str(folder.resolve()), threads) for _ in range(workers)]
        # A worker for which the cluster has no processor free waits, without a tile.
        self._starting: dict[Any, Any] = {worker.process.remote(): worker for worker in self._workers}
        self._idle: list[Any] = []

    def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
        left = deque(tiles)
        busy: dict[Any, tuple[Any, int]] = {}

        def give() -> None:
            while left and self._idle:
                worker, index = self._idle.pop(), left.popleft()
                busy[worker.step.remote(i, index)] = worker, index

        give()
        while left or busy:
            ready, _ = self._ray.wait([*busy, *self._starting], num_returns=1, timeout=_PATIENCE_S)
            if not ready:
                if not busy:
                    say_once("waiting for the cluster: none of its processors is free for a worker yet")
                continue
            if ready[0] in self._starting:
                self._idle.append(self._starting.pop(ready[0]))
                self._began(ready[0])
                give()
                continue
            worker, index = busy.pop(ready[0])
            try:
                found = self._ray.get(ready[0])
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError):
                raise died_too_often() from None
            if isinstance(found, Exception):
                raise found
            self._idle.append(worker)
            give()
            yield index, found

    def _began(self, ready: Any) -> None:
        """Raise InputError where a worker could not begin."""
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"--ray: a worker could not begin: {reason[-1].strip()}; every machine needs this Morphogen"
            ) from None

    def close(self) -> None:
        self._ray.shutdown()
