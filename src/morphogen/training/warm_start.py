"""Starting a run from the weights of another, and the labels that it then has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.model import LabelConfig, Model
from morphogen.core.model_files import CONFIG_FILE
from morphogen.core.notices import say_once
from morphogen.models import find_model, find_preset, load_model
from morphogen.training.config import RunConfig, flatten
from morphogen.training.run_folder import RunFolder

_DEAF = ("diff-nca", "fourier-diff-nca")  # which took no labels in earlier versions, whatever the data had


def labels_of_run(config: RunConfig, folder: RunFolder) -> LabelConfig:
    """The labels that a run learns: those of its data, but none where the automaton that it goes on with, or starts
    from, knows none. That is said once.
    """
    labels, family = config.read_labels(), find_preset(config.model).family
    if not labels.names or config.data.unlabelled is not None or family not in _DEAF:
        return labels
    for where, file in ((str(folder.path), folder.path / CONFIG_FILE), (config.init, _config_of(config.init))):
        found = read_json(file) if file is not None and file.is_file() else None
        if isinstance(found, dict) and found.get("family") == family:
            if "labels" in found:
                return labels
            say_once(
                f"note: {where} was trained without labels and goes on so; to learn {', '.join(labels.names)}, train "
                "anew, into another --out and without --init"
            )
            return LabelConfig()
    return labels


def _config_of(reference: str | None) -> Path | None:
    """The settings of a model that a run begins with; None where there is none, which `start_from` says."""
    try:
        return None if reference is None else find_model(reference) / CONFIG_FILE
    except InputError:
        return None


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
