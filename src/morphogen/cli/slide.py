"""`morphogen slide RUN|NAME|HUB_ID --size HxW --out FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from morphogen.cli import options
from morphogen.core.console import say
from morphogen.core.errors import InputError
from morphogen.core.output_files import check_link


class Command(TyperCommand):
    """A command whose `--ray` may stand without an address, which typer cannot say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        following = [*args, ""][1:]
        given = [
            "--ray=local" if word == "--ray" and not (":" in after or after in ("auto", "local")) else word
            for word, after in zip(args, following, strict=True)
        ]
        return super().parse_args(ctx, given)


def command(
    model: options.Trained,
    out: Annotated[Path, typer.Option(help="The slide: its name ends in .ome.zarr, .ome.tif or .dzi (DeepZoom).")],
    size: Annotated[str | None, typer.Option(help="Height and width in pixels: 20000 or 20000x30000.")] = None,
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Paint from this map, with a model that was trained with --maps: a label image, whose size the slide "
            "has, or polygons in GeoJSON.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the slide, together with the settings below.")] = 0,
    sampler: Annotated[
        str | None,
        typer.Option(help="As in `morphogen sample`.", show_default="dpm++ in 12 steps; with --inpaint ddpm"),
    ] = None,
    sampling_steps: options.SamplingSteps = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile in pixels, in latents in cells; does not change the result.",
            show_default="256 or more",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes; does not change the result.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Paint with --workers on a Ray cluster; one is started in this process where no address is given.",
        ),
    ] = None,
    jpeg: Annotated[
        int | None, typer.Option(help="Store tiles as JPEG of this quality, 1 to 100, instead of without loss.")
    ] = None,
    zarr: Annotated[str | None, typer.Option(help="Version of OME-Zarr: 0.4 or 0.5.", show_default="0.4")] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Micrometres a pixel, for the file's metadata.")] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Also paint with models whose tiles cannot be exact.")
    ] = False,
    inpaint: Annotated[
        Path | None, typer.Option(help="Fill a hole in this OME-Zarr or TIFF instead; --out becomes a copy of it.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="The hole: an image, white where to fill, or polygons in GeoJSON (pixels).")
    ] = None,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="Bring a slide of another scale to the model's, into a new .ome.zarr.")
    ] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="Fill only polygons of this QuPath class; repeatable.", show_default="all but Ignore*"
        ),
    ] = None,
    mask_value: Annotated[
        int | None, typer.Option(help="Fill this value of the mask, a level of gray or a label, instead of white.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pixels around the hole whose cells update too.",
            show_default="the model's range, which is the most",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Paint an image larger than memory. Run the same command again to go on with one that was stopped."""
    if inpaint is not None and (size is not None or map_ is not None):
        raise InputError("name either --size or --map or, to fill a hole in a slide, --inpaint")
    if size is None and inpaint is None and map_ is None:
        raise InputError("name either --size or --map or, to fill a hole in a slide, --inpaint")
    given = (mask, mask_value, context, classes or None, rescale)
    if inpaint is None and any(value is not None and value is not False for value in given):
        raise InputError("--mask, --mask-value, --class, --context and --rescale need --inpaint")
    wanted = options.read_size(size) or (0, 0)
    computed = options.read_precision(precision)
    check_link(out)

    from morphogen.core.request import SamplingRequest
    from morphogen.slides.render import render
    from morphogen.slides.request import SlideRequest

    request = SlideRequest(
        model=model,
        size=wanted,
        out=out,
        seed=seed,
        sampling=SamplingRequest(sampler, sampling_steps, precision=computed),
        tile=tile,
        workers=workers,
        ray=ray,
        jpeg=jpeg,
        pixel_size=pixel_size,
        zarr=zarr,
        approximate=approximate,
        device=str(options.find_device(device)),
        source=inpaint,
        mask=mask,
        rescale=rescale,
        classes=tuple(classes or ()),
        mask_value=mask_value,
        context=context,
        map=map_,
        overwrite=overwrite,
    )
    path, painted = render(request)
    done = f"{inpaint} filled" if inpaint is not None else f"{map_} painted"
    what = done if size is None else f"{wanted[0]}x{wanted[1]} pixels"
    say(f"{what}: {path}" + ("" if painted else ", which was there already"))
