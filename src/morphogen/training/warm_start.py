"""Starting a run from the weights of another."""

from __future__ import annotations

from collections.abc import Mapping

from morphogen.core.errors import InputError
from morphogen.core.model import Model
from morphogen.models import load_model
from morphogen.training.config import flatten


def start_from(model: Model, reference: str) -> None:
    """Give a model the weights of a run, bundled model or hub id.

    Raises InputError, naming the difference, where that is another kind of model, or trained for another diffusion.
    """
    start = load_model(reference)
    there, here = _essence(start.config_dict()), _essence(model.config_dict())
    for name in sorted(there.keys() | here.keys(), key=lambda name: (name != "family", name)):
        if there.get(name) != here.get(name):
            raise InputError(
                f"--init {reference}: its {name} is {there.get(name)}, but this run's is {here.get(name)}; "
                "choose the same --model, --recipe and settings as it has"
            )
    model.load_state_dict(start.state_dict())


def _essence(config: Mapping[str, object]) -> dict[str, object]:
    """The settings that two models must share for weights to mean the same; the size and the loss may differ, and
    how the latents of one autoencoder are scaled.
    """
    flat = flatten(config)
    free = (
        "image.height",
        "image.width",
        "image.mpp",
        "diffusion.loss",
        "latents.autoencoder",
        "latents.shift",
        "latents.scale",
    )
    return {k: v for k, v in flat.items() if k not in free}
