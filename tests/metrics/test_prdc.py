"""Precision, recall, density, coverage, nearest images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import InputError
from morphogen.metrics.prdc import manifold, nearest, radii, squared_distances


def points(count: int, seed: int, shift: float = 0.0, dimensions: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimensions)) + shift


@given(st.integers(0, 10**6), st.integers(7, 30), st.integers(7, 30))
@settings(max_examples=30, deadline=None)
def test_manifold_by_its_definition(seed: int, n: int, m: int) -> None:
    generated, real = points(n, seed), points(m, seed + 1, 0.7)
    found = manifold(generated, real, k=3, k_density=5)

    def ball(x: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(x - x[i], axis=1))[k]

    apart = np.linalg.norm(generated[:, None] - real[None], axis=2)
    real3, real5 = ([ball(real, j, k) for j in range(m)] for k in (3, 5))
    own3 = [ball(generated, i, 3) for i in range(n)]
    assert found.precision == pytest.approx(np.mean([any(apart[i, j] <= real3[j] for j in range(m)) for i in range(n)]))
    assert found.recall == pytest.approx(np.mean([any(apart[i, j] <= own3[i] for i in range(n)) for j in range(m)]))
    inside = [[apart[i, j] <= real5[j] for j in range(m)] for i in range(n)]
    assert found.density == pytest.approx(np.sum(inside) / (5 * n))
    assert found.coverage == pytest.approx(np.mean(np.any(inside, axis=0)))


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    generated, real = points(120, 0, 0.4), points(90, 1)
    precision, recall = calculate_precision_recall_full(torch.from_numpy(generated), torch.from_numpy(real), 3)
    found = manifold(generated, real)
    assert (found.precision, found.recall) == pytest.approx((precision, recall), rel=1e-6)  # shares of few images


def test_far_sets_share_nothing_and_equal_sets_everything() -> None:
    real = points(50, 0)
    assert manifold(points(50, 1, 100.0), real) == (0, 0, 0, 0)
    same = manifold(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_a_copied_image_is_its_own_nearest() -> None:
    known = points(2500, 0)  # more than one block of rows
    rows, distances = nearest(known[[7, 2400]] + 1e-9, known)
    assert rows.tolist() == [7, 2400]
    assert distances.max() < 1e-6
    assert radii(np.repeat(known[:3], 4, axis=0), 3).tolist() == pytest.approx([0] * 12, abs=1e-12)
    assert (squared_distances(known, known) >= 0).all()


def test_too_few_images() -> None:
    with pytest.raises(InputError, match="more than 5 images on each side, not 5"):
        manifold(points(5, 0), points(50, 1))
