"""Distances between features: against torch-fidelity, against matrix roots, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import InputError
from morphogen.metrics.distances import (
    as_features,
    frechet_distance,
    kernel_distance,
    squared_mmd,
    subset_kernel_distance,
)


def sample(count: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features, about as unevenly spread as a network's."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions)) / np.arange(1, dimensions + 1) ** 0.5
    return generator.normal(size=(count, dimensions)) @ mixing + shift


def by_matrix_root(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, with scipy's matrix root."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    apart = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(apart + np.trace(first + second - 2 * root))


@pytest.mark.parametrize(("n", "m", "dimensions"), [(400, 300, 32), (80, 70, 64), (65, 500, 64)])
def test_frechet_distance_agrees_with_torch_fidelity_and_the_matrix_root(n: int, m: int, dimensions: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = sample(n, dimensions, 0), sample(m, dimensions, 1, 0.3)
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    ours = frechet_distance(a, b)
    assert ours == pytest.approx(theirs, rel=1e-6)  # as promised; both are float64, so about 1e-10 is typical
    assert ours == pytest.approx(by_matrix_root(a, b), rel=1e-6)


def test_frechet_distance_with_fewer_images_than_features() -> None:
    """Where the covariances have no full rank the definition still holds; more features of zero change nothing."""
    a, b = sample(20, 50, 0), sample(15, 50, 1)
    wide = [np.hstack([x, np.zeros((len(x), 30))]) for x in (a, b)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    first, second = (np.cov(x, rowvar=False) for x in (a, b))
    eigenvalues = np.linalg.eigvals(first @ second).real.clip(0)
    kept = np.sort(eigenvalues)[-14:]  # the rank; the rest is rounding, whose roots would add up
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second) - 2 * np.sqrt(kept).sum()
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 30), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_frechet_distance_is_a_distance(seed: int, n: int, m: int, dimensions: int) -> None:
    a, b = sample(n, dimensions, seed), sample(m, dimensions, seed + 1)
    scale = np.square(a).sum() + np.square(b).sum() + 1
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9 * scale)
    assert frechet_distance(a, a) <= 1e-9 * scale
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, dimensions)))[0]
    assert frechet_distance(a @ rotation + 3, b @ rotation + 3) == pytest.approx(
        frechet_distance(a, b), abs=1e-8 * scale
    )


def test_frechet_distance_of_known_normals() -> None:
    """In one dimension it is (difference of means)^2 + (difference of deviations)^2, with the unbiased variance."""
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [11.0], [8.0]])
    assert frechet_distance(a, b) == pytest.approx((8 - 1) ** 2 + (3 - 2**0.5) ** 2, rel=1e-12)


def test_kernel_distance_agrees_with_torch_fidelity() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = sample(150, 24, 0), sample(130, 24, 1, 0.2)
    theirs = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=7, kid_subset_size=100, verbose=False
    )
    ours = subset_kernel_distance(a, b, size=100, subsets=7)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert ours.deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)
    whole = kid_features_to_metric(
        torch.from_numpy(a[:130]), torch.from_numpy(b), kid_subsets=1, kid_subset_size=130, verbose=False
    )
    assert squared_mmd(a[:130], b) == pytest.approx(whole["kernel_inception_distance_mean"], rel=1e-6)


def test_kernel_distance_is_unbiased() -> None:
    """Its mean over many pairs of tiny sets of one distribution is zero, within four of its standard errors."""
    values = [squared_mmd(sample(5, 4, 2 * k), sample(6, 4, 2 * k + 1)) for k in range(3000)]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 4 * error
    biased = np.mean([k for k in values if k > 0])  # a wrong estimator, to see that the test can fail
    assert biased > 4 * error


def test_the_standard_error_is_about_the_spread_of_the_estimate() -> None:
    """Over independent draws; the error is that of a mean of eighths, which may be up to a few times larger."""
    drawn = [kernel_distance(sample(160, 8, 2 * k), sample(160, 8, 2 * k + 1, 0.5)) for k in range(40)]
    spread = np.std([d.value for d in drawn])
    told = np.mean([d.standard_error for d in drawn])
    assert 0.8 * spread < told < 3 * spread


def test_kernel_distance_is_the_same_for_the_same_seed_and_says_when_it_knows_no_error() -> None:
    a, b = sample(40, 6, 0), sample(50, 6, 1)
    assert kernel_distance(a, b) == kernel_distance(a, b)
    assert kernel_distance(a, b, seed=1).standard_error != kernel_distance(a, b).standard_error
    assert kernel_distance(a, b, seed=1).value == kernel_distance(a, b).value
    assert np.isnan(kernel_distance(a[:10], b).standard_error)


def test_one_image_is_too_few() -> None:
    for figure in (frechet_distance, squared_mmd, subset_kernel_distance):
        with pytest.raises(InputError, match="at least 2 images on each side; there are 1 and 9"):
            figure(sample(1, 4, 0), sample(9, 4, 1))
    with pytest.raises(InputError, match="3 and 4 features; use one network"):
        frechet_distance(sample(9, 3, 0), sample(9, 4, 1))


def test_features_that_are_not_finite_are_named() -> None:
    features = sample(7, 3, 0)
    features[4, 1] = np.nan
    features[6, 0] = np.inf
    with pytest.raises(InputError, match=r"2 of 7 images \(cells\) are not finite, first 4"):
        as_features(features, "cells")
    with pytest.raises(InputError, match="not of shape"):
        as_features(np.zeros(3), "cells")
