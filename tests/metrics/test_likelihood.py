"""The generalisation gap: it flags a generator that gives training images back, and no other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import InputError
from morphogen.metrics.compute import _memorisation
from morphogen.metrics.likelihood import feature_likelihood, fit_variances
from morphogen.metrics.memorization import copies_among
from morphogen.metrics.prdc import squared_distances

DIMENSIONS = 24


def draw(count: int, seed: int) -> np.ndarray:
    """Features of images: uneven, correlated, off centre."""
    mixing = np.random.default_rng(5).normal(size=(DIMENSIONS, DIMENSIONS))
    return np.random.default_rng(seed).normal(size=(count, DIMENSIONS)) @ mixing * 7 + 3


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out features."""
    return draw(300, 0), draw(200, 1)


def test_an_honest_generator_is_not_flagged(sets: tuple[np.ndarray, np.ndarray]) -> None:
    for seed in range(2, 8):
        found = _memorisation(draw(200, seed), sets[1], sets[0])
        assert found is not None
        assert not found.memorises, found


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_generator_that_returns_training_images_is_flagged(
    sets: tuple[np.ndarray, np.ndarray], noise: float, share: float
) -> None:
    """All its images or half of them; exact, or with noise of a tenth of the features' spread."""
    train, test = sets
    copied = train[: int(200 * share)] + noise * train.std(axis=0) * np.random.default_rng(3).normal(
        size=(int(200 * share), DIMENSIONS)
    )
    generated = np.concatenate([copied, draw(200 - len(copied), 4)])
    found = _memorisation(generated, test, train)
    assert found is not None
    assert found.gap < 0
    assert found.memorises, found


def test_copies_of_held_out_images_are_not_memorised(sets: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = sets
    found = feature_likelihood(test, train, test)
    assert found.gap > 0
    assert found.variances.min() > 0.01  # the training images are not near any of them


def test_the_gap_does_not_depend_on_the_features_units(sets: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = sets
    generated = draw(100, 2)
    scaled = [x * np.linspace(0.1, 100, DIMENSIONS) - 50 for x in (generated, train, test)]
    assert feature_likelihood(*scaled).gap == pytest.approx(feature_likelihood(generated, train, test).gap, rel=1e-5)
    constant = [np.hstack([x, np.full((len(x), 3), 2.5)]) for x in (generated, train, test)]
    assert feature_likelihood(*constant).gap == pytest.approx(feature_likelihood(generated, train, test).gap, rel=1e-9)


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(3, 12))
@settings(max_examples=25, deadline=None)
def test_fitted_variances_are_a_maximum(seed: int, components: int, images: int) -> None:
    """No variance changed alone makes the training images likelier (beyond the tolerance of the iteration)."""
    generator = np.random.default_rng(seed)
    squared = squared_distances(generator.normal(size=(images, 3)), generator.normal(size=(components, 3)) * 0.5)
    variances = fit_variances(squared, 3)

    def likelihood(v: np.ndarray) -> float:
        densities = np.exp(-0.5 * squared / v) / (2 * np.pi * v) ** 1.5
        return float(np.log(densities.mean(axis=1)).mean())

    best = likelihood(variances)
    for i in range(components):
        for factor in (0.9, 1.1):
            other = variances.copy()
            other[i] = max(other[i] * factor, 1e-4)
            assert likelihood(other) <= best + 2e-3


def test_one_component_is_fitted_to_the_mean_squared_distance() -> None:
    squared = np.array([[2.0], [4.0], [9.0]])
    assert fit_variances(squared, 5) == pytest.approx([3.0 / 3])


def test_hard_cases() -> None:
    with pytest.raises(InputError, match="at least two generated, training and held-out images; there are 1, 9 and 9"):
        feature_likelihood(draw(1, 0), draw(9, 1), draw(9, 2))
    with pytest.raises(InputError, match="same features"):
        feature_likelihood(draw(9, 0), np.ones((9, DIMENSIONS)), draw(9, 2))
    few = feature_likelihood(draw(3, 0), draw(4, 1), draw(5, 2))  # far fewer images than features
    assert np.isfinite([few.gap, few.standard_error]).all()


def test_what_counts_as_a_copy() -> None:
    limit, copied = copies_among(np.array([0.0, 1.9, 2.1, 50.0]), np.array([4.0] * 5 + [9.0] * 5))
    assert limit == 2.0
    assert copied.tolist() == [True, True, False, False]
    doubles = np.array([0.0] + [20.0] * 19)  # one held-out image in twenty is in the training images too
    assert copies_among(np.array([0.0, 9.0, 11.0]), doubles)[1].tolist() == [True, True, False]
    assert copies_among(np.array([0.0, 0.1]), np.zeros(10))[1].tolist() == [True, False]  # all of them are
