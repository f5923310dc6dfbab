"""Public sets by name: CelebA and MedMNIST, from local files where they are there, else downloaded."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.cache import cache_folder
from morphogen.core.errors import InputError, first_line
from morphogen.data.config import DataConfig, Domain
from morphogen.data.decode import Decoded
from morphogen.data.files import FolderSource, ZipSource
from morphogen.data.formats import BadImage
from morphogen.data.source import PARTS, Look, Record, Source, to_colour

_CELEBA_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_CELEBA_PARTITION = "list_eval_partition.txt"
_CELEBA_IMAGES = "img_align_celeba"
_INSTALL = 'pip install "morphogen[datasets]"'
_MEDMNIST_SIZES = (28, 64, 128, 224)
_MICROSCOPY = ("bloodmnist", "tissuemnist")


def data_root() -> Path:
    """Where named sets are kept: $MORPHOGEN_DATA, else in the cache."""
    root = os.environ.get("MORPHOGEN_DATA")
    return Path(root).expanduser() if root else cache_folder("datasets")


def celeba(config: DataConfig) -> Source:
    """CelebA's aligned faces with its official split, out of the folder or the zip as it is published.

    Raises InputError that says which file to put where, if they are not there and cannot be downloaded.
    """
    folder = data_root() / "celeba"
    images = _celeba_images(folder)
    if images is None:
        _download_celeba(folder)
        images = _celeba_images(folder)
        if images is None:
            raise InputError(_celeba_help(folder, "the download left them out"))
    names = _celeba_records(folder)
    if images.is_dir():
        source: Source = FolderSource(config, images, names)
    else:
        inside = [Record(f"{_CELEBA_IMAGES}/{r.name}", part=r.part) for r in names]
        source = ZipSource(config, images, inside)
    source.domain = "faces"
    return source


def _celeba_images(folder: Path) -> Path | None:
    """The folder or zip of the images where they and the partition are there, else None."""
    if not (folder / _CELEBA_PARTITION).is_file():
        return None
    if (folder / _CELEBA_IMAGES).is_dir():
        return folder / _CELEBA_IMAGES
    archive = folder / f"{_CELEBA_IMAGES}.zip"
    return archive if zipfile.is_zipfile(archive) else None


def _celeba_help(folder: Path, why: str) -> str:
    return (
        f"CelebA is not in {folder} and cannot be downloaded ({why}); get {_CELEBA_IMAGES}.zip and "
        f"{_CELEBA_PARTITION} from {_CELEBA_PAGE} and put both into {folder}"
    )


def _first_line(error: BaseException) -> str:
    return first_line(error)[:120].rstrip(".:")


def _download_celeba(folder: Path) -> None:
    try:
        from torchvision.datasets import CelebA
    except ImportError as error:
        raise InputError(f"CelebA is not in {folder}; downloading it needs torchvision: {_INSTALL}") from error
    try:
        CelebA(str(folder.parent), split="all", download=True)
    except Exception as error:  # gdown, urllib and torchvision raise errors of many types
        raise InputError(_celeba_help(folder, _first_line(error))) from error


def _celeba_records(folder: Path) -> list[Record]:
    path, records = folder / _CELEBA_PARTITION, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise InputError(f"{path} line {number} should be FILE.jpg 0, 1 or 2, not {line[:60]!r}; get the file anew")
        records.append(Record(words[0], part=PARTS[int(words[1])]))
    return records


class MedMNISTSource(Source):
    """The images of one .npz file of MedMNIST, with the official split."""

    def __init__(self, config: DataConfig, path: Path, names: dict[str, str] | None, domain: Domain) -> None:
        self.path, self.domain = path, domain
        self._arrays: dict[str, object] = {}
        self._place: list[tuple[str, int]] = []
        records: list[Record] = []
        for part in PARTS:
            images, labels = self._array(f"{part}_images"), self._array(f"{part}_labels")
            if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
                raise InputError(
                    f"{path} is not a MedMNIST file of images: {part}_images is {images.dtype} {images.shape}"
                )
            for k, label in enumerate(labels.reshape(len(labels), -1)):
                shown = () if names is None else (names.get(str(int(label[0])), str(int(label[0]))),)
                records.append(Record(f"{part}/{k:06d}", shown, part))
                self._place.append((f"{part}_images", k))
        super().__init__(config, records)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arrays": {}}

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            try:
                with np.load(self.path, allow_pickle=False) as file:
                    self._arrays[name] = file[name]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise InputError(f"{self.path} is not a MedMNIST file ({_first_line(error)}); delete it") from error
        return self._arrays[name]

    def content(self, i: int) -> bytes:
        name, k = self._place[i]
        return bytes(self._array(name)[k].tobytes())

    def size(self, i: int, content: bytes) -> tuple[int, int]:
        height, width = self._array(self._place[i][0]).shape[1:3]
        return (height, width)

    def look(self, i: int) -> Look | None:
        return Look(gray=self._array(self._place[i][0]).ndim == 3, transparent=False)

    def examine(self, i: int, content: bytes) -> Decoded:
        shape = self._array(self._place[i][0]).shape[1:]
        if len(shape) == 3 and shape[2] != 3:
            raise BadImage(self.records[i].name, f"an image of shape {shape}; it should be (H, W) or (H, W, 3)")
        pixels = np.frombuffer(content, np.uint8).reshape(shape)
        return Decoded(to_colour(pixels, self.config.settled_colour))


def medmnist(config: DataConfig, name: str) -> Source:
    """A two-dimensional MedMNIST set with its official split, at its smallest published size that is large enough.

    Classes are the published labels, except in sets with several labels an image. Raises InputError for an unknown
    name, and one that says which file to put where if it is not there and cannot be downloaded.
    """
    try:
        import medmnist as package
    except ImportError as error:
        raise InputError(f"{config.source} needs the medmnist package: {_INSTALL}") from error
    flat = [n for n in package.INFO if not n.endswith("3d")]
    if name not in flat:
        what = "is three-dimensional" if name in package.INFO else "is unknown"
        raise InputError(f"the MedMNIST set {name!r} {what}; there are {', '.join(flat)}")
    needed = max(config.size) * config.downscale
    size = next((s for s in _MEDMNIST_SIZES if s >= needed), None)
    if size is None:
        raise InputError(
            f"{config.source} has images of at most 224x224; --size (times downscale) should be at most 224"
        )
    info, folder = package.INFO[name], data_root() / "medmnist"
    suffix = "" if size == 28 else f"_{size}"
    path = folder / f"{name}{suffix}.npz"
    if not path.is_file():
        address = info[f"url{suffix}"]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            getattr(package, info["python_class"])(split="train", root=str(folder), size=size, download=True)
        except Exception as error:  # urllib, zipfile and medmnist raise errors of many types
            raise InputError(
                f"{path.name} is not in {folder} and cannot be downloaded ({_first_line(error)}); "
                f"get it from {address} and put it into {folder}"
            ) from error
    domain: Domain = "pathology" if name == "pathmnist" else "microscopy" if name in _MICROSCOPY else "photo"
    return MedMNISTSource(config, path, None if "multi-label" in info["task"] else info["label"], domain)
