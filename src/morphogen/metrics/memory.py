"""Copies: the nearest training image of each generated one, in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional as F

from morphogen.core.progress import Progress
from morphogen.metrics.distances import Features
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.neighbours import nearest

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


def nearest_training_images(
    generated: ImageSet, real: ImageSet, train: ImageSet, quiet: bool = False
) -> dict[str, Any]:
    """Which training image is nearest to each generated one, and how many are copies, as JSON types.

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
    return {
        "training_images": len(train),
        "copies": int(copied.sum()),
        "held_out_copies": int((held_out <= limit).sum()),
        "held_out_images": len(held_out),
        "copy_limit": limit,
        "distance_quantiles": {str(q): float(np.quantile(made, q)) for q in quantiles},
        "held_out_quantiles": {str(q): float(np.quantile(held_out, q)) for q in quantiles},
        "nearest": [
            {
                "image": generated.names[i],
                "number": i,
                "training_image": train.names[int(rows[i])],
                "training_number": int(rows[i]),
                "distance": float(made[i]),
                "copy": bool(copied[i]),
            }
            for i in range(len(generated))
        ],
    }
