"""The files of a model: `config.json` and `model.safetensors`, written at once and read without trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from morphogen._version import VERSION
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, replace_file

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = 2
"""Of config.json and run.json; files without a number are of format 1."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def header() -> dict[str, object]:
    """The first keys of config.json and run.json: their format, and who wrote them."""
    return {"format": FORMAT, "morphogen": VERSION}


def without_header(values: Mapping[str, object], where: str) -> dict[str, object]:
    """The content of config.json or run.json without its header. Raises InputError for a format of a newer
    Morphogen that this one does not know.
    """
    written = values.get("format", 1)
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise InputError(f"{where}: format should be a whole number from 1 to {FORMAT}, not {written!r}")
    if written > FORMAT:
        raise InputError(
            f"{where} is of format {written}, written by Morphogen {values.get('morphogen', '(unknown)')}; this is "
            f"Morphogen {VERSION}, which reads formats up to {FORMAT}: install a newer one"
        )
    return {k: v for k, v in values.items() if k not in ("format", "morphogen")}


def save_model(model: nn.Module, config: Mapping[str, object], folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into a folder, each at once. config: as of `config_dict`."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS_FILE, save({k: v.cpu().contiguous() for k, v in model.state_dict().items()}))
    replace_file(folder / CONFIG_FILE, json_bytes({**header(), **config}))


def pickle_refusal(path: Path) -> str:
    return f"{path} is a pickle, which can run any code when opened; weights must be a {WEIGHTS_FILE}"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose name may hold any bytes. Raises what safetensors does."""
    from safetensors.torch import load, load_file

    try:
        str(file).encode()
    except UnicodeEncodeError:  # the library takes names in UTF-8 only
        return dict(load(file.read_bytes()))
    return dict(load_file(file))


def load_weights(model: nn.Module, family: str, file: Path) -> None:
    """Load a safetensors file into a model of a family: every name and shape must be the model's own.

    Raises InputError, naming the file and the first difference, where they are not.
    """
    from safetensors import SafetensorError

    if file.suffix.lower() in PICKLE_SUFFIXES:
        raise InputError(pickle_refusal(file))
    try:
        weights = read_tensors(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file} is damaged or not a safetensors file ({error})") from None
    wanted = model.state_dict()
    for name in wanted.keys() - weights.keys():
        raise InputError(f"{file} lacks the weight '{name}' of a {family} of its configuration")
    for name in weights.keys() - wanted.keys():
        raise InputError(f"{file} has a weight '{name}' that a {family} of its configuration does not")
    for name, tensor in wanted.items():
        if tensor.shape != weights[name].shape:
            raise InputError(
                f"{file}: the weight '{name}' has the shape {tuple(weights[name].shape)}, "
                f"but its configuration says {tuple(tensor.shape)}"
            )
    model.load_state_dict(weights, strict=True)
