"""The endless stream of training images: which ones a step takes is a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from morphogen.data.dataset import ImageDataset


class Sample(NamedTuple):
    """Images uint8 (B, C, H, W), the rows of their labels, float (B, K), and their maps uint8 (B, H, W) or None; or one
    image of them.
    """

    images: Tensor
    labels: Tensor
    maps: Tensor | None

    def on(self, device: torch.device) -> Sample:
        """The same on a device."""
        return Sample(*(None if x is None else x.to(device, non_blocking=True) for x in self))  # type: ignore[arg-type]


class _Samples(Dataset[Sample]):
    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __getitem__(self, n: int) -> Sample:
        return Sample(*self.data[n], self.data.map(n) if self.data.has_maps else None)


def batches(data: ImageDataset, first: int, share: int, stride: int, workers: int) -> Iterator[Sample]:
    """Batches of `share` samples: images first, …, first + share - 1 of the run, then those `stride` further on.

    workers: processes that load them; 0 loads in this one.
    """

    def numbers() -> Iterator[list[int]]:
        start = first
        while True:
            yield list(range(start, start + share))
            start += stride

    loader: DataLoader[Sample] = DataLoader(
        _Samples(data), batch_sampler=numbers(), num_workers=workers, collate_fn=_stack
    )
    yield from loader


def _stack(samples: list[Sample]) -> Sample:
    images, labels, maps = zip(*samples, strict=True)
    return Sample(torch.stack(images), torch.stack(labels), None if maps[0] is None else torch.stack(maps))
