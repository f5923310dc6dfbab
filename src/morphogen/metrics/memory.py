"""Copies: the nearest training image of each generated one, in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from morphogen.core.progress import Progress
from morphogen.metrics.distances import Features
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.neighbours import nearest

_SIDE = 32  # images are compared at this size
_COPY_SHARE = 0.5


def pixel_features(images: ImageSet, quiet: bool) -> Features:
    """Every image shrunk to 32x32 as one row of float64 (N, 3072), scaled so that a distance is a root mean square
    difference in 0..255.
    """
    rows = np.empty((len(images), 3 * _SIDE * _SIDE), np.float64)
    with Progress(f"pixels of {images.what}", len(images), "images", quiet=quiet) as progress:
        for i, image in enumerate(images):
            small = image[None].float()
            if small.shape[-2:] != (_SIDE, _SIDE):
                small = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
            rows[i] = small.to(torch.float64).flatten().numpy()
            progress.advance()
    return np.asarray(rows / np.sqrt(rows.shape[1]))


def copies_among(
    distances: NDArray[np.float64], held_out: NDArray[np.float64], smallest: float = 1e-3
) -> tuple[float, NDArray[np.bool_]]:
    """How near counts as a copy, and which distances do: half as far as any held-out image from the training images.

    distances, held_out: of generated and of held-out images to their nearest training image. smallest: what rounding
    makes of equal images.
    """
    limit = max(_COPY_SHARE * float(held_out.min()), smallest)
    return limit, distances <= limit


def nearest_training_images(
    generated: Features, real: Features, train: Features, generated_set: ImageSet, train_set: ImageSet
) -> dict[str, Any]:
    """Which training image is nearest to each generated one, and how many are copies, as JSON types."""
    rows, distances = nearest(generated, train)
    _, held_out = nearest(real, train)
    limit, copied = copies_among(distances, held_out)
    quantiles = (0.0, 0.01, 0.1, 0.5)
    return {
        "training_images": len(train),
        "copies": int(copied.sum()),
        "copy_limit": limit,
        "distance_quantiles": {str(q): float(np.quantile(distances, q)) for q in quantiles},
        "held_out_quantiles": {str(q): float(np.quantile(held_out, q)) for q in quantiles},
        "nearest": [
            {
                "image": generated_set.names[i],
                "number": i,
                "training_image": train_set.names[int(row)],
                "training_number": int(row),
                "distance": float(distance),
                "copy": bool(copied[i]),
            }
            for i, (row, distance) in enumerate(zip(rows, distances, strict=True))
        ],
    }
