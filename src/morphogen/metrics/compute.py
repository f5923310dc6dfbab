"""Every figure of one set of generated images against real ones, each beside the same figure of real images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.metrics.distances import Features, frechet_distance, kernel_distance, subset_kernel_distance
from morphogen.metrics.feature_network import FeatureNetwork
from morphogen.metrics.features import extract
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.likelihood import feature_likelihood
from morphogen.metrics.lpips import LPIPS, diversity
from morphogen.metrics.memorization import nearest_training_images
from morphogen.metrics.prdc import manifold

_LEAST_FOR_NEIGHBOURS = 6
_SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Sets:
    """generated: of the model, or of a folder. real: held-out images. train: those trained on, or some of them.
    every_train: all those trained on, which copies are looked for among. Both None where there are none.
    """

    generated: ImageSet
    real: ImageSet
    train: ImageSet | None
    every_train: ImageSet | None


def measure(sets: Sets, network: FeatureNetwork, cache: Path | None, batch_size: int, quiet: bool) -> dict[str, Any]:
    """The figures of one network, as JSON types.

    A floor is the same figure with real images in the place of the generated ones: training images where there are
    any, as many as are generated, else one half of the real ones against the other. Raises InputError below two images.
    """
    for images in (sets.generated, sets.real):
        if len(images) < 2:
            raise InputError(f"{images.what} holds {len(images)} images; at least two are needed to measure anything")
    options: dict[str, Any] = {"cache": cache, "batch_size": batch_size, "quiet": quiet}
    generated = extract(network, sets.generated, **options)
    real = extract(network, sets.real, **options)
    train = extract(network, sets.train, **options) if sets.train is not None else None
    found = _compared(generated, real, network)
    floor = _floor(real, train, len(generated))
    if floor is not None:
        found["floor"] = _compared(*floor, network)
    if train is not None:
        found["memorisation"] = _memorisation(generated, real, train)
    return {"network": network.name, "dimensions": generated.shape[1], **found}


def _floor(real: Features, train: Features | None, count: int) -> tuple[Features, Features] | None:
    """Two disjoint sets of real features, of as many images as were generated and as are real where possible."""
    if train is not None and len(train) >= 2:
        rows = [i * len(train) // min(count, len(train)) for i in range(min(count, len(train)))]
        return train[rows], real
    return (real[::2], real[1::2]) if len(real) >= 4 else None


def _compared(generated: Features, real: Features, network: FeatureNetwork) -> dict[str, Any]:
    kernel, subsets = kernel_distance(generated, real), subset_kernel_distance(generated, real)
    figures: dict[str, Any] = {
        "images": {"generated": len(generated), "real": len(real)},
        "frechet": {"label": network.frechet_label, "value": frechet_distance(generated, real)},
        "kernel": {
            "label": network.kernel_label,
            "value": kernel.value,
            "standard_error": _or_none(kernel.standard_error),
            "subsets": subsets._asdict(),
        },
    }
    if min(len(generated), len(real)) >= _LEAST_FOR_NEIGHBOURS:
        figures["manifold"] = manifold(generated, real)._asdict()
    return figures


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _memorisation(generated: Features, real: Features, train: Features) -> dict[str, Any] | None:
    """The generalisation gap, and the same with one half of the held-out images for generated ones."""
    if min(len(real), len(train)) < 4:
        return None
    found = feature_likelihood(generated, train, real)
    expected = feature_likelihood(real[::2], train, real[1::2])
    margin = _SURE * math.hypot(found.standard_error, expected.standard_error)
    return {
        "gap": found.gap,
        "standard_error": found.standard_error,
        "test_nll": found.test_nll,
        "train_nll": found.train_nll,
        "floor": {"gap": expected.gap, "standard_error": expected.standard_error},
        "memorises": bool(found.gap < min(expected.gap, 0.0) - margin),
        "train_images": len(train),
    }


def measure_diversity(sets: Sets, lpips: LPIPS, pairs: int) -> dict[str, Any]:
    """LPIPS diversity of the generated images beside that of the real ones."""
    found = diversity(lpips, sets.generated, pairs)
    return {
        "network": lpips.name,
        **{k: _or_none(v) for k, v in found._asdict().items()},
        "real": {k: _or_none(v) for k, v in diversity(lpips, sets.real, pairs)._asdict().items()},
    }


def measure_copies(sets: Sets, quiet: bool) -> dict[str, Any] | None:
    """The nearest training image of every generated one in pixels, over all training images; None without any."""
    if sets.every_train is None or not len(sets.every_train):
        return None
    return nearest_training_images(sets.generated, sets.real, sets.every_train, quiet)


def suspects(copies: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The `count` generated images that are nearest to a training image."""
    order = np.argsort([image["distance"] for image in copies["nearest"]], kind="stable")
    return [copies["nearest"][i] for i in order[:count]]
