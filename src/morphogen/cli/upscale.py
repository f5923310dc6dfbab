"""`morphogen upscale RUN IMAGE`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from morphogen.cli import options
from morphogen.cli.pictures import PictureOptions, PictureTask, run, with_picture_options
from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from morphogen.core.model import Callback, Model
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.batch import Job
    from morphogen.tasks.pictures import Picture
    from morphogen.tasks.superresolution import Way

_Scheme = Literal[
    "auto", "trained", "projection", "published"
]  # of morphogen.tasks.superresolution, which is slow to import
_Input = Literal["area", "sample"]


@with_picture_options(out="upscaled")
def command(
    chosen: PictureOptions,
    factor: Annotated[int, typer.Option(help="2 to 8; of the published scheme 2, 4 or 8.")] = 2,
    scheme: Annotated[
        str,
        typer.Option(
            help="trained: by a level that is told pictures --factor times as coarse; projection: by any model of "
            "pixels; published: the given pixels stay, those between are painted; auto: the first that can be."
        ),
    ] = "auto",
    mean: Annotated[int, typer.Option(min=1, max=1000, help="Samples to average: smoother, and a better PSNR.")] = 1,
    input_: Annotated[
        str, typer.Option("--input", help="How the small picture was made: area (means of squares) or sample.")
    ] = "area",
    noise: Annotated[
        float | None,
        typer.Option(
            help="Noise level to start from, as a share of all timesteps, 0 to 1.",
            show_default="1 of trained, 0.3 of projection, 0.9 of published",
        ),
    ] = None,
    blend: Annotated[
        float, typer.Option(help="Published: share of the enlarged original mixed in at every step, 0 to 1.")
    ] = 0.02,
    clean: Annotated[bool, typer.Option("--clean", help="Published: mix it in without noise.")] = False,
    added_only: Annotated[
        bool, typer.Option("--added-only", help="Published: update only the cells of new pixels: worse, and no faster.")
    ] = False,
) -> None:
    """Make images 2 to 8 times as large. Shrunk again, they are the given ones."""
    if not 2 <= factor <= 8:
        raise InputError(f"--factor {factor}: it should be from 2 to 8")
    for name, value, known in (("scheme", scheme, get_args(_Scheme)), ("input", input_, get_args(_Input))):
        if value not in known:
            raise InputError(f"--{name} {value}: choose one of {', '.join(known)}")
    if noise is not None:
        options.check_share("--noise", noise)
    options.check_share("--blend", blend)

    given = {"noise": noise, "blend": blend, "clean": clean, "added_only": added_only, "mean": mean, "input_by": input_}
    own = {"factor": factor, "scheme": scheme, **{k: v for k, v in given.items() if v is not None}}

    def run_batch(network: Model, jobs: Sequence[Job], request: SamplingRequest, callback: Callback) -> list[object]:
        from morphogen.tasks.batch import enlarge

        return enlarge(
            network,
            jobs,
            factor,
            scheme=scheme,  # type: ignore[arg-type]  # checked above
            mean=mean,
            input=input_,  # type: ignore[arg-type]
            noise=noise,
            blend=blend,
            clean=clean,
            added_only=added_only,
            request=request,
            callback=callback,
        )

    def way(network: Model) -> Way:
        from morphogen.tasks.superresolution import find_way

        found = find_way(network, factor, scheme)  # type: ignore[arg-type]
        if found.scheme == "published" and (mean, input_) != (1, "area"):
            raise InputError("--mean and --input are not of the published scheme; leave them out")
        if found.scheme != "published" and (blend, clean, added_only) != (0.02, False, False):
            raise InputError("--blend, --clean and --added-only are of --scheme published; leave them out, or give it")
        return found

    def passes(network: Model, picture: Picture, __: object) -> list[tuple[int, float]]:
        from morphogen.tasks.superresolution import NOISE

        found, pixels = way(network), math.prod(picture.size)
        share = NOISE[found.scheme] if noise is None else noise
        if found.scheme == "published":
            return [(pixels * 4**k, share) for k in range(1, factor.bit_length())]
        return [(pixels * factor**2, share)] * mean

    run(PictureTask("upscaling", run_batch, own, passes, factor=factor, way=way), chosen)
