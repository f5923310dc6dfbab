"""`morphogen upscale RUN IMAGE`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import options
from morphogen.cli.pictures import PictureOptions, PictureTask, run, with_picture_options
from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from morphogen.core.model import Callback, Model
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.batch import Job
    from morphogen.tasks.pictures import Picture


@with_picture_options(out="upscaled")
def command(
    chosen: PictureOptions,
    factor: Annotated[int, typer.Option(help="2, 4 or 8; 4 and 8 by doubling again.")] = 2,
    noise: Annotated[float, typer.Option(help="Noise level to start from, as a share of all timesteps, 0 to 1.")] = 0.9,
    blend: Annotated[float, typer.Option(help="Share of the enlarged original mixed in at every step, 0 to 1.")] = 0.02,
    clean: Annotated[bool, typer.Option("--clean", help="Mix it in without noise.")] = False,
    added_only: Annotated[
        bool, typer.Option("--added-only", help="Update only the cells of new pixels: worse, and no faster.")
    ] = False,
) -> None:
    """Make images 2, 4 or 8 times as large; the given pixels stay, and the model paints those between."""
    if factor not in (2, 4, 8):
        raise InputError(f"--factor {factor}: it should be 2, 4 or 8")
    options.check_share("--noise", noise)
    options.check_share("--blend", blend)

    own = {"factor": factor, "noise": noise, "blend": blend, "clean": clean, "added_only": added_only}

    def run_batch(network: Model, jobs: Sequence[Job], request: SamplingRequest, callback: Callback) -> list[object]:
        from morphogen.tasks.batch import enlarge

        return enlarge(
            network,
            jobs,
            factor,
            request=request,
            callback=callback,
            noise=noise,
            blend=blend,
            clean=clean,
            added_only=added_only,
        )

    def passes(_: Model, picture: Picture, __: object) -> list[tuple[int, float]]:
        return [(math.prod(picture.size) * 4**k, noise) for k in range(1, factor.bit_length())]

    run(PictureTask("upscaling", run_batch, own, passes, factor=factor), chosen)
