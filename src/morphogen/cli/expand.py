"""`morphogen expand RUN DATA --times 5`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli.options import (
    Device,
    Heredity,
    Json,
    Precision,
    Sampler,
    SamplingSteps,
    check_guidance_scale,
    check_share,
    find_device,
    read_precision,
    read_shard,
    set_options,
)
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError
from morphogen.core.output_files import check_folder

if TYPE_CHECKING:
    from morphogen.data.expansions import ExpansionQuality


def command(
    run: Annotated[str, typer.Argument(help="The folder of a run that was trained with labels.")],
    data: Annotated[
        str | None, typer.Argument(help="The images that it was trained on.", show_default="where they were")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Their label table, if it is elsewhere now.", show_default="the run's")
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(help="The unlabelled images that it was trained on, if elsewhere now.", show_default="the run's"),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Of a run that was trained with maps: paint these label images, a folder of them, in turn.",
            show_default="maps made of the training maps",
        ),
    ] = None,
    times: Annotated[int, typer.Option(min=1, help="Generated images for every training image.")] = 5,
    out: Annotated[Path, typer.Option(help="The folder for them; an unfinished expansion in it goes on.")] = Path(
        "expanded"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the next images use the next seeds.")] = 0,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance scale: 1 is no guidance.", show_default="1.5 as published; of maps 1"
        ),
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            help="Features in which near-copies are found: pixels (at 32x32), or a feature network as for `evaluate`."
        ),
    ] = "pixels",
    keep_copies: Annotated[
        bool, typer.Option("--keep-copies", help="Keep near-copies of training images, and count them.")
    ] = False,
    agree: Annotated[
        float | None,
        typer.Option(
            help="Make images anew whose labels a classifier, trained on the training images alone, gives less than "
            "this probability, such as 0.5.",
            show_default="ask no classifier",
        ),
    ] = None,
    classifier_steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of that classifier.", show_default="1000")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="I/N: make only the I-th of N shares of the batches, in one of N processes.")
    ] = "1/1",
    sampler: Sampler = None,
    sampling_steps: SamplingSteps = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images computed at once; a resumed expansion keeps its own.")
    ] = 32,
    heredity: Heredity = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json_: Json = False,
) -> None:
    """Enlarge a training set: generated images with exactly the labels of the run's training images, times N.

    Classes become folders, other labels a labels.csv. Near-copies of training images are replaced and counted. Of a run
    that was trained with maps: pairs of an image and its map.
    """
    computed_in = read_precision(precision)
    check_folder(out)
    if guidance is not None:
        check_guidance_scale(guidance)
    if agree is not None:
        check_share("--agree", agree)
    if classifier_steps is not None and agree is None:
        raise InputError(f"--classifier-steps {classifier_steps}: no classifier is asked without --agree; leave it out")
    share = read_shard(shard)

    from morphogen.core.request import SamplingRequest
    from morphogen.experiments.expansion import ExpansionSettings, expand
    from morphogen.experiments.pair_expansion import expand_pairs
    from morphogen.tasks.pipeline import Pipeline
    from morphogen.training.run_folder import read_run

    read_run(Path(run))
    model = Pipeline.from_pretrained(run, find_device(device), computed_in).model
    set_options(model, heredity=heredity)
    guidance = (1.0 if model.classes else 1.5) if guidance is None else guidance
    settings = ExpansionSettings(
        times=times,
        seed=seed,
        request=SamplingRequest(sampler, sampling_steps, guidance, precision=computed_in),
        batch_size=batch_size,
        network=network,
        keep_copies=keep_copies,
        shard=share,
        agree=agree,
        classifier_steps=classifier_steps or 1000,
        quiet=json_,
    )
    if model.classes:
        if labels is not None or unlabelled is not None or agree is not None:
            raise InputError(f"{run} was trained with maps; leave --labels, --unlabelled and --agree out")
        found = expand_pairs(model, Path(run), data, settings, out, maps)
    elif maps is not None:
        raise InputError(f"--maps {maps}: {run} was trained without maps; leave it out")
    else:
        found = expand(model, Path(run), data, settings, out, labels, unlabelled)
    if json_:
        say_json(found.as_json())
        return
    for names, count in found.labels.items():
        say(f"{names or '(none)'}: {count}")
    for remark in found.remarks:
        say(f"note: {remark}")
    if found.quality is not None:
        say(_quality(found.quality))
    copies, what = (found.copies, "kept") if keep_copies else (found.replaced, "replaced")
    if model.classes:
        say(f"{found.images} of {found.of} images, each with its map, in {out}")
        return
    say(f"{found.images} of {found.of} images in {out}; {copies} near-copies of training images {what}")


def _quality(quality: ExpansionQuality) -> str:
    """A line for the figures of a whole expansion."""
    shares = f"precision {quality.precision:.2f}, recall {quality.recall:.2f}"
    line = f"against the training images in {quality.features}: {shares}"
    if quality.lpips is not None and quality.lpips_real is not None:
        line += f"; LPIPS diversity {quality.lpips:.3f} (real images {quality.lpips_real:.3f})"
    return line
