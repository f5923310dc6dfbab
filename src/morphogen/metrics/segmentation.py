"""How well a map is found again: Dice of pixels, and F1 of objects."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from morphogen.core.condition import UNKNOWN

Map = NDArray[np.uint8]
_LEAST = 8  # pixels of an object; what is smaller is a speck on both sides


def dice(pairs: Iterable[tuple[Map, Map]], number: int) -> float:
    """Twice the pixels that are of a class in both over those that are in either, over all pairs of a true map and a
    found one, (H, W). Pixels of no class in the true map do not count. 1 where the class is nowhere.
    """
    both = each = 0
    for true, found in pairs:
        known = true != UNKNOWN
        a, b = (true == number) & known, (found == number) & known
        both += int((a & b).sum())
        each += int(a.sum()) + int(b.sum())
    return 2 * both / each if each else 1.0


def object_f1(pairs: Iterable[tuple[Map, Map]], number: int, least_overlap: float = 0.5) -> float:
    """F1 of the objects of a class, its connected parts (4 neighbours) of 8 pixels and more: one is found where a part
    of the found map has an intersection over union above `least_overlap`, which then only one has. 1 without objects.
    """
    from skimage.measure import label

    hits = true_count = found_count = 0
    for true, found in pairs:
        a = label((true == number), connectivity=1)
        b = label((found == number) & (true != UNKNOWN), connectivity=1)
        sizes_a, sizes_b = (np.bincount(x.ravel()) for x in (a, b))
        large_a, large_b = (np.flatnonzero(s >= _LEAST) for s in (sizes_a, sizes_b))
        large_a, large_b = large_a[large_a > 0], large_b[large_b > 0]
        true_count, found_count = true_count + len(large_a), found_count + len(large_b)
        joint = np.bincount(
            a.ravel().astype(np.int64) * len(sizes_b) + b.ravel(), minlength=len(sizes_a) * len(sizes_b)
        )
        joint = joint.reshape(len(sizes_a), len(sizes_b))[np.ix_(large_a, large_b)]
        union = sizes_a[large_a][:, None] + sizes_b[large_b][None] - joint
        hits += int((joint > least_overlap * union).sum())
    return 2 * hits / (true_count + found_count) if true_count + found_count else 1.0
