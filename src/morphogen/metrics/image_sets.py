"""Sets of images to measure: of a folder or zip, of a part of a data set, or as they are generated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset


class ImageSet(Sequence[Tensor]):
    """RGB images uint8 (3, H, W), of any sizes, read when asked for. names: one an image. what: for messages.

    Read may be gray images too, and RGBA ones whose colours are multiplied by alpha, which are put on white.
    """

    def __init__(self, what: str, names: Sequence[str], read: Callable[[int], Tensor]) -> None:
        self.what, self.names, self._read = what, list(names), read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} is outside 0..{len(self) - 1}")
        return in_colour(self._read(i))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def first(self, count: int) -> ImageSet:
        """The first images."""
        return ImageSet(self.what, self.names[:count], self._read)

    def spread(self, count: int) -> ImageSet:
        """`count` images at even distances, or all if there are fewer."""
        if count >= len(self):
            return self
        rows = [i * len(self) // count for i in range(count)]
        return ImageSet(self.what, [self.names[i] for i in rows], lambda k: self._read(rows[k]))


def in_colour(image: Tensor) -> Tensor:
    """An image uint8 (1, 3 or 4, H, W) as RGB (3, H, W): gray three times; colours multiplied by alpha, on white."""
    if image.shape[0] == 4:
        return image[:3] + (255 - image[3:])  # no colour is above alpha, so the sum is at most 255
    return image.expand(3, -1, -1).contiguous() if image.shape[0] == 1 else image


def of_files(what: str, paths: Sequence[Path]) -> ImageSet:
    """Images that Morphogen itself wrote as PNGs."""

    def read(i: int) -> Tensor:
        with Image.open(paths[i]) as image:
            pixels = np.array(image.convert("RGBa") if image.mode == "RGBA" else image)
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())

    return ImageSet(what, [path.name for path in paths], read)


def content_hash(image: Tensor) -> str:
    """A hash of an image's shape and pixels."""
    shape = "x".join(map(str, image.shape))
    return hashlib.sha256(shape.encode() + image.contiguous().numpy().tobytes()).hexdigest()


def of_dataset(data: ImageDataset, count: int | None = None) -> ImageSet:
    """A part of a data set without augmentation. count: the largest number; of slides and single images, exactly."""
    endless = data.fitting.fit == "random"
    total = count if endless and count is not None else len(data)
    names = [data.source.records[data.indices[i % len(data)]].name for i in range(total)]
    images = ImageSet(f"{data.config.source} ({data.part})", names, lambda i: data.fixed(i)[0])
    return images if count is None or endless else images.spread(count)


def of_folder(path: Path) -> ImageSet:
    """Every image of a folder or zip at its own size, in the order of names. Raises InputError."""
    from morphogen.data.formats import BadImage
    from morphogen.data.sources import open_source

    if not path.exists():
        raise InputError(f"--images {path} does not exist; name a folder of images or a zip")
    source = open_source(DataConfig(source=str(path), split="none", colour="rgb"))
    if source.sampled:
        raise InputError(f"--images {path} holds slides; name a folder of images or a zip")

    def read(i: int) -> Tensor:
        try:
            pixels = source.read(i)
        except BadImage as error:
            raise InputError(f"{path}: {error}") from None
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    return ImageSet(str(path), [record.name for record in source.records], read)
