"""Features of a set of images, kept on disk under what they are made of: pixels, preprocessing and network."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphogen.core import cache
from morphogen.core.errors import InputError
from morphogen.core.files import replace_file
from morphogen.core.progress import Progress
from morphogen.metrics.distances import Features, as_features
from morphogen.metrics.feature_network import FeatureNetwork, identify
from morphogen.metrics.image_sets import ImageSet, content_hash

_CHUNK = 64  # images whose features make a file; what an interruption loses at most


def cache_folder() -> Path:
    """Where features are kept."""
    return cache.cache_folder("features")


def extract(
    network: FeatureNetwork,
    images: ImageSet,
    *,
    cache: Path | None = None,
    batch_size: int = 32,
    quiet: bool = False,
) -> Features:
    """Features float64 (N, D) of a set, in its order.

    cache: the folder that keeps them; None keeps nothing, and so does a network without an identity.
    Raises InputError where a feature is not finite.
    """
    if not len(images):
        raise InputError(f"{images.what} holds no images")
    cache = cache if network.identity is not None else None
    found: list[np.ndarray] = []
    with Progress(f"features of {images.what}", len(images), "images", quiet=quiet) as progress:
        for start in range(0, len(images), _CHUNK):
            chunk = [images[i] for i in range(start, min(start + _CHUNK, len(images)))]
            key = identify(network.identity or "", *map(content_hash, chunk))
            features = _load(cache, key, len(chunk))
            if features is None:
                features = _run(network, chunk, batch_size)
                as_features(features, f"{images.what}, images {start} to {start + len(chunk) - 1}")
                _keep(cache, key, features)
            found.append(features)
            progress.advance(len(chunk))
    return as_features(np.concatenate(found), images.what)


def _run(network: FeatureNetwork, images: Sequence[Tensor], batch_size: int) -> np.ndarray:
    """Features float32 (N, D); images of one size go through the network together."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault(tuple(image.shape), []).append(i)
    found: dict[int, np.ndarray] = {}
    for rows in by_size.values():
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            found.update(zip(part, network(torch.stack([images[i] for i in part])), strict=True))
    return np.stack([found[i] for i in range(len(images))])


def _load(cache: Path | None, key: str, count: int) -> np.ndarray | None:
    """The features kept under a key, or None if there are none, or they are damaged."""
    if cache is None:
        return None
    try:
        features = np.load(io.BytesIO((cache / f"{key}.npy").read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = features.ndim == 2 and len(features) == count and features.dtype == np.float32
    return features if whole and np.isfinite(features).all() else None


def _keep(cache: Path | None, key: str, features: np.ndarray) -> None:
    """Keep features; a cache that cannot be written costs time, not the result."""
    if cache is None:
        return
    buffer = io.BytesIO()
    np.save(buffer, features.astype(np.float32), allow_pickle=False)
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        replace_file(cache / f"{key}.npy", buffer.getvalue())
