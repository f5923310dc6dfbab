"""`morphogen evaluate RUN --data DATA -n 2048`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from morphogen.cli.options import (
    Device,
    Heredity,
    Json,
    Overwrite,
    find_device,
    read_precision,
    set_options,
)
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError
from morphogen.core.output_files import check_folder

if TYPE_CHECKING:
    from morphogen.metrics.records import EvaluationResults


def command(
    model: Annotated[
        str | None, typer.Argument(help="A run's folder, a bundled model, or a hub id; none with --images.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The real images: a folder, zip or named set.", show_default="the run's")
    ] = None,
    number: Annotated[int, typer.Option("--n", "-n", min=2, help="How many images to generate.")] = 2048,
    images: Annotated[Path | None, typer.Option(help="Measure the images of this folder or zip instead.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for results.", show_default="RUN/evaluation, or evaluation")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="fid-inception, dinov2, dinov2-small, timm:NAME or onnx:FILE. Repeatable.",
            show_default="fid-inception",
        ),
    ] = None,
    lpips: Annotated[
        str, typer.Option(help="auto (where its file is here), none, lpips-vgg, or lpips-vgg:FILE.")
    ] = "auto",
    part: Annotated[str, typer.Option(help="Compare with the test, val or train part of the data.")] = "test",
    real_images: Annotated[
        int | None, typer.Option(min=2, help="Number of held-out images to compare with.", show_default="that of -n")
    ] = None,
    train_images: Annotated[
        int, typer.Option(min=2, help="Largest number of training images to extract features of.")
    ] = 10_000,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs that LPIPS is averaged over.")] = 256,
    split: Annotated[
        str | None, typer.Option(help="Another split file, auto or none.", show_default="the run's")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="The fold of the split file that is held out.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="A label table of the real images, auto or none.", show_default="the run's")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the real images.", show_default="the model's")] = None,
    fit: Annotated[str | None, typer.Option(help="crop, stretch, pad or random.", show_default="the run's")] = None,
    downscale: Annotated[float | None, typer.Option(help="Shrink real images by this factor first.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first generated image's seed.", show_default="0")] = None,
    sampler: Annotated[str | None, typer.Option(help="See `morphogen sample --help`.")] = None,
    sampling_steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; more is slower.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance scale, for a model with labels; 1 is no guidance.", show_default="1"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images computed at once; changes no image.")] = 32,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep features for the next time.")] = True,
    heredity: Heredity = None,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16, to generate in.", show_default="auto")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Measure a model: FID, KID, diversity, precision and recall, and whether it memorised its training images."""
    computed_in = read_precision(precision or "auto")
    if part not in ("test", "val", "train"):
        raise InputError(f"--part {part}: it should be test, val or train")
    if model is None and images is None:
        raise InputError("name a run or a model, or give --images FOLDER")
    made_by = {"seed": seed, "sampler": sampler, "sampling-steps": sampling_steps, "guidance": guidance}
    made_by |= {"heredity": heredity, "precision": precision}
    for option, value in made_by.items():
        if images is not None and value is not None:
            raise InputError(f"--{option} {value}: with --images nothing is generated; leave it out")
    if out is not None:
        check_folder(out)

    from morphogen.core.request import SamplingRequest
    from morphogen.data.source import Part
    from morphogen.metrics.evaluate import EvaluationSettings
    from morphogen.metrics.features import cache_folder
    from morphogen.metrics.measure import measure
    from morphogen.models import find_model, load_model

    assert part in get_args(Part)
    where = find_device(device)
    folder = find_model(model) if model is not None else None
    loaded = load_model(folder).to(where) if folder is not None else None
    if loaded is not None:
        set_options(loaded, heredity=heredity)
    given: dict[str, object] = {
        "split": split,
        "fold": fold,
        "labels": labels,
        "size": size,
        "fit": fit,
        "downscale": downscale,
    }
    plan = EvaluationSettings(
        count=number,
        networks=tuple(network or ("fid-inception",)),
        lpips=lpips,
        part=cast(Part, part),
        real_images=real_images,
        train_images=train_images,
        pairs=pairs,
        seed=seed or 0,
        request=SamplingRequest(sampler, sampling_steps, 1.0 if guidance is None else guidance, precision=computed_in),
        batch_size=batch_size,
        device=str(where),
        cache=cache_folder() if cache else None,
        quiet=json_,
        data_settings={k: v for k, v in given.items() if v is not None},
    )
    results, target = measure(loaded, folder, images, data, plan, out, overwrite)
    if json_:
        say_json(results.as_json())
        return
    show(results)
    say(f"figures in {target / 'results.json'}, the report in {target / 'report.html'}")


def show(results: EvaluationResults) -> None:
    """The table, and what a reader must know of it."""
    from morphogen.metrics.format_table import rows_of

    rows = [("FIGURE", "VALUE", "REAL AGAINST REAL", "IMAGES"), *rows_of(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for remark in results.remarks:
        say(f"note: {remark}")
