"""`morphogen upscale RUN IMAGE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from morphogen.cli import options
from morphogen.cli.pictures import Task
from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from morphogen.core.model import Callback, Model
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.jobs import Job


def command(
    model: options.Trained,
    image: options.Pictures,
    factor: Annotated[int, typer.Option(help="2, or 4 or 8 by repetition.")] = 2,
    number: options.Number = 1,
    seed: options.Seed = 0,
    noise: Annotated[float, typer.Option(help="The noise level to begin at, 0..1 of all timesteps.")] = 0.9,
    blend: Annotated[float, typer.Option(help="The share of the original blended in at every step, 0..1.")] = 0.02,
    clean: Annotated[bool, typer.Option("--clean", help="Blend it in without noise.")] = False,
    added_only: Annotated[
        bool, typer.Option("--added-only", help="Run only the cells of added pixels; worse, and no faster.")
    ] = False,
    sampler: options.Sampler = None,
    sampling_steps: options.SamplingSteps = None,
    batch_size: options.BatchSize = 16,
    film: options.Film = False,
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("upscaled"),
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    positions: options.Positions = None,
    spectrum: options.Spectrum = None,
    json_: options.Json = False,
) -> None:
    """Make images 2, 4 or 8 times as large; the given pixels stay, and the model paints those between."""
    if factor not in (2, 4, 8):
        raise InputError(f"--factor {factor}: it should be 2, 4 or 8")
    options.check_share("--noise", noise)
    options.check_share("--blend", blend)

    def paint(network: Model, jobs: Sequence[Job], request: SamplingRequest, callback: Callback) -> list[Any]:
        from morphogen.tasks.jobs import enlarge

        return enlarge(
            network,
            jobs,
            factor,
            noise=noise,
            blend=blend,
            clean=clean,
            added_only=added_only,
            request=request,
            callback=callback,
        )

    Task(
        name="upscaling",
        model=model,
        image=image,
        out=out,
        number=number,
        seed=seed,
        sampler=sampler,
        sampling_steps=sampling_steps,
        batch_size=batch_size,
        film=film,
        device=device,
        precision=precision,
        json=json_,
        positions=positions,
        spectrum=spectrum,
        paint=paint,
        settings={"factor": factor, "noise": noise, "blend": blend, "clean": clean, "added_only": added_only},
    ).run()
