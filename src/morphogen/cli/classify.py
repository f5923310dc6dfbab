"""`morphogen classify DATA --split SPLIT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from morphogen.cli.options import Device, Json, Overwrite, Precision, find_device, read_precision
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError
from morphogen.core.output_files import check_folder, check_results, same_place

if TYPE_CHECKING:
    from morphogen.experiments.classification_records import ClassificationResults


def command(
    data: Annotated[str, typer.Argument(help="Images with labels: a folder of classes, a zip, or with --labels.")],
    split: Annotated[
        str, typer.Option(help="A file of `morphogen data split`, or auto: 80/10/10, by patient where they are known.")
    ] = "auto",
    labels: Annotated[str, typer.Option(help="A label table, or auto: folders are classes.")] = "auto",
    unlabelled: Annotated[
        str | None, typer.Option(help="rows: pass over rows of the label table that have no label.")
    ] = None,
    extra: Annotated[
        str | None, typer.Option(help="Expansions to train on as well; {fold} stands for the fold's number.")
    ] = None,
    mix: Annotated[
        float | None,
        typer.Option(help="The largest share of generated images in a batch, with --extra.", show_default="0.25"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="With --extra: mix (that share throughout), pretrain (generated images in the first half of the "
            "steps, real ones in the second), both (that share first, real ones last), or choose: train as both and "
            "without, and keep what is better on validation images.",
            show_default="choose",
        ),
    ] = None,
    network: Annotated[
        str, typer.Option(help="The classifier: resnet34, or timm:NAME for a model of timm, such as timm:resnet50.")
    ] = "resnet34",
    weights: Annotated[
        str | None,
        typer.Option(
            help="What it begins with: imagenet (timm fetches them) or a safetensors file.", show_default="random"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for results; what is done in it is not done again.")] = Path(
        "classification"
    ),
    fold: Annotated[int | None, typer.Option(min=0, help="Only this fold.")] = None,
    augment: Annotated[str, typer.Option(help="geometric (mirror, turn, tilt, zoom, shift) or none.")] = "geometric",
    size: Annotated[str, typer.Option(help="Height and width that the classifier sees.")] = "64",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every training.", show_default="1000")] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Instead of --steps: passes over the real training images, not counting those of --extra."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Adam's, at the start; it falls to zero.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Fixes first weights, order and augmentation.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings, with consecutive seeds from --seed on.")] = 1,
    baseline: Annotated[Path | None, typer.Option(help="A results.json of this command to compare with.")] = None,
    test: Annotated[str, typer.Option(help="The paired test against it: t or wilcoxon.")] = "t",
    fit: Annotated[str, typer.Option(help="Images of other sizes: crop, stretch or pad.")] = "crop",
    domain: Annotated[
        str, typer.Option(help="As for `train`; decides which mirrorings and turns are natural.")
    ] = "auto",
    name: Annotated[str | None, typer.Option(help="What the table calls this training set.")] = None,
    device: Device = "auto",
    precision: Precision = "float32",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Train and test a classifier fold by fold: what a training set, or its expansion, is worth to a classifier.

    Macro sensitivity, specificity, AUC, F1, F1 of the two first, and mAP, of images and of eyes (the mean of an eye's
    scans, where the label table has a column eye); a report like table 2 of Elbatel et al.
    """
    wanted = read_precision(precision)
    if augment not in ("geometric", "none"):
        raise InputError(f"--augment {augment}: it should be geometric or none")
    if fit not in ("crop", "stretch", "pad"):
        raise InputError(f"--fit {fit}: it should be crop, stretch or pad")
    if steps is not None and epochs is not None:
        raise InputError("give one of --steps and --epochs")
    if epochs is not None and not 0 < epochs < 1e6:
        raise InputError(f"--epochs {epochs:g}: it should be more than 0")
    if not 0 < learning_rate <= 1:
        raise InputError(f"--learning-rate {learning_rate:g}: it should be more than 0 and at most 1")
    check_folder(out)

    from morphogen.core.validation import validate
    from morphogen.data.config import DataConfig
    from morphogen.data.unlabelled import rows_only
    from morphogen.experiments.classification import classify
    from morphogen.experiments.classification_settings import ClassificationSettings, Test
    from morphogen.experiments.classifier import DEFAULT_MIX, check_schedule
    from morphogen.training.devices import resolve_precision

    for option, value in (("mix", mix), ("schedule", schedule)):
        if value is not None and extra is None:
            raise InputError(f"--{option} {value}: there are no generated images without --extra; leave it out")
    check_schedule(DEFAULT_MIX if mix is None else mix, schedule or "choose")
    if test not in get_args(Test):
        raise InputError(f"--test {test}: it should be t or wilcoxon")
    if labels == "none":
        raise InputError("--labels none: there is nothing to classify by; name a table, or auto for folders")
    rows_only(unlabelled, "a classifier")
    settings: dict[str, object] = {
        "source": data,
        "split": split,
        "labels": labels,
        "size": size,
        "fit": fit,
        "domain": domain,
    }
    settings |= {"unlabelled": unlabelled}
    if fold is not None and split == "auto":
        raise InputError(f"--fold {fold} needs a split file with folds; give --split FILE")
    where = find_device(device)
    plan = ClassificationSettings(
        steps=steps or (1000 if epochs is None else None),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        augment=cast(Any, augment),
        seeds=tuple(range(seed, seed + seeds)),
        fold=fold,
        extra=extra,
        baseline=baseline,
        test=cast(Any, test),
        name=name,
        network=network,
        weights=weights,
        mix=DEFAULT_MIX if mix is None else mix,
        schedule=cast(Any, schedule or "choose"),
        precision=resolve_precision(wanted, where.type),
        device=str(where),
        quiet=json_,
    )
    asked: dict[str, object] = {"data": same_place(data), "expanded": extra is not None, "augment": augment}
    asked |= {"batch_size": batch_size, "steps": plan.steps, "epochs": epochs, "learning_rate": learning_rate}
    asked |= {"network": network, "weights": weights}
    if extra is not None:
        asked |= {"mix": plan.mix, "schedule": plan.schedule}
    check_results(out, ("results.json", "report.html"), _made_with, asked, overwrite)
    results = classify(validate(DataConfig, settings, "classify"), plan, out)
    if json_:
        say_json(results.as_json())
        return
    show(results)
    say(f"figures in {out / 'results.json'}, the report in {out / 'report.html'}")


def _made_with(found: dict[str, object]) -> dict[str, object] | None:
    """The settings of a classification in results.json; None for results of anything else."""
    data, settings = found.get("data"), found.get("settings")
    if not str(found.get("format")).startswith("morphogen-classification") or not isinstance(data, dict):
        return None
    own = settings if isinstance(settings, dict) else {}
    named = ["augment", "batch_size", "steps", "epochs", "learning_rate"]
    of = {"data": same_place(data.get("source")), "expanded": found.get("extra") is not None}
    of |= {"network": own.get("network", "resnet34"), "weights": own.get("weights")}
    if found.get("extra") is not None:
        named += ["mix", "schedule"]
    return {**of, **{key: own.get(key) for key in named}}


def show(results: ClassificationResults) -> None:
    """The tables, and what a reader must know of them."""
    from morphogen.experiments.classification_report import head, table_rows
    from morphogen.metrics.scores import SCORES

    for level in results.figures:
        say(head(results, level))
        rows = [["", *SCORES.values()], *table_rows(results, level)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if results.baseline is not None:
        say(f"p: {results.baseline.test}; * below 0.05")
    for remark in results.remarks:
        say(f"note: {remark}")
