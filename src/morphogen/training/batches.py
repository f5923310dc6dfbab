"""The endless stream of training images: which ones a step takes is a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from morphogen.data.dataset import ImageDataset


def batches(data: ImageDataset, first: int, share: int, stride: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches uint8 (share, C, H, W) and the rows of their labels, float (share, K): images first, …, first + share - 1
    of the run, then those `stride` further on.

    workers: processes that load them; 0 loads in this one.
    """

    def numbers() -> Iterator[list[int]]:
        start = first
        while True:
            yield list(range(start, start + share))
            start += stride

    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=numbers(),
        num_workers=workers,
        collate_fn=_stack,
    )
    yield from loader


def _stack(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in samples]), torch.stack([row for _, row in samples])
