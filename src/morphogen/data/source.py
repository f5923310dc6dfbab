"""The base of every source of images: records, and the content of each."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.core.condition import Classes
from morphogen.data import tiffs
from morphogen.data.config import DataConfig, Domain
from morphogen.data.decode import Colour, Decoded, Pixels, decode_image, image_size
from morphogen.data.formats import BadImage, as_bad, check_pixel_count, frame_count, opened

Part = Literal["train", "val", "test"]
_DRAFT = 64  # pixels a side of a JPEG that are enough for a glance
PARTS: tuple[Part, ...] = ("train", "val", "test")
PART_FOLDERS: dict[str, Part] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One source image: its unique name, its labels (its class, where they are classes), its part in the set's official
    split, whose it is, and which eye it shows, where that is known. unlabelled: its labels are not known, which is
    another thing than having none of them.
    """

    name: str
    labels: tuple[str, ...] = ()
    part: Part | None = None
    patient: str | None = None
    eye: str | None = None
    unlabelled: bool = False

    @property
    def label(self) -> str | None:
        """All its labels in one word: what splits spread evenly. None without any."""
        return " + ".join(self.labels) or None


class Look(NamedTuple):
    """A glance at an image: whether it is gray, and whether it is transparent anywhere."""

    gray: bool
    transparent: bool


def label_records(names: Sequence[str]) -> list[Record]:
    """Records of files named by their relative paths: the first level of folders are the classes.

    A folder that holds everything else is passed over. Where the first level is train, val and test (or some of
    them, train included), it is the official split and the next level are the classes.
    """
    paths = [PurePosixPath(name).parts for name in names]
    depth = 0
    while paths and all(len(p) > depth + 1 for p in paths) and len({p[depth] for p in paths}) == 1:
        depth += 1
    heads = {p[depth].lower() for p in paths if len(p) > depth + 1}
    official = "train" in heads and len(heads) > 1 and heads <= set(PART_FOLDERS)
    official = official and all(len(p) > depth + 1 for p in paths)
    below = depth + official
    return [
        Record(
            name,
            labels=(p[below],) if len(p) > below + 1 else (),
            part=PART_FOLDERS[p[depth].lower()] if official else None,
        )
        for name, p in zip(names, paths, strict=True)
    ]


ClassMap = NDArray[np.uint8]
"""A map (H, W): the number of each pixel's class, or UNKNOWN."""


class Maps(ABC):
    """The maps of the images of a source, in its order. table: what the pixels of a label image mean."""

    table: Classes

    @abstractmethod
    def read(self, i: int, size: tuple[int, int] | None = None) -> ClassMap:
        """The map of image i. size: (height, width) of the image, to be checked. Raises BadImage and InputError."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over what all maps say."""


class Source(ABC):
    """A list of source images that can be read in any order, from any process or thread.

    name: what the user typed, for messages. domain: what the images are where the user does not say.
    """

    sampled: ClassVar[bool] = False  # True for slides, out of which patches are drawn instead of reading them whole
    domain: Domain = "photo"
    columns: tuple[str, ...] = ()
    """The labels of a table, in its order; empty where labels are folders, or there are none."""
    unread: Sequence[tuple[str, str]] = ()
    """Files beside the images that are pictures or films of a kind that is not read, each with its kind."""
    alike: Sequence[tuple[str, ...]] = ()
    """Ids of patients that are kept apart but are probably one's."""
    maps: Maps | None = None
    """The maps of its images, where the configuration names any."""
    linked: Sequence[tuple[str, str]] = ()
    """Folders that are links to another folder, each with that one: its images are read once."""

    def __init__(self, config: DataConfig, records: Sequence[Record]) -> None:
        self.config = config
        self.name = config.source
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    @abstractmethod
    def content(self, i: int) -> bytes:
        """The bytes that make up image i: the encoded file, or whatever identifies it. Raises BadImage."""

    def folders(self) -> list[str]:
        """Relative paths of its folders, of those without images too, where it has any."""
        return []

    def examine(self, i: int, content: bytes) -> Decoded:
        """The pixels of image i out of its content, and what of it is not in them. Raises BadImage."""
        config = self.config
        return decode_image(
            content, self.records[i].name, config.background, config.settled_colour, config.max_pixels, config.max_value
        )

    def decode(self, i: int, content: bytes) -> Pixels:
        """The pixels of image i out of its content, uint8 (H, W, C). Raises BadImage."""
        return self.examine(i, content).pixels

    def size(self, i: int, content: bytes) -> tuple[int, int]:
        """(height, width) of image i from the header of its content. Raises BadImage."""
        return image_size(content, self.records[i].name, self.config.max_pixels)

    def look(self, i: int) -> Look | None:
        """A glance at image i; None where that is not possible."""
        try:
            return glance(self.content(i), self.records[i].name, self.config.max_pixels)
        except BadImage:
            return None

    def read(self, i: int) -> Pixels:
        """The pixels of image i, uint8 (H, W, C). Raises BadImage."""
        return self.decode(i, self.content(i))

    def fingerprint(self) -> str:
        """sha256 over all names and contents, in the order of names; reads every file."""
        return fingerprint({r.name: hashlib.sha256(self.content(i)).hexdigest() for i, r in enumerate(self.records)})


class PatchSource(Source):
    """A source of images too large to hold, out of which patches are drawn."""

    sampled = True

    @abstractmethod
    def prepare(self, i: int) -> None:
        """Open image i and find where patches may lie. Raises BadImage where none can be drawn."""

    @abstractmethod
    def scale(self, i: int) -> tuple[float, float] | None:
        """Micrometres a pixel of image i, down and across; None where it does not say. Raises BadImage."""

    @abstractmethod
    def shrinking(self, i: int) -> tuple[float, float]:
        """How many pixels of image i, down and right, become one of a patch. Raises BadImage."""

    @abstractmethod
    def patch(self, i: int, key: int) -> Pixels:
        """A patch of image i, uint8 (height, width, C) of the configured size; a pure function of (i, key)."""

    @abstractmethod
    def patch_map(self, i: int, key: int) -> ClassMap:
        """The map of that patch, uint8 (height, width), where the slides have maps of their own."""

    def look(self, i: int) -> Look | None:
        return Look(gray=False, transparent=False)

    def examine(self, i: int, content: bytes) -> Decoded:
        raise TypeError(f"{self.name} is drawn from in patches, not read whole")


def glance(data: bytes, name: str, max_pixels: int) -> Look:
    """A glance at an encoded image. Raises BadImage."""
    with opened(data, name) as image:
        check_pixel_count(name, image.size[1], image.size[0], max_pixels)
        if image.format == "TIFF" and frame_count(image) > 1 and tiffs.layout(data).planes > 1:
            return Look(gray=False, transparent=False)
        try:
            if image.format == "JPEG":  # a small one shows as much, in a fraction of the time
                image.draft("RGB", (_DRAFT, _DRAFT))
            transparent = image.has_transparency_data
            if image.mode[0] in "1LIF" and not transparent:
                return Look(gray=True, transparent=False)
            image.load()
            if transparent:
                transparent = np.asarray(image.convert("RGBA").getchannel("A")).min() < 255
            colours = np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB"))[..., :3]
        except Exception as error:  # damaged pixels raise errors of many types
            raise as_bad(name, error) from error
        return Look(bool((colours == colours[..., :1]).all()), bool(transparent))


def fingerprint(digests: dict[str, str]) -> str:
    """sha256 over {name: content hash}, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(f"{name}\0{digests[name]}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def to_colour(pixels: Pixels, colour: Colour) -> Pixels:
    """Opaque pixels (H, W) or (H, W, 1 or 3) as (H, W, C) of a colour."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    out = np.asarray(image.convert({"gray": "L", "rgb": "RGB", "rgba": "RGBA"}[colour]))
    return out[:, :, None] if colour == "gray" else out
