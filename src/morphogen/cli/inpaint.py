"""`morphogen inpaint RUN IMAGE`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import options
from morphogen.cli.pictures import ImageFile, PictureOptions, PictureTask, read_mask_file, run, with_picture_options
from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from morphogen.core.model import Callback, Model
    from morphogen.core.request import SamplingRequest
    from morphogen.tasks.batch import Job
    from morphogen.tasks.pictures import Picture


@with_picture_options(out="inpainted")
def command(
    chosen: PictureOptions,
    mask: Annotated[
        Path | None,
        typer.Option(help="An image, white where to fill; or a folder of them, named as the images, or as PNG."),
    ] = None,
    mask_value: Annotated[
        int | None, typer.Option(help="Fill this value of the mask, a level of gray or a label, instead of white.")
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="Fill a box: Y,X,HEIGHT,WIDTH in pixels from the upper left. Repeatable.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=0, help="Pixels around the hole whose cells update too.", show_default="as far as the model sees"
        ),
    ] = None,
    resample: Annotated[
        int, typer.Option(min=1, help="RePaint repeats of each group of sampling steps; 1 is plain sampling.")
    ] = 1,
    jump: Annotated[int, typer.Option(min=1, help="RePaint jump length: sampling steps in a group.")] = 10,
    rescale: options.Rescale = False,
) -> None:
    """Fill holes in images: the mask's, boxes, or without either what is transparent. All else stays as it is."""
    boxes = [read_box(text) for text in box or []]
    if mask_value is not None and mask is None:
        raise InputError("--mask-value needs --mask")
    if mask is not None and not mask.exists():
        raise InputError(f"--mask {mask} does not exist")
    if mask is not None and mask.is_dir() and not chosen.image.is_dir():
        raise InputError(f"--mask {mask} is a folder, but {chosen.image} is one image; name one mask")

    def hole(source: ImageFile, picture: Picture) -> tuple[Tensor, dict[str, object]]:
        file = mask
        if mask is not None and mask.is_dir():
            file = mask / source.path.relative_to(chosen.image)
            file = file if file.is_file() else file.with_suffix(".png")
        return find_hole(picture, str(source.path), file, boxes, mask_value)

    def run_batch(network: Model, jobs: Sequence[Job], request: SamplingRequest, callback: Callback) -> list[object]:
        from morphogen.diffusion.known import Resampling
        from morphogen.tasks.batch import fill

        resampling = Resampling(jump, resample) if resample > 1 else None
        return fill(network, jobs, context=context, resampling=resampling, request=request, callback=callback)

    own = {"context": context, "resample": resample, **({"jump": jump} if resample > 1 else {})}

    def passes(network: Model, _: Picture, hole: Tensor | None) -> list[tuple[int, float]]:
        from morphogen.tasks.windows import find_windows

        assert hole is not None
        windows = find_windows(network, hole, context)
        return [(math.prod(window.size), resample) for window in windows]

    run(PictureTask("inpainting", run_batch, own, passes, hole, rescale), chosen)


def read_box(text: str) -> tuple[int, int, int, int]:
    """(y, x, height, width) of `--box 10,20,30,40`. Raises InputError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    if match is None:
        raise InputError(f"--box {text}: it should be Y,X,HEIGHT,WIDTH, four whole numbers such as 10,20,32,32")
    y, x, height, width = (int(part) for part in match.groups())
    if not height or not width:
        raise InputError(f"--box {text}: its height and width should be at least 1")
    return y, x, height, width


def find_hole(
    picture: Picture,
    name: str,
    file: Path | None,
    boxes: Sequence[tuple[int, int, int, int]],
    value: int | None = None,
) -> tuple[Tensor, dict[str, object]]:
    """Where to fill a picture, boolean (H, W), and what its metadata say of it.

    Raises InputError, naming the option, where a mask or box does not fit, or nothing or everything would be filled.
    """
    import torch

    from morphogen.core.files import sha256
    from morphogen.tasks.masks import as_mask
    from morphogen.tasks.pictures import transparent

    height, width = picture.size
    hole = torch.zeros(height, width, dtype=torch.bool)
    said: dict[str, object] = {}
    if file is not None:
        if not file.exists():
            raise InputError(f"--mask {file} does not exist, which {name} needs")
        hole |= as_mask(read_mask_file(file), picture.size, f"--mask {file}", value)
        said["mask_sha256"] = sha256(file)
        if value is not None:
            said["mask_value"] = value
        if not hole.any():
            raise InputError(
                f"--mask {file} is empty: it marks nothing to fill (its highest value is 0); white is filled"
            )
    for y, x, high, wide in boxes:
        if y + high > height or x + wide > width:
            raise InputError(
                f"--box {y},{x},{high},{wide} reaches outside {name}, which is {height}x{width} (height x width)"
            )
        hole[y : y + high, x : x + wide] = True
    if boxes:
        said["boxes"] = [list(box) for box in boxes]
    if file is None and not boxes:
        found = transparent(picture)
        if found is None:
            raise InputError(f"{name} has no transparent pixels to fill; name a --mask or a --box")
        hole = found
    if hole.all():
        marked = f"--mask {file}" if file is not None else "--box" if boxes else "the transparency"
        raise InputError(
            f"{marked} marks every pixel of {name}, so nothing is known of it; `morphogen sample` paints new images"
        )
    return hole, said
