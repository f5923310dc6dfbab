"""`morphogen info RUN`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli.options import Json
from morphogen.core.console import say, say_json

if TYPE_CHECKING:
    from morphogen.diffusion.ladder import Ladder


_SETTINGS = ("architecture", "diffusion", "labels", "latents", "condition")


def command(
    model: Annotated[str, typer.Argument(help="A run's folder, a bundled model, or a hub id.")], json_: Json = False
) -> None:
    """Say what a run or a trained model is."""
    from morphogen.core.model_files import WEIGHTS_FILE
    from morphogen.diffusion.ladder import Ladder
    from morphogen.diffusion.learned_autoencoder import LearnedAutoencoder
    from morphogen.models import find_model, load_model
    from morphogen.training.checkpoint import find_corruption, list_checkpoints
    from morphogen.training.logs import last_record
    from morphogen.training.run_folder import RunFolder

    folder = find_model(model)
    network = load_model(folder)
    facts: dict[str, object] = {
        "model": str(folder),
        "family": network.family,
        "size": f"{network.picture.height}x{network.picture.width}",
        "micrometres_a_pixel": network.picture.mpp,
        "image_channels": network.picture.channels,
        "parameters": network.parameter_count(),
        "deployed_parameters": network.deployed_parameter_count(),
        "file_bytes": (folder / WEIGHTS_FILE).stat().st_size,
        "minimum_size": network.minimum_picture,
        "receptive_range": network.receptive_range,
        "exact_in_tiles": network.exact_in_tiles,
        "inexact_in_tiles": network.inexact_in_tiles,
        **{k: v for k, v in network.config_dict().items() if k in _SETTINGS},
    }
    if isinstance(network, Ladder):
        facts["levels"] = {str(k): _level(network, k) for k in range(len(network))}
    own = network if isinstance(network, LearnedAutoencoder) else getattr(network, "autoencoder", None)
    if own is not None:
        facts["autoencoder"] = {
            "parameters": own.parameter_count(),
            "encoder_reach_pixels": own.encoder_reach,
            "decoder_reach_cells": own.decoder_reach,
        }
    run = RunFolder(folder)
    config = run.read_config()
    if config is not None:
        facts["run"] = {
            "preset": config.model,
            "recipe": config.recipe,
            "data": config.data.source,
            "seed": config.training.seed,
            "last_step": last_record(run.metrics),
            "checkpoints": {p.name: find_corruption(p) or "undamaged" for p in list_checkpoints(run.checkpoints)},
        }
    if json_:
        say_json(facts)
        return
    _print(facts)


def _level(ladder: Ladder, number: int) -> dict[str, object]:
    """What a level of a pyramid is."""
    level = ladder[number]
    return {
        "family": level.family,
        "scale": f"1/{ladder.scale(number)}",
        "micrometres_a_pixel": level.image.mpp,
        "parameters": level.parameter_count(),
        "receptive_range": level.receptive_range,
        **{k: v for k, v in level.config_dict().items() if k in _SETTINGS},
    }


def _print(facts: dict[str, object], indent: str = "") -> None:
    for name, value in facts.items():
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            say(label)
            _print(value, indent + "  ")
        elif value is not None:
            say(f"{label:<24}{f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else value}")
