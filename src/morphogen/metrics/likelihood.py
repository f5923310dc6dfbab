"""Does a generator memorise? The feature-likelihood divergence of Jiralerspong et al. (2023), "Feature likelihood
divergence: evaluating the generalization of generative models using samples", written from the paper.

Generated images are taken for the centres of a mixture of isotropic Gaussians in feature space, whose variances are
fitted to the training images. A sample that copies a training image gets a tiny variance, so that training images
become far likelier than unseen ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.metrics.distances import Features
from morphogen.metrics.prdc import squared_distances

_SMALLEST_VARIANCE = 1e-4  # of features of variance one: what is nearer than a hundredth is a copy, however near
_ITERATIONS = 200
_TOLERANCE = 1e-7


class Likelihood(NamedTuple):
    """Figures times 100 a dimension, as the paper gives them."""

    gap: float
    """100 x (NLL of training images - NLL of held-out ones): negative where training images are likelier."""
    standard_error: float
    """Of the gap, from the spread over images."""
    train_nll: float
    test_nll: float
    """The feature-likelihood divergence up to the constant of the data set."""
    variances: NDArray[np.float64]
    """One for each generated image, (N,), in units of the training features' variance."""


def _log_joint(squared: Features, variances: NDArray[np.float64], dimensions: int) -> Features:
    """log of each component's density over the number of components: rows images, columns components."""
    logs = -0.5 * (squared / variances + dimensions * np.log(2 * np.pi * variances))
    return np.asarray(logs - np.log(len(variances)))


def _log_sum(joint: Features) -> NDArray[np.float64]:
    largest = joint.max(axis=1, keepdims=True)
    return np.asarray(largest[:, 0] + np.log(np.exp(joint - largest).sum(axis=1)))


def fit_variances(squared: Features, dimensions: int) -> NDArray[np.float64]:
    """Variances (N,) under which the training images are likeliest, by expectation maximisation.

    squared: squared distances (images, components). A component that no image belongs to keeps its variance.
    """
    variances = np.maximum(squared.min(axis=0) / dimensions, _SMALLEST_VARIANCE)
    before = -np.inf
    for _ in range(_ITERATIONS):
        joint = _log_joint(squared, variances, dimensions)
        likelihood = _log_sum(joint)
        shares = np.exp(joint - likelihood[:, None])
        weight = shares.sum(axis=0)
        spread = (shares * squared).sum(axis=0) / (dimensions * np.maximum(weight, 1e-12))
        variances = np.where(weight > 1e-6, np.maximum(spread, _SMALLEST_VARIANCE), variances)
        now = float(likelihood.mean()) / dimensions
        if now - before < _TOLERANCE:
            break
        before = now
    return np.asarray(variances)


def feature_likelihood(generated: Features, train: Features, test: Features) -> Likelihood:
    """The likelihoods of features (T, D) of training images and (M, D) of held-out ones around generated ones (N, D).

    All are first scaled by the training features' mean and deviation; features that never vary are left out.
    Raises InputError with fewer than two images in a set.
    """
    if min(len(generated), len(train), len(test)) < 2:
        raise InputError(
            "the generalisation gap needs at least two generated, training and held-out images; there are "
            f"{len(generated)}, {len(train)} and {len(test)}"
        )
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    varying = deviation > 1e-9 * max(float(deviation.max()), 1e-300)
    if not varying.any():
        raise InputError("the network gives all training images the same features; there is nothing to measure")
    centres, known, unseen = ((x[:, varying] - mean[varying]) / deviation[varying] for x in (generated, train, test))
    dimensions = int(varying.sum())
    to_known = squared_distances(known, centres)
    variances = fit_variances(to_known, dimensions)
    losses = [
        -100 / dimensions * _log_sum(_log_joint(squared, variances, dimensions))
        for squared in (to_known, squared_distances(unseen, centres))
    ]
    error = float(np.sqrt(sum(x.var(ddof=1) / len(x) for x in losses)))
    train_nll, test_nll = (float(x.mean()) for x in losses)
    return Likelihood(train_nll - test_nll, error, train_nll, test_nll, variances)
