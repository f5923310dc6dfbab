"""Figures by nearest neighbours: precision, recall, density, coverage, and the nearest known image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.metrics.distances import Features

_ROWS = 1024  # rows of a distance matrix held at once


def squared_distances(a: Features, b: Features) -> Features:
    """Squared Euclidean distances (N, M) between features (N, D) and (M, D), never negative."""
    lengths = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.asarray(np.maximum(lengths - 2 * a @ b.T, 0))


def radii(features: Features, k: int) -> NDArray[np.float64]:
    """The squared distance of every row to its k-th nearest other row, (N,)."""
    found = []
    for start in range(0, len(features), _ROWS):
        rows = squared_distances(features[start : start + _ROWS], features)
        np.put_along_axis(rows, np.arange(start, start + len(rows))[:, None], -1.0, axis=1)  # itself, whatever rounding
        found.append(np.partition(rows, k, axis=1)[:, k])
    return np.concatenate(found)


class Manifold(NamedTuple):
    """Shares in 0..1 (density may exceed 1)."""

    precision: float
    """Generated images that lie within the k-nearest ball of a real one (Kynkäänniemi et al.)."""
    recall: float
    """Real images that lie within the ball of a generated one."""
    density: float
    """How many real balls a generated image lies in, over k (Naeem et al.)."""
    coverage: float
    """Real balls that hold a generated image."""


def manifold(generated: Features, real: Features, k: int = 3, k_density: int = 5) -> Manifold:
    """Precision and recall with k neighbours, density and coverage with k_density, of features (N, D) and (M, D).

    Raises InputError with no more images on a side than neighbours.
    """
    least = min(len(generated), len(real))
    if least <= max(k, k_density):
        raise InputError(f"precision and recall need more than {max(k, k_density)} images on each side, not {least}")
    real_radii, generated_radii = radii(real, k), radii(generated, k)
    ball = radii(real, k_density)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    precise = inside = 0
    for start in range(0, len(generated), _ROWS):
        apart = squared_distances(generated[start : start + _ROWS], real)
        precise += int((apart <= real_radii).any(axis=1).sum())
        recalled |= (apart <= generated_radii[start : start + _ROWS, None]).any(axis=0)
        inside += int((apart <= ball).sum())
        covered |= (apart <= ball).any(axis=0)
    count = len(generated)
    return Manifold(precise / count, float(recalled.mean()), inside / (k_density * count), float(covered.mean()))


def nearest(queries: Features, known: Features) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every query (N, D) which row of known (M, D) is nearest, and how far (Euclidean): two arrays (N,)."""
    rows, distances = [], []
    for start in range(0, len(queries), _ROWS):
        apart = squared_distances(queries[start : start + _ROWS], known)
        best = apart.argmin(axis=1)
        rows.append(best)
        distances.append(np.sqrt(apart[np.arange(len(best)), best]))
    return np.concatenate(rows), np.concatenate(distances)
