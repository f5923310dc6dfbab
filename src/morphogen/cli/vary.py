"""`morphogen vary RUN IMAGE`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import options
from morphogen.cli.pictures import PictureOptions, PictureTask, run, with_picture_options

if TYPE_CHECKING:
    from morphogen.core.model import Callback, Model
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.batch import Job
    from morphogen.tasks.pictures import Picture


@with_picture_options(out="varied")
def command(
    chosen: PictureOptions,
    strength: Annotated[
        float, typer.Option(help="Noise level, as a share of all timesteps: 0 changes nothing, 1 nearly everything.")
    ] = 0.4,
    rescale: options.Rescale = False,
) -> None:
    """Paint other images like the given ones: noise them to a level and denoise them."""
    options.check_share("--strength", strength)

    def run_batch(network: Model, jobs: Sequence[Job], request: SamplingRequest, callback: Callback) -> list[object]:
        from morphogen.tasks.batch import change

        return change(network, jobs, strength, request=request, callback=callback)

    def passes(_: Model, picture: Picture, __: object) -> list[tuple[int, float]]:
        return [(math.prod(picture.size), strength)]

    run(PictureTask("varying", run_batch, {"strength": strength}, passes, rescale=rescale), chosen)
