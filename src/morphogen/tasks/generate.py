"""New images from seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Callback, Model
from morphogen.core.request import SamplingRequest
from morphogen.tasks.checks import check_size


def generate(
    model: Model,
    seeds: Sequence[int],
    size: tuple[int, int] | None = None,
    request: SamplingRequest = SamplingRequest(),
    *,
    batch_size: int | None = None,
    labels: Tensor | None = None,
    callback: Callback | None = None,
    maps: Tensor | None = None,
) -> Iterator[Tensor]:
    """Batches of images float (B, C, height, width), about [-1, 1], one image a seed, in the order of the seeds.

    size: height and width in pixels; the model's own by default. batch_size: images computed at once, all by default;
    it does not change the images. labels: float (images, K), a row a seed. callback: told after every sampling step of
    every batch. maps: uint8 (height, width), one for all, or (images, height, width), of a model that paints from
    maps; it has their size. Raises InputError for a seed, request, size or labels that cannot be.
    """
    if labels is not None and len(labels) != len(seeds):
        raise InputError(f"there are labels for {len(labels)} images and {len(seeds)} seeds")
    Key.of(seeds)  # a bad seed is named before the first batch is computed, not after
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it should be at least 1")
    if maps is not None:
        maps = maps.expand(len(seeds), -1, -1)
        size = (maps.shape[1], maps.shape[2])
    size = size or (model.picture.height, model.picture.width)
    check_size(model, size)
    for start in range(0, len(seeds), batch_size or max(len(seeds), 1)):
        key = Key.of(seeds[start : start + (batch_size or len(seeds))])
        yield model.generate(
            key,
            size,
            request,
            labels=None if labels is None else labels[start : start + len(key)].to(model.device),
            callback=callback,
            maps=None if maps is None else maps[start : start + len(key)].to(model.device),
        )


def label_rows(model: Model, labels: str | Sequence[str | Sequence[str]] | Tensor | None, count: int) -> Tensor | None:
    """Rows float (count, K) of a model's labels, or None for none.

    labels: a name for all images; for each image a name or several; or the rows themselves.
    Raises InputError for a model without labels, an unknown label, and if there are not as many as images.
    """
    if labels is None:
        return None
    if not model.labels.names:
        raise InputError(f"this {model.family} was trained without labels; leave labels out")
    if isinstance(labels, Tensor):
        return labels
    try:
        named = [labels] * count if isinstance(labels, str) else list(labels)
        each = [[names] if isinstance(names, str) else list(names) for names in named]
    except TypeError:
        raise InputError(f"labels is {labels!r}; it should be a name, or for each image a name or several") from None
    if len(each) != count:
        raise InputError(f"there are labels for {len(each)} images, but {count} seeds")
    return torch.stack([model.labels.row(names) for names in each])
