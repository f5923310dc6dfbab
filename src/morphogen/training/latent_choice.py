"""Whether a run works in pixels or in latents that it learns first, where the user leaves that open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.model_files import CONFIG_FILE
from morphogen.core.notices import say_once
from morphogen.data.config import DataConfig
from morphogen.data.fitting import Fitting
from morphogen.data.sources import open_source
from morphogen.diffusion.latents import LEARN, learned_factor
from morphogen.models import Preset
from morphogen.training.config import RunConfig

PIXELS = "none"
"""What --autoencoder is where a run should work in pixels."""
_FACTOR, _SMALLEST = 4, 64  # what was measured (docs/latents.md)
_USUAL = 8


def settle_latents(
    chosen: Mapping[str, Any], preset: Preset | None, recipe: str, data: DataConfig | None, before: RunConfig | None
) -> dict[str, Any]:
    """The user's settings with `autoencoder` as they mean it: pixels for `none`; as the run that goes on has it; and
    latents of 4x4 pixels for the small automata, by a recipe that has settings for that, where these were the better:
    images of 64 pixels or more, cropped the same way each time. Another architecture, a start from another model, a
    condition, maps and levels are left in pixels.
    """
    if chosen.get("autoencoder") == PIXELS:
        return {**chosen, "autoencoder": None}
    if "autoencoder" in chosen:
        return dict(chosen)
    if before is not None:
        return {**chosen, "autoencoder": before.autoencoder}
    if preset is None or data is None or recipe not in preset.in_latents or data.maps is not None:
        return dict(chosen)
    if any(chosen.get(name) for name in ("architecture", "init", "condition", "levels", "latents")):
        return dict(chosen)
    if min(data.size) < _SMALLEST or any(side % _FACTOR for side in data.size) or data.stain_jitter:
        return dict(chosen)
    try:
        if Fitting.of(data, open_source(data)).fit == "random":
            return dict(chosen)
    except InputError:  # which is said where the images are read
        return dict(chosen)
    say_once(
        f"note: the model works in latents of {_FACTOR}x{_FACTOR} pixels, learnt first; in pixels: --autoencoder none"
    )
    return {**chosen, "autoencoder": f"{LEARN}{_FACTOR}"}


def latent_factor(reference: str) -> int:
    """How many pixels on a side a cell of latents is, by what --autoencoder says; that of the usual ones, 8, where it
    does not say so at once.
    """
    known = None
    try:
        known = learned_factor(reference)
        file = Path(reference).expanduser() / CONFIG_FILE
        if known is None and file.is_file():
            known = read_json(file)["architecture"]["factor"]
    except (InputError, KeyError, TypeError):  # which is said where it is opened
        return _USUAL
    return known if isinstance(known, int) and known > 0 else _USUAL
