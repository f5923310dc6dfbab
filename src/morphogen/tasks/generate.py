"""New images from seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model


def generate(
    model: Model,
    seeds: Sequence[int],
    size: tuple[int, int] | None = None,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    callback: Callback | None = None,
) -> Iterator[Tensor]:
    """Batches of images float (B, C, height, width), about [-1, 1], one image a seed, in the order of the seeds.

    size: height and width in pixels; the model's own by default. batch_size: images computed at once, all by default;
    it does not change the images. callback: told after every sampling step of every batch.
    Raises InputError for a seed, sampler, number of steps or size that cannot be.
    """
    Key.of(seeds)  # a bad seed is named before the first batch is computed, not after
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it should be at least 1")
    height, width = size or (model.image.height, model.image.width)
    if min(height, width) < model.minimum_size:
        raise InputError(
            f"the size {height}x{width} is too small: {model.family} needs at least {model.minimum_size} on each side"
        )
    for start in range(0, len(seeds), batch_size or max(len(seeds), 1)):
        key = Key.of(seeds[start : start + (batch_size or len(seeds))])
        yield model.generate(key, (height, width), sampler=sampler, steps=steps, callback=callback)
