"""`morphogen vary RUN IMAGE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from morphogen.cli import options
from morphogen.cli.pictures import Task

if TYPE_CHECKING:
    from morphogen.core.model import Callback, Model
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.jobs import Job


def command(
    model: options.Trained,
    image: options.Pictures,
    strength: Annotated[
        float, typer.Option(help="How much changes: the noise level, 0 (nothing) to 1 (next to everything).")
    ] = 0.4,
    number: options.Number = 1,
    seed: options.Seed = 0,
    sampler: options.Sampler = None,
    sampling_steps: options.SamplingSteps = None,
    batch_size: options.BatchSize = 16,
    film: options.Film = False,
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("varied"),
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    positions: options.Positions = None,
    spectrum: options.Spectrum = None,
    json_: options.Json = False,
) -> None:
    """Paint other images like the given ones: noise them to a level and denoise them."""
    options.check_share("--strength", strength)

    def paint(network: Model, jobs: Sequence[Job], request: SamplingRequest, callback: Callback) -> list[Any]:
        from morphogen.tasks.jobs import change

        return change(network, jobs, strength, request=request, callback=callback)

    Task(
        name="varying",
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
        settings={"strength": strength},
    ).run()
