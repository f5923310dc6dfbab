"""Copies: the nearest training image of each generated one, in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.core.progress import Progress
from morphogen.data.fitting import Fitting
from morphogen.metrics.distances import Features
from morphogen.metrics.feature_network import FeatureNetwork
from morphogen.metrics.features import extract
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.prdc import nearest, squared_distances
from morphogen.metrics.records import Copies, NearestImage

_PORTION = 4096  # training images held at once
_SIDE = 32  # images are compared at this size
_COPY_SHARE, _USUAL = 0.5, 0.1


def pixel_features(images: ImageSet, progress: Progress, start: int = 0, end: int | None = None) -> Features:
    """Images start to end - 1, each shrunk to 32x32, as a row of float64 (N, 3072), scaled so that a distance is a root
    mean square difference in 0..255.
    """
    end = len(images) if end is None else end
    rows = np.empty((end - start, 3 * _SIDE * _SIDE), np.float64)
    for i in range(start, end):
        small = images[i][None].float()
        if small.shape[-2:] != (_SIDE, _SIDE):
            small = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
        rows[i - start] = small.flatten().numpy()
        progress.advance()
    return np.asarray(rows / np.sqrt(rows.shape[1]))


def copies_among(
    distances: NDArray[np.float64], held_out: NDArray[np.float64], smallest: float = 1e-3
) -> tuple[float, NDArray[np.bool_]]:
    """How near counts as a copy, and which distances do: half as far as nine in ten held-out images are.

    distances, held_out: of generated and of held-out images to their nearest training image. smallest: what rounding
    makes of equal images. Doubles in the data make held-out images copies too, so those are to be counted as well.
    """
    limit = max(_COPY_SHARE * float(np.quantile(held_out, _USUAL)), smallest)
    return limit, distances <= limit


def nearest_training_images(generated: ImageSet, real: ImageSet, train: ImageSet, quiet: bool = False) -> Copies:
    """Which training image is nearest to each generated one, and how many are copies.

    Training images are read in portions, so that there may be any number of them.
    """
    total = len(generated) + len(real) + len(train)
    with Progress("looking for copies", total, "images", quiet=quiet) as progress:
        queries = np.concatenate([pixel_features(generated, progress), pixel_features(real, progress)])
        rows, distances = np.zeros(len(queries), np.int64), np.full(len(queries), np.inf)
        for start in range(0, len(train), _PORTION):
            known = pixel_features(train, progress, start, min(start + _PORTION, len(train)))
            best, apart = nearest(queries, known)
            nearer = apart < distances
            rows[nearer], distances[nearer] = best[nearer] + start, apart[nearer]
    made, held_out = distances[: len(generated)], distances[len(generated) :]
    limit, copied = copies_among(made, held_out)
    quantiles = (0.0, 0.01, 0.1, 0.5)
    return Copies(
        training_images=len(train),
        copies=int(copied.sum()),
        held_out_copies=int((held_out <= limit).sum()),
        held_out_images=len(held_out),
        copy_limit=limit,
        distance_quantiles={str(q): float(np.quantile(made, q)) for q in quantiles},
        held_out_quantiles={str(q): float(np.quantile(held_out, q)) for q in quantiles},
        nearest=tuple(
            NearestImage(
                image=generated.names[i],
                number=i,
                training_image=train.names[int(rows[i])],
                training_number=int(rows[i]),
                distance=float(made[i]),
                is_copy=bool(copied[i]),
            )
            for i in range(len(generated))
        ),
    )


class CopyFinder:
    """Tells near-copies of training images, also mirrored or turned ones where training mirrored or turned.

    A generated image is a copy where it is at most half as far from its nearest training image as nine in ten training
    images are from the nearest other one: the rule of `copies_among`, with no need of held-out images.
    network: in whose features distances are taken; None for pixels at 32x32, in 0..255. limit: the distance.
    Raises InputError with fewer than two training images.
    """

    def __init__(self, train: ImageSet, fitting: Fitting, network: FeatureNetwork | None = None, quiet: bool = False):
        if len(train) < 2:
            raise InputError("copies can only be found with at least two training images")
        self._network, self._names, self._quiet = network, train.names, quiet
        self._known = [self._features(_seen(train, *orientation)) for orientation in fitting.orientations()]
        apart = np.full(len(train), np.inf)
        for known in self._known:
            for start in range(0, len(train), _PORTION):
                rows = squared_distances(self._known[0][start : start + _PORTION], known)
                np.put_along_axis(rows, np.arange(start, start + len(rows))[:, None], np.inf, axis=1)
                apart[start : start + len(rows)] = np.minimum(apart[start : start + len(rows)], rows.min(axis=1))
        self.limit, _ = copies_among(np.empty(0), np.sqrt(apart))

    def __call__(self, images: Tensor) -> list[tuple[float, str]]:
        """How far each image uint8 (B, 3, H, W) is from its nearest training image, and that one's name."""
        queries = self._features(ImageSet("generated images", [""] * len(images), lambda i: images[i]), quiet=True)
        found = [nearest(queries, known) for known in self._known]
        best = np.argmin([distances for _, distances in found], axis=0)
        return [(float(found[k][1][i]), self._names[int(found[k][0][i])]) for i, k in enumerate(best)]

    def _features(self, images: ImageSet, quiet: bool | None = None) -> Features:
        quiet = self._quiet if quiet is None else quiet
        if self._network is not None:
            return extract(self._network, images, quiet=quiet)
        with Progress(f"pixels of {images.what}", len(images), "images", quiet=quiet) as progress:
            return pixel_features(images, progress)


def _seen(images: ImageSet, mirrored: bool, turns: int) -> ImageSet:
    if not mirrored and not turns:
        return images
    flipped = (2,) if mirrored else ()
    return ImageSet(f"{images.what}, mirrored", images.names, lambda i: images[i].flip(flipped).rot90(turns, (1, 2)))
