"""`morphogen expand RUN DATA --times 5`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli.options import (
    Device,
    Heredity,
    Json,
    Precision,
    Sampler,
    SamplingSteps,
    check_guidance,
    find_device,
    read_precision,
    set_options,
)
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError


def command(
    run: Annotated[str, typer.Argument(help="The folder of a run that was trained with labels.")],
    data: Annotated[
        str | None, typer.Argument(help="The images that it was trained on.  [default: where they were]")
    ] = None,
    times: Annotated[int, typer.Option(min=1, help="Generated images for every training image.")] = 5,
    out: Annotated[Path, typer.Option(help="The folder for them; an unfinished expansion in it goes on.")] = Path(
        "expanded"
    ),
    seed: Annotated[int, typer.Option(min=0, help="The first image's seed; the others follow it.")] = 0,
    guidance: Annotated[
        float, typer.Option(help="How far the labels count: 1 is no guidance, 1.5 as published.")
    ] = 1.5,
    network: Annotated[
        str,
        typer.Option(help="What near-copies are told by: pixels (at 32x32), or a feature network as for `evaluate`."),
    ] = "pixels",
    keep_copies: Annotated[
        bool, typer.Option("--keep-copies", help="Keep near-copies of training images, and count them.")
    ] = False,
    shard: Annotated[
        str, typer.Option(help="I/N: make only the I-th of N shares of the batches, in one of N processes.")
    ] = "1/1",
    sampler: Sampler = None,
    sampling_steps: SamplingSteps = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images computed at once; an expansion that goes on keeps to it.")
    ] = 32,
    heredity: Heredity = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json_: Json = False,
) -> None:
    """Enlarge a training set: generated images with exactly the labels of the run's training images, times N.

    Classes become folders, other labels a labels.csv. Near-copies of training images are replaced and counted.
    """
    computed_in = read_precision(precision)
    share = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if share is None or int(share[1]) > int(share[2]):
        raise InputError(f"--shard {shard}: it should be I/N, such as 2/4, with I from 1 to N")

    from morphogen.experiments.expansion import ExpansionSettings, expand
    from morphogen.tasks.pipeline import Pipeline
    from morphogen.training.run_folder import read_run

    read_run(Path(run))
    model = Pipeline.from_pretrained(run, find_device(device), computed_in).model
    set_options(model, heredity=heredity)
    check_guidance(guidance, ["those of the training images"])
    plan = ExpansionSettings(
        times=times,
        seed=seed,
        sampler=sampler,
        sampling_steps=sampling_steps,
        batch_size=batch_size,
        precision=computed_in,
        network=network,
        keep_copies=keep_copies,
        shard=(int(share[1]) - 1, int(share[2])),
        guidance=guidance,
        quiet=json_,
    )
    found = expand(model, Path(run), data, plan, out)
    if json_:
        say_json(found)
        return
    for names, count in found["labels"].items():
        say(f"{names or '(none)'}: {count}")
    what = "kept" if keep_copies else "replaced"
    copies = found["copies"] if keep_copies else found["replaced"]
    for remark in found["remarks"]:
        say(f"note: {remark}")
    say(f"{found['images']} of {found['of']} images in {out}; {copies} near-copies of training images {what}")
