"""Maps of classes: reading label images, and finding the one that belongs to each image of a source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from morphogen.core.condition import MOST_CLASSES, UNKNOWN, Classes, class_names
from morphogen.core.errors import InputError
from morphogen.core.files import LARGEST_IMAGE, read_bytes, read_json
from morphogen.data.config import DataConfig
from morphogen.data.formats import BadImage, as_bad, check_pixel_count, opened
from morphogen.data.source import ClassMap, Maps, Source, label_records

if TYPE_CHECKING:
    from PIL import Image

_MISSING = 254  # of a pixel whose value the table does not have
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_GIVE_COLOURS = 'give a table of their colours with --classes, such as {"#ff0000": "gland"}'
_GIVE_TABLE = 'give a table with --classes, such as {"0": "background", "1": "nucleus"}'


def read_classes(path: Path) -> Classes:
    """The table of a file of `--classes`. Raises InputError for what is no such table."""
    found = read_json(path.expanduser())
    if not isinstance(found, dict) or not found:
        raise InputError(f'{path} should be a table of classes, such as {{"0": "background", "1": "nucleus"}}')
    return checked_table({str(key): name for key, name in found.items()}, str(path))


def checked_table(found: Mapping[str, object], where: str) -> Classes:
    """A table with its keys as they are compared. Raises InputError, naming it, for a key or a name that cannot be."""
    table: Classes = {}
    for key, name in found.items():
        plain = key.strip().lower()
        if not (plain.isdecimal() and int(plain) < 2**16) and not _COLOUR.fullmatch(plain):
            raise InputError(f"{where}: {key!r} should be a pixel's value, 0 to 65535, or a colour such as #ff0000")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise InputError(f"{where}: the name of {key} is {name!r}; it should be a word, or null to ignore it")
        plain = str(int(plain)) if plain.isdecimal() else plain
        if plain in table:
            raise InputError(f"{where}: {key} is there twice")
        table[plain] = name
    if len({key.startswith("#") for key in table}) > 1:
        raise InputError(f"{where}: give values or colours, not both")
    if not 1 <= len(class_names(table)) <= MOST_CLASSES:
        raise InputError(f"{where}: there are {len(class_names(table))} classes; there should be 1 to {MOST_CLASSES}")
    return table


def read_values(content: bytes, name: str, max_pixels: int = 2**32) -> NDArray[np.uint8 | np.uint16]:
    """The values of an encoded label image, as `values_of`. Raises BadImage for what is no image."""
    with opened(content, name) as image:
        check_pixel_count(name, image.size[1], image.size[0], max_pixels)
        try:
            return values_of(image)
        except Exception as error:  # damaged pixels raise errors of many types
            raise as_bad(name, error) from error


def values_of(image: Image.Image) -> NDArray[np.uint8 | np.uint16]:
    """Gray values or palette indices of a label image, (H, W); of one in colours (H, W, 3)."""
    if image.mode in ("L", "P"):
        return np.asarray(image)
    if image.mode == "1" or image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    return np.asarray(image.convert("RGB"))


def to_classes(values: NDArray[np.uint8 | np.uint16], table: Classes, name: str) -> ClassMap:
    """A label image as the numbers of its pixels' classes, in the order of `class_names`.

    Takes a byte a pixel more than the image. Raises InputError, naming it, for values without a class, and where every
    pixel is ignored.
    """
    colours, named_colours = values.ndim == 3, next(iter(table)).startswith("#")
    if colours and not named_colours:
        raise InputError(f"the map {name} is in colours; {_GIVE_COLOURS}")
    if named_colours and not colours:
        raise InputError(f"the map {name} is gray or indexed, and the table of --classes names colours")
    order = {named: number for number, named in enumerate(class_names(table))}
    numbers = {key: UNKNOWN if named is None else order[named] for key, named in table.items()}
    if colours:
        found = np.full(values.shape[:2], _MISSING, np.uint8)
        for key, number in numbers.items():
            red, green, blue = bytes.fromhex(key[1:])
            found[(values[..., 0] == red) & (values[..., 1] == green) & (values[..., 2] == blue)] = number
    else:
        lookup = np.full(2**16, _MISSING, np.uint8)
        for key, number in numbers.items():
            lookup[int(key)] = number
        found = lookup[values]
    missing = found == _MISSING
    if missing.any():
        others = np.unique(values[missing], axis=0)
        shown = [bytes(other.tolist()).hex() if colours else str(other) for other in others[:3]]
        listed = ", ".join(f"#{value}" if colours else value for value in shown) + (", ..." if len(others) > 3 else "")
        raise InputError(f"the map {name} has the value {listed}; the classes are {', '.join(list(table)[:8])}")
    if (found == UNKNOWN).all():
        raise InputError(f"the map {name} tells nothing: every pixel of it is ignored")
    return found


def read_map(path: Path, classes: Classes) -> ClassMap:
    """The map of a label image file, for a model that paints from these classes. Raises InputError."""
    try:
        values = read_values(read_bytes(path, limit=LARGEST_IMAGE), str(path))
    except BadImage as error:
        raise InputError(f"the map {error}") from None
    return to_classes(values, classes, str(path))


def resized_map(found: ClassMap, size: tuple[int, int]) -> ClassMap:
    """A map of another (height, width): at each pixel the class that covers most of it."""
    from PIL import Image

    if found.shape == size:
        return found
    most = np.zeros(size, np.float32)
    result = np.full(size, UNKNOWN, np.uint8)
    for number in np.unique(found).tolist():
        share = Image.fromarray((found == number).astype(np.float32)).resize(size[::-1], Image.Resampling.BOX)
        covered = np.asarray(share)
        result = np.where(covered > most, number, result).astype(np.uint8)
        most = np.maximum(covered, most)
    return result


@dataclass(frozen=True)
class MapFiles(Maps):
    """The label images of the images of a source, in its order.

    source: of the files. numbers: of each image, the number of its map in it. table: what their values mean.
    """

    source: Source
    numbers: Sequence[int]
    table: Classes

    def name(self, i: int) -> str:
        """The name of the map of image i."""
        return self.source.records[self.numbers[i]].name

    def read(self, i: int, size: tuple[int, int] | None = None) -> ClassMap:
        name = self.name(i)
        values = read_values(self.source.content(self.numbers[i]), name, self.source.config.max_pixels)
        if size is not None and values.shape[:2] != size:
            high, wide = values.shape[:2]
            raise InputError(
                f"the map {name} is {wide}x{high} and its image {size[1]}x{size[0]}; a map should be as large"
            )
        return to_classes(values, self.table, name)

    def fingerprint(self) -> str:
        total = hashlib.sha256(repr(dict(self.table)).encode())
        for number in self.numbers:
            total.update(hashlib.sha256(self.source.content(number)).digest())
        return total.hexdigest()


def split_off_maps(source: Source, folder: str) -> list[int]:
    """Take the files of a folder inside the source out of it; their numbers as they were. Raises InputError if there
    are none, or nothing else.
    """
    inside = [i for i, record in enumerate(source.records) if folder in PurePosixPath(record.name).parts[:-1]]
    rest = [i for i in range(len(source)) if i not in set(inside)]
    if not inside or not rest:
        raise InputError(
            f"--maps {folder}: it is no folder, and {source.name} has none of this name with images beside it"
        )
    names = [source.records[i].name for i in rest]
    source.records = label_records(names)
    return inside


def find_maps(source: Source, maps: Source, config: DataConfig) -> MapFiles:
    """The map of each image of a source, by its path without the suffix, or its stem alone where that is one's only.

    Raises InputError for an image without a map, a map without an image, and values that need a table.
    """
    whole = {_stem(record.name): number for number, record in enumerate(maps.records)}
    stems: dict[str, list[int]] = {}
    for number, record in enumerate(maps.records):
        stems.setdefault(PurePosixPath(record.name).stem, []).append(number)
    numbers: list[int] = []
    missing: list[str] = []
    for record in source.records:
        alike = stems.get(PurePosixPath(record.name).stem, [])
        found = whole.get(_stem(record.name), alike[0] if len(alike) == 1 else None)
        if found is None:
            missing.append(record.name)
        else:
            numbers.append(found)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(source)} images have no map in {maps.name}, such as {missing[0]}; each should "
            "have one of the same name"
        )
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise InputError(
            f"the map {maps.records[twice].name} belongs to several images; give each image one of its own"
        )
    left = sorted(set(range(len(maps))) - set(numbers))
    if left:
        raise InputError(
            f"the map {maps.records[left[0]].name} has no image in {source.name}; remove it, or add its image"
        )
    table = _found_table(maps, numbers) if config.classes is None else read_classes(Path(config.classes))
    return MapFiles(maps, numbers, table)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _found_table(maps: Source, numbers: Sequence[int]) -> Classes:
    """Every value that there is in maps, as a class named by it. Raises InputError for colours, more than 8 bits, and
    more values than there can be classes.
    """
    found: set[int] = set()
    for number in numbers:
        name = maps.records[number].name
        try:
            values = read_values(maps.content(number), name, maps.config.max_pixels)
        except BadImage as error:
            raise InputError(f"the map {error}") from None
        if values.ndim == 3:
            raise InputError(f"the map {name} is in colours; {_GIVE_COLOURS}")
        if int(values.max(initial=0)) > 255:
            raise InputError(f"the map {name} has more than 8 bits; {_GIVE_TABLE}")
        found |= set(np.unique(values).tolist())
        if len(found) > MOST_CLASSES:
            raise InputError(f"the map {name} and others have {len(found)} values, as images do; {_GIVE_TABLE}")
    return {str(value): str(value) for value in sorted(found)}
