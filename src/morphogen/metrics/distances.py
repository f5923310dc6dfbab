"""Distances between two sets of features: Fréchet's and the kernel's, in float64.

Only with the FID network's features are they called FID and KID.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError

Features = NDArray[np.float64]
_BLOCKS, _PARTITIONS = 8, 16
_SUBSET_SEED = 2020  # torch-fidelity's own


def as_features(values: NDArray[np.floating], what: str = "the images") -> Features:
    """Features as float64 (N, D). Raises InputError, naming the first image's number, where one is not finite."""
    features = np.asarray(values, np.float64)
    if features.ndim != 2:
        raise InputError(f"features of {what} should be a table (images, numbers), not of shape {features.shape}")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise InputError(
            f"the network's features of {len(bad)} of {len(features)} images ({what}) are not finite, first {bad[0]}"
        )
    return features


def _check_count(a: Features, b: Features, least: int, figure: str) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError(f"the sets have {a.shape[1]} and {b.shape[1]} features; use one network for both")
    if min(len(a), len(b)) < least:
        raise InputError(f"{figure} needs at least {least} images on each side; there are {len(a)} and {len(b)}")


def frechet_distance(a: Features, b: Features) -> float:
    """The squared Fréchet distance between the normal distributions fitted to features (N, D) and (M, D).

    |mean a - mean b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)) (Heusel et al., "GANs trained by a two time-scale update
    rule"). The last trace is the sum of the singular values of X Y^T, the rows of X and Y being the centred features
    over the root of N - 1: A = X^T X and B = Y^T Y, so A B has the non-zero eigenvalues of (X Y^T)^T (X Y^T). That
    needs no matrix root, and is exact with fewer images than features. Raises InputError below two images.
    """
    _check_count(a, b, 2, "the Fréchet distance")
    factors: list[Features] = []
    spread = 0.0
    for x in (a, b):
        centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
        spread += float(np.square(centred).sum())
        # An orthogonal factor on the left changes no singular value of the product.
        factors.append(np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred)
    shared = float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    apart = float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum())
    return max(apart + spread - 2 * shared, 0.0)


def _kernel(x: Features, y: Features) -> Features:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def squared_mmd(a: Features, b: Features) -> float:
    """The unbiased squared maximum mean discrepancy under the cubic kernel (x.y / D + 1)^3 of features (N, D), (M, D).

    Binkowski et al., "Demystifying MMD GANs", equation 4. It may be negative. Raises InputError below two images.
    """
    _check_count(a, b, 2, "the kernel distance")
    within = 0.0
    for x in (a, b):
        kernel = _kernel(x, x)
        within += float(kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))
    return within - 2 * float(_kernel(a, b).mean())


class KernelDistance(NamedTuple):
    """value: the unbiased estimate from all images. standard_error: of it, or NaN with fewer than 16 images a side."""

    value: float
    standard_error: float


def kernel_distance(a: Features, b: Features, seed: int = 0) -> KernelDistance:
    """The kernel distance of features (N, D), (M, D) with its standard error over seeded disjoint subsets.

    Both sets are cut at random into eighths; the spread of the eight unbiased estimates gives the error of their mean,
    which that of the whole does not exceed. Averaged over 16 ways to cut.
    """
    value = squared_mmd(a, b)
    if min(len(a), len(b)) < 2 * _BLOCKS:
        return KernelDistance(value, float("nan"))
    generator = np.random.default_rng(seed)
    variances = []
    for _ in range(_PARTITIONS):
        pairs = zip(*(np.array_split(generator.permutation(len(x)), _BLOCKS) for x in (a, b)), strict=True)
        estimates = [squared_mmd(a[rows], b[columns]) for rows, columns in pairs]
        variances.append(np.var(estimates, ddof=1) / _BLOCKS)
    return KernelDistance(value, float(np.sqrt(np.mean(variances))))


class SubsetKernelDistance(NamedTuple):
    """Mean and standard deviation of the kernel distance over random subsets, as published tables give KID."""

    mean: float
    deviation: float
    size: int
    subsets: int


def subset_kernel_distance(a: Features, b: Features, size: int = 1000, subsets: int = 100) -> SubsetKernelDistance:
    """The kernel distance over `subsets` random subsets of `size` images, or of all if there are fewer.

    The convention of published KID figures, with torch-fidelity's subsets (a is its first input), so that both agree.
    """
    _check_count(a, b, 2, "the kernel distance")
    size = min(size, len(a), len(b))
    draws = np.random.RandomState(_SUBSET_SEED)
    values = []
    for _ in range(subsets):
        x = a[draws.choice(len(a), size, replace=False)]
        values.append(squared_mmd(x, b[draws.choice(len(b), size, replace=False)]))
    return SubsetKernelDistance(float(np.mean(values)), float(np.std(values)), size, subsets)
