"""Every figure of one set of generated images against real ones, each beside the same figure of real images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.metrics.distances import Features, frechet_distance, kernel_distance, subset_kernel_distance
from morphogen.metrics.feature_network import FeatureNetwork
from morphogen.metrics.features import extract
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.likelihood import feature_likelihood
from morphogen.metrics.lpips import LPIPS, diversity
from morphogen.metrics.memorization import nearest_training_images
from morphogen.metrics.prdc import manifold
from morphogen.metrics.records import (
    Copies,
    Counts,
    DistanceFigures,
    DiversityFigures,
    FrechetFigure,
    Gap,
    KernelFigure,
    KernelSubsets,
    LPIPSFigures,
    ManifoldFigures,
    Memorisation,
    NetworkFigures,
)

_LEAST_FOR_NEIGHBOURS = 6
_SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Sets:
    """generated: of the model, or of a folder. real: held-out images. train: those trained on, or some of them.
    every_train: all those trained on, which copies are looked for among. Both None if there are none.
    """

    generated: ImageSet
    real: ImageSet
    train: ImageSet | None
    every_train: ImageSet | None


def compute_figures(
    sets: Sets, network: FeatureNetwork, cache: Path | None, batch_size: int, quiet: bool
) -> NetworkFigures:
    """The figures of one network.

    A floor is the same figure with real images in the place of the generated ones: training images if there are
    any, as many as are generated, else one half of the real ones against the other. Raises InputError below two images.
    """
    for images in (sets.generated, sets.real):
        if len(images) < 2:
            raise InputError(f"{images.what} holds {len(images)} images; at least two are needed to measure anything")

    def features(images: ImageSet) -> Features:
        return extract(network, images, cache=cache, batch_size=batch_size, quiet=quiet)

    generated, real = features(sets.generated), features(sets.real)
    train = features(sets.train) if sets.train is not None else None
    found, floor = _compared(generated, real, network), _floor(real, train, len(generated))
    return NetworkFigures(
        network=network.name,
        dimensions=generated.shape[1],
        images=found.images,
        frechet=found.frechet,
        kernel=found.kernel,
        manifold=found.manifold,
        floor=None if floor is None else _compared(*floor, network),
        memorisation=None if train is None else _memorisation(generated, real, train),
    )


def _floor(real: Features, train: Features | None, count: int) -> tuple[Features, Features] | None:
    """Two disjoint sets of real features, of as many images as were generated and as are real where possible."""
    if train is not None and len(train) >= 2:
        rows = [i * len(train) // min(count, len(train)) for i in range(min(count, len(train)))]
        return train[rows], real
    return (real[::2], real[1::2]) if len(real) >= 4 else None


def _compared(generated: Features, real: Features, network: FeatureNetwork) -> DistanceFigures:
    kernel, subsets = kernel_distance(generated, real), subset_kernel_distance(generated, real)
    enough = min(len(generated), len(real)) >= _LEAST_FOR_NEIGHBOURS
    return DistanceFigures(
        images=Counts(generated=len(generated), real=len(real)),
        frechet=FrechetFigure(label=network.frechet_label, value=frechet_distance(generated, real)),
        kernel=KernelFigure(
            label=network.kernel_label,
            value=kernel.value,
            standard_error=_or_none(kernel.standard_error),
            subsets=KernelSubsets(**subsets._asdict()),
        ),
        manifold=ManifoldFigures(**manifold(generated, real)._asdict()) if enough else None,
    )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _memorisation(generated: Features, real: Features, train: Features) -> Memorisation | None:
    """The generalisation gap, and the same with one half of the held-out images for generated ones."""
    if min(len(real), len(train)) < 4:
        return None
    found = feature_likelihood(generated, train, real)
    expected = feature_likelihood(real[::2], train, real[1::2])
    margin = _SURE * math.hypot(found.standard_error, expected.standard_error)
    return Memorisation(
        gap=found.gap,
        standard_error=found.standard_error,
        test_nll=found.test_nll,
        train_nll=found.train_nll,
        floor=Gap(gap=expected.gap, standard_error=expected.standard_error),
        memorises=bool(found.gap < min(expected.gap, 0.0) - margin),
        train_images=len(train),
    )


def compute_diversity(sets: Sets, lpips: LPIPS, pairs: int) -> LPIPSFigures:
    """LPIPS diversity of the generated images beside that of the real ones."""
    made, real = _diversity(lpips, sets.generated, pairs), _diversity(lpips, sets.real, pairs)
    return LPIPSFigures(network=lpips.name, real=real, **made.model_dump())


def _diversity(lpips: LPIPS, images: ImageSet, pairs: int) -> DiversityFigures:
    found = diversity(lpips, images, pairs)
    return DiversityFigures(
        mean=_or_none(found.mean),
        deviation=_or_none(found.deviation),
        standard_error=_or_none(found.standard_error),
        pairs=found.pairs,
    )


def compute_copies(sets: Sets, quiet: bool) -> Copies | None:
    """The nearest training image of every generated one in pixels, over all training images; None without any."""
    if sets.every_train is None or not len(sets.every_train):
        return None
    return nearest_training_images(sets.generated, sets.real, sets.every_train, quiet)
