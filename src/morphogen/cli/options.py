"""Options that several commands share, and reading what the user typed for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.core.errors import InputError

if TYPE_CHECKING:
    import torch

    from morphogen.core.model import Wanted

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16; auto is bfloat16 where the processor has it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def find_device(name: str) -> torch.device:
    """The device that `--device` names."""
    from morphogen.training.devices import pick_device

    return pick_device(name)


def read_precision(name: str) -> Wanted:
    """What `--precision` names. Raises InputError for anything else."""
    for known in ("auto", "float32", "bfloat16"):
        if name == known:
            return known
    raise InputError(f"--precision {name}: it should be auto, float32 or bfloat16")


def read_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `--size 64` or `--size 96x128`. Raises InputError for anything else."""
    if text is None:
        return None
    from morphogen.data.config import parse_size

    try:
        parsed = parse_size(text)
    except ValueError as error:
        raise InputError(f"--size: {error}") from None
    assert isinstance(parsed, tuple)
    return parsed
