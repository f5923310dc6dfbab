"""The cache of blocks stays within its size, whatever happens to the disk."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphogen.core.errors import InputError
from morphogen.studio.blocks import Block, BlockCache

SHAPE = (3, 5, 5)
BYTES = 3 * 5 * 5 * 4


def values(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.float32) + np.arange(25, dtype=np.float32).reshape(5, 5) / 100


@given(
    most=st.integers(0, 5),
    uses=st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 99)), max_size=60),
)
def test_it_keeps_what_was_used_last(most: int, uses: list[tuple[bool, int, int]]) -> None:
    cache = BlockCache(SHAPE, most * BYTES + BYTES - 1)
    model: dict[int, int] = {}  # in the order of use
    for put, place, number in uses:
        block = Block(3, place, -place)
        if put:
            cache.put(block, values(number))
            model.pop(place, None)
            model[place] = number
            while len(model) > most:
                del model[next(iter(model))]
        else:
            found = cache.get(block)
            assert (found is None) == (place not in model)
            if found is not None:
                assert np.array_equal(found, values(model[place]))
                model[place] = model.pop(place)
        assert len(cache) == len(model) and cache.disk_bytes <= most * BYTES


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    cache = BlockCache(SHAPE, 10 * BYTES, tmp_path)
    cache.put(Block(1, 0, 0), values(1))
    assert list(tmp_path.iterdir()) == []  # not even while it is in use


def test_a_full_disk_makes_it_smaller(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    cache = BlockCache(SHAPE, 100 * BYTES, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(4.5 * BYTES), before[1]))
    try:
        for k in range(10):
            cache.put(Block(1, k, 0), values(k))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    kept = [k for k in range(10) if Block(1, k, 0) in cache]
    assert len(kept) == 4 and cache.disk_bytes == 4 * BYTES
    for k in kept:
        found = cache.get(Block(1, k, 0))
        assert found is not None and np.array_equal(found, values(k))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the cache cannot be written in .*nowhere"):
        BlockCache(SHAPE, BYTES, tmp_path / "nowhere")
