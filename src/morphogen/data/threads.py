"""A function of many images, computed by threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from morphogen.core.progress import Progress

Result = TypeVar("Result")


def map_ordered(function: Callable[[int], Result], count: int, shown: Progress) -> Iterator[Result]:
    """`function(0)`, `function(1)`, ... in order, computed by a few threads; each counts as one unit of progress.

    Decoding and hashing release Python's lock, so threads help. What is not yet begun is dropped on an interruption.
    """
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    try:
        for result in pool.map(function, range(count)):
            shown.advance()
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
