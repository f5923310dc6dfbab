"""How diverse an expansion is, and how much of the real training images it covers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from morphogen.core.progress import Progress
from morphogen.data.dataset import ImageDataset
from morphogen.data.expansions import ExpansionQuality
from morphogen.metrics.distances import Features
from morphogen.metrics.feature_network import FeatureNetwork
from morphogen.metrics.features import extract
from morphogen.metrics.image_sets import ImageSet, of_dataset, of_files
from morphogen.metrics.lpips import LPIPS, diversity
from morphogen.metrics.memorization import pixel_features
from morphogen.metrics.prdc import manifold
from morphogen.metrics.weights import find_corruption

_LEAST = 6  # images on each side, of which recall can be told
_PAIRS = 256


def measure_expansion(
    paths: Sequence[Path], train: ImageDataset, network: FeatureNetwork | None, quiet: bool
) -> ExpansionQuality | None:
    """Precision and recall against the real training images in a network's features, or in pixels at 32x32, and LPIPS
    diversity where its file is at hand. None with too few images.
    """
    made, real = of_files("the expansion", paths), of_dataset(train)
    if min(len(made), len(real)) < _LEAST:
        return None
    generated, known = (_features(images, network, quiet) for images in (made, real))
    found = manifold(generated, known)
    lpips = LPIPS() if find_corruption("lpips-vgg") is None else None
    return ExpansionQuality(
        features="pixels" if network is None else network.name,
        precision=found.precision,
        recall=found.recall,
        lpips=None if lpips is None else diversity(lpips, made, _PAIRS).mean,
        lpips_real=None if lpips is None else diversity(lpips, real, _PAIRS).mean,
    )


def _features(images: ImageSet, network: FeatureNetwork | None, quiet: bool) -> Features:
    if network is not None:
        return extract(network, images, quiet=quiet)
    with Progress(f"pixels of {images.what}", len(images), "images", quiet=quiet) as progress:
        return pixel_features(images, progress)
