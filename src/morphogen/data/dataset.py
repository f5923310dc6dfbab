"""The dataset: which image, crop and flip training sees n-th, as a pure function of (seed, n)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from morphogen.core.condition import Classes, Clusters, class_names
from morphogen.core.errors import InputError
from morphogen.core.random import MAX_SEED, Purpose, mix
from morphogen.data.clusters import ClusteredMaps
from morphogen.data.config import DataConfig
from morphogen.data.decode import Pixels
from morphogen.data.fitting import Fitting
from morphogen.data.labels import labels_of
from morphogen.data.prepared import UNREADABLE, PreparedImages
from morphogen.data.source import PARTS, Part, PatchSource, Record, Source, fingerprint
from morphogen.data.sources import open_source
from morphogen.data.splits import Assignment, SplitFile, assign_parts, split_of
from morphogen.data.unlabelled import check_contents

if TYPE_CHECKING:
    from torch import Tensor


class EmptyPartError(InputError):
    """A part of a data set that should be read holds no images."""


_CLUSTERED = 200  # images that the classes of `auto:K` are found in, about
_ORDER, _AUGMENT, _FIXED, _UNLABELLED = (
    0xDA7A01,
    0xDA7A02,
    0xDA7A03,
    0xDA7A04,
)  # keep these draws apart from others for the same purpose


@dataclass(frozen=True)
class Selection:
    """Which images of a source are used, and what looking at them found.

    parts: the part of every image. indices: the usable images of `part`, by their number in the source. bad, digests,
    scales: see `ImageDataset` and `Scan`.
    """

    part: Part
    seed: int
    parts: Assignment
    indices: list[int]
    bad: list[tuple[str, str]]
    digests: dict[str, str]
    scales: list[tuple[float, float] | None]


class ImageDataset:
    """The usable images of one part of a source, as training sees them.

    `dataset[n]` is a pure function of (seed, n) for any n >= 0: in every epoch of len(dataset) consecutive n each
    image comes once, in an order and with a crop, flip and turn of its own; where more images have no labels than have,
    labelled and unlabelled ones come in turn, each kind in epochs of its own. Usable from any number of threads and
    workers. bad: (name, reason) of the images that were skipped. labels: those of all parts, in the order of the rows.
    groups: what the split keeps together, where that is known. digests: sha256 of every image's content by name.
    counts: source images of each part, before bad ones are skipped. labelled: the numbers of those that are not
    unlabelled. fingerprint: sha256 over all names and contents.
    """

    def __init__(self, selection: Selection, images: PreparedImages) -> None:
        """See `build_dataset`, which finds both."""
        self.selection, self.images = selection, images
        self.config, self.source = images.config, images.source
        self.fitting = images.fitting
        self.part, self.seed = selection.part, selection.seed
        self.parts, self.split, self.groups = selection.parts
        self.indices, self.bad, self.digests = selection.indices, selection.bad, selection.digests
        self.counts: dict[Part, int] = {p: self.parts.count(p) for p in PARTS}
        self.fingerprint = fingerprint(self.digests)
        self.labels = labels_of(self.source)
        places = range(len(self.indices))
        self.labelled = [i for i in places if not self.record(i).unlabelled]
        self.unlabelled = [i for i in places if self.record(i).unlabelled]
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def index(self, n: int) -> int:
        """Which image, 0..len-1, training sees n-th."""
        if n < 0:
            raise IndexError(f"image number {n} is negative")
        if len(self.unlabelled) <= len(self.labelled) or not self.labelled:
            return self._shuffled(n, len(self), _ORDER)
        chosen, purpose = ((self.labelled, _ORDER), (self.unlabelled, _UNLABELLED))[n % 2]
        return chosen[self._shuffled(n // 2, len(chosen), purpose)]

    def _shuffled(self, n: int, count: int, purpose: int) -> int:
        """The n-th of numbers below `count` that come once an epoch."""
        epoch, place = divmod(n, count)
        order = self._orders.get((purpose, epoch))
        if order is None:
            order = permutation(mix(self.seed, Purpose.SAMPLE, purpose, epoch), count)
            self._orders = dict([*list(self._orders.items())[-3:], ((purpose, epoch), order)])
        return int(order[place])

    def name(self, n: int) -> str:
        """The name of the source image that training sees n-th."""
        return self.source.records[self.indices[self.index(n)]].name

    def record(self, i: int) -> Record:
        """The record of image i."""
        return self.source.records[self.indices[i]]

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """The n-th training image: uint8 (C, H, W), and its label row, float (K,), NaN where unknown. Any n >= 0."""
        i = self.indices[self.index(n)]
        pixels = self._pixels(i, mix(mix(self.seed, Purpose.SAMPLE, _AUGMENT, n), 0))
        return self._tensor(self.fitting.augmented(pixels, self._augmentation(n))), self._row(i)

    def _augmentation(self, n: int) -> int:
        """The key of how the n-th image is flipped, turned and stained."""
        return mix(mix(self.seed, Purpose.SAMPLE, _AUGMENT, n), 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The first epoch; without this a plain loop over the dataset would never end."""
        return (self[n] for n in range(len(self)))

    def fixed(self, i: int) -> tuple[Tensor, Tensor]:
        """Image i without augmentation, uint8 (C, H, W), and the row of its labels; the same for every seed.

        With random crops, image i < len is cropped at its centre, and i may be any number: i, i + len, i + 2 len are
        crops of one image. Of a single image, and of slides, every crop is at a keyed place. Otherwise IndexError.
        """
        turn, place = divmod(i, len(self))
        if i < 0 or (turn and self.fitting.fit != "random"):
            raise IndexError(f"image {i} is outside 0..{len(self) - 1}")
        source_index = self.indices[place]
        return self._tensor(self._pixels(source_index, self._fixed_key(i, turn))), self._row(source_index)

    @property
    def has_maps(self) -> bool:
        """Whether every image has a map."""
        return self.source.maps is not None

    @property
    def clusters(self) -> Clusters | None:
        """What tells the classes of maps apart that follow from the images alone; None for other maps."""
        return self.source.maps.clusters if isinstance(self.source.maps, ClusteredMaps) else None

    @property
    def classes(self) -> Classes:
        """What the pixels of the maps mean; empty without maps."""
        return {} if self.source.maps is None else dict(self.source.maps.table)

    def map(self, n: int) -> Tensor:
        """The map of the n-th training image, uint8 (H, W): cropped, flipped and turned as it. Any n >= 0."""
        found = self._map(self.indices[self.index(n)], mix(mix(self.seed, Purpose.SAMPLE, _AUGMENT, n), 0))
        return self._map_tensor(self.fitting.oriented(found, self._augmentation(n)))

    def fixed_map(self, i: int) -> Tensor:
        """The map of image i as `fixed` has it, uint8 (H, W)."""
        turn, place = divmod(i, len(self))
        return self._map_tensor(self._map(self.indices[place], self._fixed_key(i, turn)))

    def _map(self, i: int, key: int | None) -> Pixels:
        if isinstance(self.source.maps, ClusteredMaps):
            return self.source.maps.of(self._pixels(i, key))
        if isinstance(self.source, PatchSource):
            return self.source.patch_map(i, cast(int, key))
        found = self.images.read_map(i)
        return self.fitting.crop(found, key) if self.fitting.fit == "random" else found

    @staticmethod
    def _map_tensor(found: Pixels) -> Tensor:
        import torch

        return torch.from_numpy(found.copy())

    def _fixed_key(self, i: int, turn: int) -> int | None:
        """The place of a random crop of image i; None for its centre."""
        central = turn == 0 and len(self) > 1 and not self.source.sampled
        return None if central else mix(Purpose.SAMPLE, _FIXED, i)

    def _pixels(self, i: int, key: int | None) -> Pixels:
        """Source image i at the final size; a random crop by the key, or the centre without one."""
        if isinstance(self.source, PatchSource):
            return self.source.patch(i, cast(int, key))
        pixels = self.images.read(i)
        return self.fitting.crop(pixels, key) if self.fitting.fit == "random" else pixels

    def _row(self, i: int) -> Tensor:
        record = self.source.records[i]
        row = self.labels.row(record.labels if len(self.labels) else ())
        return row.fill_(float("nan")) if record.unlabelled else row

    def label_counts(self) -> dict[str, int]:
        """How many images of this part have each label."""
        return {name: sum(name in self.record(i).labels for i in range(len(self))) for name in self.labels.names}

    def spread_labels(self, count: int) -> Tensor:
        """The rows float (count, K) of the labels of `count` images at even distances, in the order of labels."""
        import torch

        order = sorted(self.labelled, key=lambda i: self.record(i).labels)
        return torch.stack([self._row(self.indices[order[k * len(order) // count]]) for k in range(count)])

    def check_classes_filled(self) -> None:
        """Raise InputError, naming it, for a label that no image of this part has."""
        empty = [name for name, count in self.label_counts().items() if not count]
        if empty:
            raise InputError(
                f"no image of the {self.part} part of {self.config.source} (split {self.split!r}) has the label "
                f"'{empty[0]}'; give more images, another split, or a table without it"
            )

    @staticmethod
    def _tensor(pixels: Pixels) -> Tensor:
        import torch

        # A copy, always: the caller may write to it without touching the cache.
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def other(self, part: Part) -> ImageDataset:
        """The images of another part of the same source, without reading this one's again."""
        return _select(self.config, self.source, part, self.seed, progress=False, known=self.digests)

    def of_fold(self, fold: int | None) -> ImageDataset:
        """The images of the same part with another fold of the split file, without reading all of them again."""
        config = self.config.model_copy(update={"fold": fold})
        return _select(config, self.source, self.part, self.seed, progress=False, known=self.digests)

    @property
    def mpp(self) -> float | None:
        """Micrometres that a pixel covers: as asked for, or where all slides say the same; else None."""
        if self.config.mpp is not None:
            return self.config.mpp
        said = self.selection.scales
        sides = [side for scale in said if scale is not None for side in scale]
        if not sides or None in said or max(sides) > 1.02 * min(sides):
            return None
        return round(float(np.mean(sides)) * self.config.downscale, 6)

    def split_file(self) -> SplitFile:
        """The content of a split file that gives every image the part that it has here, and says what it holds."""
        digests = {name: digest for name, digest in self.digests.items() if digest != UNREADABLE}
        split = split_of(self.source, self.parts, self.groups)
        return {**split, "fingerprint": self.fingerprint, "digests": digests}

    def identity(self) -> str:
        """A hash of the images, of the part that each has, of which are used, and of labels that no folder gives."""
        parts = [f"{record.name}\0{part}" for record, part in zip(self.source.records, self.parts, strict=True)]
        used = sorted(self.source.records[i].name for i in self.indices)
        rows = [] if self.config.labels == "auto" else ["", *self.labels.names, *map(_labelled, self.source.records)]
        maps = [] if self.source.maps is None else ["maps", self.source.maps.fingerprint()]
        lines = "\n".join([self.fingerprint, *sorted(parts), "", *used, *rows, *maps])
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def summary(self) -> dict[str, object]:
        """The model card's facts about the data; plain JSON values."""
        return {
            "source": self.config.source,
            "part": self.part,
            "images": len(self),
            **({"unlabelled_images": len(self.unlabelled)} if self.unlabelled else {}),
            "bad": len(self.bad),
            "split": self.split,
            "fold": self.config.fold,
            "parts": dict(self.counts),
            "size": list(self.config.size),
            **({} if self.mpp is None else {"mpp": self.mpp}),
            "channels": self.config.channels,
            "domain": self.fitting.domain,
            "fit": self.fitting.fit,
            "labels": self.label_counts(),
            **({"classes": class_names(self.classes)} if self.has_maps else {}),
            "fingerprint": self.fingerprint,
        }


def _labelled(record: Record) -> str:
    return "\0".join([record.name, *record.labels, *(["", ""] if record.unlabelled else [])])


def permutation(key: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1: the order of a keyed hash (SplitMix64) of the numbers."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.argsort(z, kind="stable")


def _select(
    config: DataConfig, source: Source, part: Part, seed: int, progress: bool, known: dict[str, str] | None = None
) -> ImageDataset:
    """Look at the images of one part of a source. known: the digests, where they have been found already; then only
    the images of this part are read.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed} is outside 0..{MAX_SEED}")
    fitting, parts = Fitting.of(config, source), assign_parts(config, source)
    chosen = [
        i
        for i, (record, p) in enumerate(zip(source.records, parts.parts, strict=True))
        if p == part and (part == "train" or not record.unlabelled)
    ]
    if not chosen:
        raise EmptyPartError(
            f"{config.source} has no {part} part (split {parts.made_by!r}, {len(source)} images); "
            "give a split file with --split, made with morphogen data split"
        )
    images = PreparedImages(config, source, fitting, chosen)
    found = images.scan(progress, known)
    images.check_usable(found.bad)
    if part == "train" and known is None:
        contents = {name: found.pixels.get(name, digest) for name, digest in found.digests.items()}
        check_contents(source, parts.parts, contents, UNREADABLE)
    skipped = {error.name for error in found.bad}
    selection = Selection(
        part=part,
        seed=seed,
        parts=parts,
        indices=[i for i in chosen if source.records[i].name not in skipped],
        bad=[(error.name, error.reason) for error in found.bad],
        digests=found.digests,
        scales=found.scales,
    )
    data = ImageDataset(selection, images)
    if isinstance(source.maps, ClusteredMaps) and source.maps.clusters is None:
        endless = data.fitting.fit == "random"  # crops of its own for every number
        shown = range(_CLUSTERED) if endless else range(0, len(data), max(1, len(data) // _CLUSTERED))
        source.maps.fit([data.fixed(i)[0].permute(1, 2, 0).numpy() for i in shown])
    return data


def build_dataset(config: DataConfig, part: Part = "train", seed: int = 0, progress: bool = True) -> ImageDataset:
    """Open the source of a configuration and check every image of a part ("train", "val" or "test").

    seed: fixes the order and the augmentation (0..2**64-1). progress: show a bar and name what is skipped.
    Raises InputError for anything wrong with the source, its images or its split.
    """
    if part not in PARTS:
        raise InputError(f"there is no part {part!r}; parts are {', '.join(PARTS)}")
    return _select(config, open_source(config), part, seed, progress)
