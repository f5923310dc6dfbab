"""Options that several commands share, and reading what the user typed for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.core.errors import InputError
from morphogen.core.sizes import parse_size

if TYPE_CHECKING:
    import torch

    from morphogen.core.model import Model
    from morphogen.core.request import PrecisionChoice

Trained = Annotated[str, typer.Argument(help="A run's folder, a bundled model such as tissue, or a hub id.")]
Pictures = Annotated[Path, typer.Argument(help="An image, or a folder of images.")]
Number = Annotated[int, typer.Option("--n", "-n", min=1, help="Results per image.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first result; the next results use the next seeds.")]
Sampler = Annotated[
    str | None, typer.Option(help="ddpm, ddim, dpm++, dpm++-single, dpm++-sde, unipc, euler, euler-a or heun.")
]
SamplingSteps = Annotated[
    int | None, typer.Option(min=1, help="Sampling steps; more is slower.", show_default="the sampler's")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images computed at once; does not change the images.")]
Shard = Annotated[str, typer.Option(help="I/N: make every N-th image only, from the I-th on, in one of N processes.")]
Film = Annotated[bool, typer.Option("--film", help="Also write an animation of the denoising.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16; auto is bfloat16 where the processor has it.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing files of other settings or other origin.")
]
Rescale = Annotated[
    bool, typer.Option("--rescale", help="Bring images of another scale (micrometres a pixel) to the model's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Positions = Annotated[
    str | None,
    typer.Option(help="FourierDiff-NCA at other sizes: stretch positions (as published) or continue."),
]
Spectrum = Annotated[
    str | None,
    typer.Option(help="FourierDiff-NCA at other sizes: FFT scale, forward (as published) or ortho."),
]

NCASteps = Annotated[int | None, typer.Option(min=1, help="NCA steps per evaluation, instead of the model's own.")]
Label = Annotated[
    list[str] | None, typer.Option(help="Label of all images, for models trained with labels. Repeatable.")
]
Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free guidance scale: 1 is no guidance, 1.5 as published.")
]
Level = Annotated[
    int | None,
    typer.Option(min=0, help="Of a pyramid: paint up to this level, 0 being the coarsest.", show_default="the finest"),
]
Heredity = Annotated[
    str | None,
    typer.Option(
        help="GeCA gene heredity, the cell state carried from one timestep to the next: none, out, both, or "
        "hidden (as published)."
    ),
]


def find_device(name: str) -> torch.device:
    """The device that `--device` names."""
    from morphogen.training.devices import pick_device

    return pick_device(name)


def read_precision(name: str) -> PrecisionChoice:
    """The precision that `--precision` names. Raises InputError for anything else."""
    for known in ("auto", "float32", "bfloat16"):
        if name == known:
            return known
    raise InputError(f"--precision {name}: it should be auto, float32 or bfloat16")


def check_share(name: str, value: float) -> None:
    """Raise InputError, naming the option, unless its value lies in 0..1 (and is a number)."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} {value:g}: it should be between 0 and 1")


def read_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `--size 64` or `--size 96x128`. Raises InputError for anything else."""
    if text is None:
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise InputError(f"--size: {error}") from None


def read_shard(text: str) -> tuple[int, int]:
    """(first, step) of `--shard 2/4`: every 4th from number 1 on. Raises InputError for anything else."""
    share = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", text)
    if share is None or int(share[1]) > int(share[2]):
        raise InputError(f"--shard {text}: it should be I/N, such as 2/4, with I from 1 to N")
    return int(share[1]) - 1, int(share[2])


def check_grid_seeds(path: Path, found: Mapping[str, object] | None, seeds: Sequence[int], overwrite: bool) -> None:
    """Raise InputError where the overview of other images would be lost: one of fewer may grow."""
    shown = (found or {}).get("seeds")
    if not overwrite and isinstance(shown, list) and not set(map(str, shown)) <= set(map(str, seeds)):
        raise InputError(f"{path} shows other seeds; give --no-grid or --overwrite, or name another --out")


def check_guidance(guidance: float | None, labels: Sequence[str] | None) -> None:
    """Raise InputError for `--guidance` without `--label`, or one that is no number of at least 0."""
    if guidance is None:
        return
    check_guidance_scale(guidance)
    if not labels:
        raise InputError(f"--guidance {guidance:g} needs labels; name one with --label, or leave guidance out")


def check_guidance_scale(guidance: float) -> None:
    """Raise InputError for a classifier-free guidance scale that is no number of at least 0."""
    if not 0 <= guidance < float("inf"):
        raise InputError(f"--guidance {guidance:g}: it should be a number of at least 0; 1 is no guidance")


def set_options(model: Model, **chosen: str | None) -> None:
    """Set in a model what options such as `--positions` name, unless None. Raises InputError for a model that has no
    such setting, or for an unknown choice.
    """
    from morphogen.core.validation import validate
    from morphogen.diffusion.denoiser import Denoiser

    for name, value in chosen.items():
        if value is None:
            continue
        if not isinstance(model, Denoiser) or name not in type(model.architecture).model_fields:
            raise InputError(f"--{name} {value}: {_MEANINGLESS[name].format(family=model.family)}; leave it out")
        settings = {**model.architecture.model_dump(), name: value}
        model.architecture = validate(type(model.architecture), settings, f"--{name} {value}")


_AT_ANY_SIZE = "{family} works the same at every size"
_MEANINGLESS = {"positions": _AT_ANY_SIZE, "spectrum": _AT_ANY_SIZE, "heredity": "{family} inherits nothing"}
