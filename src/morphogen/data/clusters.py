"""Maps without annotation, `auto:K`: K classes of colour and texture at a coarse scale, found by clustering.

A pixel's features are the mean of its surroundings' colour in CIE L*a*b* and how much lightness varies there, under a
Gaussian; k-means (MacQueen, 1967) of scikit-learn finds the centres, which the run keeps, so that any picture can be
given its map. Classes are numbered from dark to bright.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from morphogen.core.condition import MOST_CLASSES, Classes, Clusters
from morphogen.core.errors import InputError, missing_extra
from morphogen.data.decode import Pixels
from morphogen.data.source import ClassMap, Maps

_AUTO = re.compile(r"auto:(\d{1,3})")
_SIGMA = 4.0  # pixels: deviation of the Gaussian
_DRAWN = 400  # pixels of each picture that the centres are found from


def wanted_clusters(maps: str) -> int | None:
    """K of auto:K; None for anything else. Raises InputError for a K that cannot be."""
    found = _AUTO.fullmatch(maps)
    if found is None:
        if maps.startswith("auto"):
            raise InputError(f"--maps {maps}: it should be auto:K, such as auto:4")
        return None
    if not 2 <= int(found[1]) <= MOST_CLASSES:
        raise InputError(f"--maps {maps}: K should be 2 to {MOST_CLASSES}")
    return int(found[1])


class ClusteredMaps(Maps):
    """Maps that follow from the pictures alone. clusters: what was found, once it was."""

    def __init__(self, count: int) -> None:
        self.count, self.clusters = count, None
        self.table: Classes = {str(k): f"class {k + 1}" for k in range(count)}

    clusters: Clusters | None

    def read(self, i: int, size: tuple[int, int] | None = None) -> ClassMap:
        raise TypeError("it follows from the pixels of a crop; see `of`")

    def fingerprint(self) -> str:
        return f"auto:{self.count}"

    def of(self, pixels: Pixels) -> ClassMap:
        """The map of a picture or crop uint8 (H, W, C)."""
        assert self.clusters is not None
        return classes_in(pixels, self.clusters)

    def fit(self, pictures: Sequence[Pixels]) -> None:
        """Find the centres in pictures. Raises InputError without scikit-learn, and where they have fewer colours."""
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            raise missing_extra("metrics", "scikit-learn") from None
        draw, found = np.random.default_rng(0), []
        for pixels in pictures:
            values = _features(pixels).reshape(-1, 4)
            found.append(values[draw.integers(0, len(values), _DRAWN)])
        values = np.concatenate(found)
        mean = values.mean(axis=0)
        scale = np.full(4, values.std(axis=0).max() + 1e-6)  # one for all: L*, a* and b* are comparable as they are
        standard = (values - mean) / scale
        distinct = len(np.unique(standard.round(3), axis=0))
        if distinct < self.count:
            raise InputError(
                f"--maps auto:{self.count}: the images have {distinct} colours and textures; ask for fewer"
            )
        centres = KMeans(self.count, n_init=4, random_state=0).fit(standard).cluster_centers_
        centres = centres[np.argsort(centres[:, 0] * scale[0] + mean[0])]
        self.clusters = Clusters(
            sigma=_SIGMA,
            mean=tuple(round(float(v), 6) for v in mean),
            scale=tuple(round(float(v), 6) for v in scale),
            centres=tuple(tuple(round(float(v), 6) for v in centre) for centre in centres),
        )


def classes_in(pixels: Pixels, clusters: Clusters) -> ClassMap:
    """The map uint8 (H, W) of a picture uint8 (H, W, C): the number of the nearest centre."""
    values = (_features(pixels, clusters.sigma) - np.array(clusters.mean)) / np.array(clusters.scale)
    away = [((values - np.array(centre)) ** 2).sum(axis=2) for centre in clusters.centres]
    found: ClassMap = np.stack(away).argmin(axis=0).astype(np.uint8)
    return found


def _features(pixels: Pixels, sigma: float = _SIGMA) -> NDArray[np.float64]:
    """(H, W, 4): blurred L*, a*, b*, and the deviation of L* around each pixel."""
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2lab

    colours = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    lab = np.asarray(rgb2lab(colours), np.float64)
    blurred = np.stack([gaussian_filter(lab[..., k], sigma, mode="reflect") for k in range(3)], axis=2)
    square = gaussian_filter(lab[..., 0] ** 2, sigma, mode="reflect")
    texture = np.sqrt(np.maximum(square - blurred[..., 0] ** 2, 0))
    return np.concatenate([blurred, texture[..., None]], axis=2)
