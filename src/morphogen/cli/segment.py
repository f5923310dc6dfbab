"""`morphogen segment DATA --maps maps`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli.options import Json, Precision, check_share, read_precision
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError
from morphogen.core.output_files import check_folder


def command(
    data: Annotated[str, typer.Argument(help="Annotated images: a folder or a zip, as for `train --maps`.")],
    maps: Annotated[
        str, typer.Option(help="Their maps: a folder or zip, or the name of a folder inside DATA.")
    ] = "maps",
    classes: Annotated[
        Path | None, typer.Option(help="A JSON table of the maps' values.", show_default="every value by itself")
    ] = None,
    split: Annotated[str, typer.Option(help="A file of `morphogen data split`, or auto: 80/10/10.")] = "auto",
    fold: Annotated[int | None, typer.Option(min=0, help="The fold of the split file that is tested on.")] = None,
    downscale: Annotated[float | None, typer.Option(help="Shrink images and maps by this factor first.")] = None,
    extra: Annotated[Path | None, typer.Option(help="An expansion, painted pairs to learn from as well.")] = None,
    mix: Annotated[float | None, typer.Option(help="Their share of a batch.", show_default="0.5")] = None,
    real: Annotated[
        int | None,
        typer.Option(
            min=0, help="Learn from so many annotated training images; 0: from painted ones alone.", show_default="all"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for results; what is done in it is not done again.")] = Path(
        "segmentation"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps of every training.")] = 400,
    batch_size: Annotated[int, typer.Option(min=2, help="Crops of 96x96 in a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="AdamW's, at the start; it falls to zero.")] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Fixes first weights, order and augmentation.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings, with consecutive seeds from --seed on.")] = 1,
    baseline: Annotated[Path | None, typer.Option(help="Results of this command to compare with.")] = None,
    precision: Precision = "auto",
    json_: Json = False,
) -> None:
    """Train and test a segmenter: what annotated images, or painted pairs of `expand`, are worth to it.

    A small U-Net; Dice of the pixels of every class, F1 of the objects; a report with pictures.
    """
    wanted = read_precision(precision)
    check_folder(out)
    if mix is not None:
        check_share("--mix", mix)
        if extra is None:
            raise InputError(f"--mix {mix:g}: there are no painted images without --extra; leave it out")
    if not 0 < learning_rate <= 1:
        raise InputError(f"--learning-rate {learning_rate:g}: it should be more than 0 and at most 1")

    from morphogen.core.validation import validate
    from morphogen.data.config import DataConfig
    from morphogen.experiments.segmentation import SegmentationSettings, segment
    from morphogen.training.devices import resolve_precision

    settings: dict[str, object] = {"source": data, "maps": maps, "split": split, "fold": fold, "size": 8}
    settings |= {"fit": "random", "labels": "none", "classes": None if classes is None else str(classes)}
    settings |= {} if downscale is None else {"downscale": downscale}
    plan = SegmentationSettings(
        real=real,
        extra=extra,
        mix=0.5 if mix is None else mix,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=resolve_precision(wanted, "cpu"),
        seeds=tuple(range(seed, seed + seeds)),
        baseline=baseline,
        quiet=json_,
    )
    results = segment(validate(DataConfig, settings, "segment"), plan, out)
    if json_:
        say_json(results.as_json())
        return
    for name in results.classes:
        dice = sum(run.dice[name] for run in results.runs) / len(results.runs)
        found = [run.object_f1[name] for run in results.runs if name in run.object_f1]
        say(f"{name:<16}Dice {dice:.3f}" + (f"  object F1 {sum(found) / len(found):.3f}" if found else ""))
    say(f"{'all but the first':<16} Dice {results.dice:.3f}  object F1 {results.object_f1:.3f}")
    if results.baseline is not None:
        p = "" if results.baseline.p is None else f", p {results.baseline.p:.3g} over seeds"
        say(f"against {results.baseline.file}: Dice {results.baseline.difference:+.3f}{p}")
    for remark in results.remarks:
        say(f"note: {remark}")
    say(f"figures in {out / 'results.json'}, the report in {out / 'report.html'}")
