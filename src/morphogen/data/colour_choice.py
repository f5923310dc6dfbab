"""The colour mode of a set of images: gray, in colour, or transparent."""

from __future__ import annotations

from typing import NamedTuple

from morphogen.core.errors import InputError
from morphogen.core.progress import Progress
from morphogen.data.config import DataConfig
from morphogen.data.decode import Colour
from morphogen.data.source import Look, Source
from morphogen.data.sources import open_source
from morphogen.data.threads import map_ordered

_FEW, _MANY = 16, 256  # images that are looked at; more than a few only while all are gray


class ColourChoice(NamedTuple):
    """The colour mode that images are read in, and a remark on it."""

    colour: Colour
    note: str | None = None


def choose_colour(config: DataConfig) -> ColourChoice:
    """The colour mode that the images of a configuration are read in: as it says; for auto, rgba if more than half of
    them are transparent somewhere (and no background is asked for), gray if all of them are, else rgb.

    Looks at up to 256 images, in even distances. What cannot be opened counts as rgb: reading it will say why.
    """
    if config.colour != "auto" or config.source == "celeba":
        return ColourChoice(config.settled_colour)
    if config.stain_jitter:
        return ColourChoice("rgb")
    if config.source.startswith("medmnist:"):
        return _of_medmnist(config.source.partition(":")[2])
    try:
        source = open_source(config.model_copy(update={"labels": "none"}))
    except InputError:
        return ColourChoice("rgb")
    return choose_for(source, "background" not in config.model_fields_set)


def choose_for(source: Source, transparency: bool = True) -> ColourChoice:
    """The same for an opened source. transparency: whether rgba may be chosen."""
    looks: list[Look] = []
    for part in _sample(len(source)):
        with Progress("Looking at images", len(part), quiet=True) as shown:
            found = map_ordered(lambda k, part=part: source.look(part[k]), len(part), shown)  # type: ignore[misc]
            looks += [look for look in found if look is not None]
        if not looks or not all(look.gray for look in looks):
            break
    count = len(looks)
    transparent = sum(look.transparent for look in looks)
    if transparency and 2 * transparent > count:
        return ColourChoice(
            "rgba",
            f"note: {transparent} of {count} images looked at are transparent in places, so the model paints "
            "transparency too; give --background white to put them on a colour instead, or --colour rgb",
        )
    if count and all(look.gray for look in looks):
        what = "its only image is" if len(source) == 1 else f"all {count} images looked at are"
        return ColourChoice("gray", f"note: {what} gray, so the model is gray; give --colour rgb for one in colour")
    return ColourChoice("rgb")


def _sample(count: int) -> list[list[int]]:
    """The images to look at first, and those to look at where the first are all gray."""
    first = sorted({k * count // _FEW for k in range(_FEW)}) if count > _FEW else list(range(count))
    rest = sorted({k * count // _MANY for k in range(_MANY)} if count > _MANY else set(range(count)))
    return [first, [i for i in rest if i not in first]]


def _of_medmnist(name: str) -> ColourChoice:
    try:
        from medmnist import INFO
    except ImportError:
        return ColourChoice("rgb")
    if INFO.get(name, {}).get("n_channels") != 1:
        return ColourChoice("rgb")
    return ColourChoice("gray", f"note: the images of {name} are gray, so the model is gray; give --colour rgb "
                                "for one in colour")  # fmt: skip
