"""Painting on a Ray cluster: many machines that see the same folder. A worker that dies is replaced by Ray."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, MorphogenError
from morphogen.slides.crew import hold, threads_each
from morphogen.slides.painter import Painted, Painter

LOCAL = "local"
_TRIES = 3


class _Worker:
    """What runs on the cluster: a painter that tells what a user can mend instead of failing."""

    def __init__(self, folder: str, threads: int) -> None:
        self._folder, self._threads = Path(folder), threads
        self._painter: Painter | None = None
        self._held = contextlib.ExitStack()
        with contextlib.suppress(OSError):  # a shared folder need not have locks
            self._held.enter_context(hold(self._folder))

    def process(self) -> int:
        """The number of its process."""
        return os.getpid()

    def paint(self, i: int, index: int) -> Painted | Exception:
        try:
            self._painter = self._painter or Painter(self._folder, self._threads)
            return self._painter.paint(i, index)
        except (MorphogenError, OSError) as error:
            return error


class Cluster:
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
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            if address == LOCAL:
                ray.init(address="local", num_cpus=workers, include_dashboard=False, **options)
            else:
                ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"--ray {address}: no cluster could be reached there: {reason[0]}") from None
        threads = threads_each(workers) if address == LOCAL else 1
        worker = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_TRIES - 1)(_Worker)
        self._workers = [worker.remote(str(folder.resolve()), threads) for _ in range(workers)]

    def paint(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, Painted]]:
        left = deque(tiles)
        busy: dict[Any, tuple[Any, int]] = {}

        def give(worker: Any) -> None:
            if left:
                index = left.popleft()
                busy[worker.paint.remote(i, index)] = worker, index

        for worker in self._workers:
            give(worker)
        while busy:
            ready, _ = self._ray.wait(list(busy), num_returns=1)
            worker, index = busy.pop(ready[0])
            try:
                found = self._ray.get(ready[0])
            except self._ray.exceptions.RayActorError:
                raise InputError(
                    f"a worker died {_TRIES} times at the same tile, most likely for lack of memory; use fewer "
                    "--workers or a smaller --tile"
                ) from None
            if isinstance(found, Exception):
                raise found
            give(worker)
            yield index, found

    def close(self) -> None:
        self._ray.shutdown()
