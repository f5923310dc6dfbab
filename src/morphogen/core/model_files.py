"""The files of a model: `config.json` and `model.safetensors`, written at once and read without trust."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, replace_file

if TYPE_CHECKING:
    from morphogen.core.model import Model

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def save_model(model: Model, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into a folder, each at once."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS_FILE, save({k: v.cpu().contiguous() for k, v in model.state_dict().items()}))
    replace_file(folder / CONFIG_FILE, json_bytes(model.config_dict()))


def pickle_refusal(path: Path) -> str:
    return f"{path} is a pickle, which can run any code when opened; weights must be a {WEIGHTS_FILE}"


def load_weights(model: Model, file: Path) -> None:
    """Load a safetensors file into a model: every name and shape must be the model's own.

    Raises InputError, naming the file and the first difference, where they are not.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix.lower() in PICKLE_SUFFIXES:
        raise InputError(pickle_refusal(file))
    try:
        weights = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file} is damaged or not a safetensors file ({error})") from None
    wanted = model.state_dict()
    for name in wanted.keys() - weights.keys():
        raise InputError(f"{file} lacks the weight '{name}' of a {model.family} of its configuration")
    for name in weights.keys() - wanted.keys():
        raise InputError(f"{file} has a weight '{name}' that a {model.family} of its configuration does not")
    for name, tensor in wanted.items():
        if tensor.shape != weights[name].shape:
            raise InputError(
                f"{file}: the weight '{name}' has the shape {tuple(weights[name].shape)}, "
                f"but its configuration says {tuple(tensor.shape)}"
            )
    model.load_state_dict(weights, strict=True)
