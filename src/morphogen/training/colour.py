"""Whether a run makes gray, coloured or transparent images, where the user leaves that to the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.model import ImageConfig
from morphogen.core.model_files import CONFIG_FILE
from morphogen.core.notices import say_once
from morphogen.data.colour_choice import choose_colour
from morphogen.data.config import DataConfig
from morphogen.data.decode import Colour
from morphogen.diffusion.latents import LEARN
from morphogen.models import Preset, family_class, find_model


def settle_colour(
    data: DataConfig, chosen: Mapping[str, Any], preset: Preset | None, known: DataConfig | None
) -> DataConfig:
    """The same with `colour` settled: as the run that goes on has it, or the model that it starts from; rgb for
    an autoencoder that is there already; else what the images are, which is said, where the architecture can have such.

    chosen: all settings that the user gave. known: the data of the run that goes on.
    """
    if data.colour != "auto":
        return data
    note = None
    if known is not None:
        colour = known.settled_colour
    elif chosen.get("autoencoder") is not None and not str(chosen["autoencoder"]).startswith(LEARN):
        colour = "rgb"
    elif isinstance(chosen.get("init"), str):
        colour = _colour_of(chosen["init"])
    else:
        colour, note = choose_colour(data)
        if preset is not None and not _suits(preset, chosen.get("architecture", {}), data, colour):
            colour, note = "rgb", None
    if note is not None:
        say_once(note)
    return data.model_copy(update={"colour": colour})


def _suits(preset: Preset, given: object, data: DataConfig, colour: Colour) -> bool:
    """Whether an architecture, as the user wants it, can make images of a colour."""
    channels = data.model_copy(update={"colour": colour}).channels
    image = ImageConfig(height=data.size[0], width=data.size[1], channels=channels)
    settings = {**preset.architecture, **(given if isinstance(given, Mapping) else {})}
    try:
        family_class(preset.family).config_class(**settings).check(image)
    except ValueError:
        return False
    return True


def _colour_of(reference: str) -> Colour:
    """The colour mode of a trained model's images; rgb where that is not known."""
    try:
        found = read_json(find_model(reference) / CONFIG_FILE)
    except InputError:
        return "rgb"
    image = found.get("image") if isinstance(found, dict) and not found.get("latents") else None
    channels = image.get("channels") if isinstance(image, dict) else None
    return "gray" if channels == 1 else "rgba" if channels == 4 else "rgb"
