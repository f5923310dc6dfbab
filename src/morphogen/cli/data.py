"""`morphogen data`: check images before training, and split them into training, validation and test parts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from morphogen.cli.options import Overwrite
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError

app = typer.Typer(help="Check a set of images, or split it for training and testing.", no_args_is_help=True)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A folder, zip, image, slide, OME-Zarr, builtin:NAME, celeba or medmnist:NAME."
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        help="A label table, CSV or Parquet: file, class (or one 0/1 column a label), optional patient, eye and "
        "split. Or auto (folders are classes) or none."
    ),
]
StrictIds = Annotated[
    bool,
    typer.Option("--strict-ids", help="Refuse patients that are kept apart though they may be one, such as 007 and 7."),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(help="rows: rows of the label table may have no label; such images stay with their patient."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _config(**settings: object) -> Any:
    from morphogen.core.validation import validate
    from morphogen.data.config import DataConfig

    return validate(DataConfig, settings, "data")


@app.command()
def check(
    data: Data,
    size: Annotated[str, typer.Option(help="The training size, HxW or one number; smaller images are listed.")] = "64",
    max_pixels: Annotated[int, typer.Option(help="Images of more pixels are listed as oversized.")] = 200_000_000,
    max_value: Annotated[
        int | None, typer.Option(help="The brightest value of images of more than 8 bits, such as 4095 for 12 bits.")
    ] = None,
    labels: Labels = "auto",
    unlabelled: Unlabelled = None,
    strict_ids: StrictIds = False,
    as_json: AsJson = False,
) -> None:
    """List what is wrong with images: unreadable, truncated, too small, oversized, exact duplicates, several frames of
    which the first is used, unused bits; and files and folders that are passed over. Exits with 2 if there is any.

    Also counts the images of each combination of labels.
    """
    from morphogen.data.check import check_images
    from morphogen.data.unlabelled import rows_only

    rows_only(unlabelled, "a check")

    report = check_images(
        _config(
            source=data,
            size=size,
            max_pixels=max_pixels,
            max_value=max_value,
            labels=labels,
            unlabelled=unlabelled,
            strict_ids=strict_ids,
        )
    )
    if as_json:
        say_json(report.as_json())
    else:
        _show(report)
    if report.problems:
        raise typer.Exit(2)


def _show(report: Any) -> None:
    """One line an image, in columns as wide as they need to be, so that it can be read and searched."""
    rows = [(p.name, p.kind, p.detail) for p in report.problems]
    if rows:
        rows.insert(0, ("IMAGE", "PROBLEM", "DETAIL"))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, kind, detail in rows:
        say(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {detail}")
    found = ", ".join(f"{count} {kind}" for kind, count in report.counts().items()) or "nothing wrong"
    for names, count in report.labels.items():
        say(f"label {names or '(none)'}: {count}")
    kind = {"gray": "; all are gray", "rgba": "; most are transparent in places"}.get(report.colour, "")
    say(f"{report.source}: {report.images} images, {found}{kind}")


@app.command()
def split(
    data: Data,
    out: Annotated[Path, typer.Option(help="The split file to write (JSON).")],
    folds: Annotated[int | None, typer.Option(help="Make this many folds, for `train --split FILE --fold K`.")] = None,
    ratios: Annotated[str | None, typer.Option(help="TRAIN/VAL/TEST; 80/10/10 unless --folds is given.")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="What must stay together: image, slide, patient or folder.",
            show_default="patient where the label table names them, else image",
        ),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression whose (group) is the patient or slide.")
    ] = None,
    labels: Labels = "auto",
    unlabelled: Unlabelled = None,
    strict_ids: StrictIds = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another split.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a split file: parts or folds of whole images, slides, patients or folders, never of patches."""
    from typing import cast, get_args

    from morphogen.core.output_files import is_ours
    from morphogen.data.sources import open_source
    from morphogen.data.splits import By, make_split, parse_ratios, read_split, write_split
    from morphogen.data.unlabelled import rows_only

    if by is not None and by not in get_args(By):
        raise InputError(f"--by {by!r} should be one of {', '.join(get_args(By))}")
    rows_only(unlabelled, "a split")
    config = _config(source=data, split_seed=seed, labels=labels, unlabelled=unlabelled, strict_ids=strict_ids)
    shares = None if ratios is None else parse_ratios(ratios)
    made = make_split(open_source(config), shares, folds, cast(By | None, by), pattern, seed)
    found = None
    with contextlib.suppress(InputError):
        found = read_split(out)
    if not is_ours(out, found, made, overwrite):
        write_split(made, out)
    counts: dict[str, int] = {}
    for part in made["assignment"].values():
        counts[str(part)] = counts.get(str(part), 0) + 1
    if as_json:
        say_json({"out": str(out), "folds": folds, "by": made["by"], "counts": counts})
        return
    order = sorted(counts, key=lambda p: ("train", "val", "test").index(p) if folds is None else int(p))
    parts = ", ".join(f"{'fold ' if folds else ''}{part}: {counts[part]}" for part in order)
    say(f"{out}: {parts} (by {made['by']})")


@app.command("map")
def map_(
    model: Annotated[str, typer.Argument(help="A run that was trained with --maps auto:K, or a model of one.")],
    image: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="The folder for the maps.")] = Path("maps"),
    overwrite: Overwrite = False,
) -> None:
    """Write the maps of images as a run tells its classes apart: label images for `morphogen paint`."""
    import numpy as np
    from PIL import Image

    from morphogen.cli.pictures import find_sources
    from morphogen.core.files import LARGEST_IMAGE, read_bytes, sha256
    from morphogen.core.images import read_metadata, save_png
    from morphogen.core.output_files import check_folder, is_ours
    from morphogen.data.clusters import classes_in
    from morphogen.data.decode import open_picture
    from morphogen.models import load_model
    from morphogen.tasks.batch import prepare_folder, writing

    check_folder(out)
    sources = find_sources(image, out)
    condition = getattr(load_model(model), "condition", None)
    if condition is None or condition.clusters is None:
        raise InputError(f"{model} was not trained with --maps auto:K, so it finds no classes in pictures")
    prepare_folder(out)
    for source in sources:
        path, facts = out / f"{source.name}.png", {"task": "map", "input_sha256": sha256(source.path)}
        facts["clusters"] = condition.clusters.model_dump_json()
        if is_ours(path, read_metadata(path), facts, overwrite):
            continue
        picture = open_picture(read_bytes(source.path, limit=LARGEST_IMAGE), str(source.path))
        found = classes_in(np.asarray(picture.convert("RGB")), condition.clusters)
        with writing(out):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(path, Image.fromarray(found), facts)
    say(f"{len(sources)} maps in {out}, of the values 0 to {len(condition.clusters.centres) - 1}")
