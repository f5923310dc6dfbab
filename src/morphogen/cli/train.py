"""`morphogen train DATA --out RUN`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError
from morphogen.core.output_files import check_folder

if TYPE_CHECKING:
    from morphogen.training.config import RunConfig


def command(
    out: Annotated[Path, typer.Option(help="The run's folder; an unfinished run in it is resumed.")],
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder (sub-folders are classes), a zip, a slide, an OME-Zarr, a folder of them, "
            "builtin:tissue, builtin:NAME, celeba, or medmnist:NAME. With --config it may "
            "be left out.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="See `morphogen models`.", show_default="diff-nca-small")] = None,
    size: Annotated[
        str | None, typer.Option(help="Height and width in pixels: 64 or 64x96.", show_default="64")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Stop after this many steps in total.", show_default="10000; 200000 with --recipe paper"),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Or stop after this many minutes in total.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a step.", show_default="8 of small models, else 16")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="default (ours) or paper (as published).")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes initial weights, data order and noise.", show_default="0")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="Images of other sizes: crop, stretch, pad, or random (crops).", show_default="auto"),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="photo, faces, icons, texture, pathology, microscopy or satellite; decides flips, turns and crops.",
            show_default="auto",
        ),
    ] = None,
    downscale: Annotated[float | None, typer.Option(help="Shrink images by this factor first.")] = None,
    mpp: Annotated[float | None, typer.Option(help="For slides, instead: micrometres that a pixel covers.")] = None,
    stain_jitter: Annotated[
        float | None, typer.Option(help="Vary the stains of tissue at random: 0.05 lightly, 0.2 strongly.")
    ] = None,
    colour: Annotated[
        str | None,
        typer.Option(
            help="rgb, gray, rgba (paints transparency too), or auto: what the images are.", show_default="auto"
        ),
    ] = None,
    background: Annotated[
        str | None, typer.Option(help="Colour under transparency and padding; the model then paints no transparency.")
    ] = None,
    max_value: Annotated[
        int | None, typer.Option(help="The brightest value of images of more than 8 bits, such as 4095 for 12 bits.")
    ] = None,
    max_bad: Annotated[
        int | None, typer.Option(help="Skip at most this many broken images.", show_default="10")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="A file of `morphogen data split`, auto (80/10/10), or none.", show_default="auto"),
    ] = None,
    fold: Annotated[int | None, typer.Option(help="The fold of the split file that is held out.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="For models that take labels: a table (CSV or Parquet: file, class or one 0/1 column a label, "
            "optional patient, eye and split), auto (folders are classes), or none.",
            show_default="auto",
        ),
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option(
            help="Learn to paint from maps: a folder or zip of label images of the same stems, the name of a folder "
            "inside DATA, such as maps; of slides GeoJSON; or auto:K: K classes of colour and texture that are found."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help='With --maps: a JSON table of their values or colours, {"0": "background", "1": "nucleus"}; null '
            "ignores one.",
            show_default="every value by itself",
        ),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            help="Learn from images without labels as well: a folder or zip of them, or rows: those of the label table "
            "that have none.",
            show_default="none",
        ),
    ] = None,
    strict_ids: Annotated[
        bool, typer.Option("--strict-ids", help="Refuse patients that may be one, such as 007 and 7.")
    ] = False,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            help="Work in latents: learn:4 (or 2, 8: pixels on a side of a cell) learns an autoencoder first; "
            "or a folder or hub id of a diffusers one (stabilityai/sd-vae-ft-ema as published), onnx:ENCODER,DECODER, "
            "or RUN/autoencoder; none: in pixels.",
            show_default="learn:4 for the small automata at 64 pixels or more, else none",
        ),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(
            help="Train a pyramid: a level paints the whole coarsely, each further one is told what the one before "
            "painted. 1 to 6.",
            show_default="1",
        ),
    ] = None,
    factor: Annotated[
        int | None,
        typer.Option(
            help="With --levels: pixels, on a side, that are one of the level before, 2 to 8.", show_default="4"
        ),
    ] = None,
    init: Annotated[str | None, typer.Option(help="Start from the weights of a run, bundled model or hub id.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML or JSON file of settings, such as a run.json.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Any setting: training.optimizer.learning_rate=1e-3, architecture.nca_steps=20. Repeatable."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.", show_default="float32")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the settings, as a file for --config, and what they will take; no more."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON for programs.")] = False,
) -> None:
    """Train a model on images, or go on with an interrupted training."""
    from morphogen.training.recipes import resolve
    from morphogen.training.run_folder import RunFolder

    check_folder(out)
    if data is None and config is None:
        raise InputError("missing argument 'data' (see morphogen train --help)")
    if json_ and not dry_run:
        raise InputError("--json goes with --dry-run; a run's own figures are in its metrics.jsonl")
    if factor is not None and levels in (None, 1) and config is None:
        raise InputError("--factor is between the levels of a pyramid; give --levels 2 or more, or leave it out")
    flags: dict[str, object] = {
        "model": model,
        "recipe": recipe,
        "init": init,
        "autoencoder": autoencoder,
        "levels": {"count": levels, "factor": factor},
        "data": {
            "source": data,
            "size": size,
            "fit": fit,
            "domain": domain,
            "downscale": downscale,
            "mpp": mpp,
            "stain_jitter": stain_jitter,
            "colour": colour,
            "background": background,
            "max_value": max_value,
            "max_bad": max_bad,
            "split": split,
            "fold": fold,
            "labels": labels,
            "maps": maps,
            "classes": None if classes is None else str(classes),
            "unlabelled": unlabelled,
            "strict_ids": strict_ids or None,
        },
        "training": {
            "steps": steps,
            "minutes": minutes,
            "batch_size": batch_size,
            "seed": seed,
            "devices": {"device": device, "precision": precision},
        },
    }
    resolved = resolve(_given(flags), config, set_ or [], before=RunFolder(out).recorded())
    if dry_run:
        _say_plan(resolved, out, json_)
        return
    from morphogen.training.loop import train

    result = train(resolved, out)
    if result.is_main_process:
        learnt_latents = resolved.model == "autoencoder"
        measured = "error of held-out reconstructions (0 to 255)" if learnt_latents else "held-out noise error"
        error = "" if result.noise_error is None else f", {measured} {result.noise_error:.4f}"
        say(f"trained {result.step} steps ({result.images} images), loss {result.loss:.4f}{error}")
        run, samples = shlex.quote(str(result.path)), shlex.quote(f"{result.path}-samples")
        following = f"sample {run} -n 16 --out {samples}"
        if learnt_latents:
            following = f"train {shlex.quote(resolved.data.source)} --autoencoder {run} --out ANOTHER"
        say(f"the model is in {result.path}; next: morphogen {following}")


def _given(flags: dict[str, object]) -> dict[str, object]:
    """Flags without those that the user left out."""
    kept = {k: _given(v) if isinstance(v, dict) else v for k, v in flags.items() if v is not None}
    return {k: v for k, v in kept.items() if v != {}}


def _say_plan(config: RunConfig, out: Path, as_json: bool) -> None:
    import yaml

    from morphogen.core.model_files import header
    from morphogen.data.sources import open_source
    from morphogen.training.build import build
    from morphogen.training.devices import Devices
    from morphogen.training.estimate import estimate_run
    from morphogen.training.run_folder import RunFolder
    from morphogen.training.warm_start import labels_of_run

    folder = RunFolder(out)
    folder.check_is_run()
    folder.check_not_inside(config.data.source)
    folder.check(config)
    if config.levels.count > 1:
        _say_levels(config, as_json)
        return
    labels = classes = None
    if config.data.source != "celeba" and not config.data.source.startswith("medmnist:"):  # these would be downloaded
        open_source(config.data)
        labels, classes = labels_of_run(config, folder), config.read_classes()
    with Devices(config.training.devices) as devices:
        model = build(config, devices, labels, config.open_autoencoder(), classes)
        estimate = estimate_run(config, model, devices)
    settings = {
        **header(),
        **config.model_dump(mode="json"),
        "architecture": model.config_dict()["architecture"],
    }
    if as_json:
        say_json({**settings, "estimate": dataclasses.asdict(estimate)})
        return
    for line in yaml.safe_dump(settings, sort_keys=False).splitlines():
        say(line)
    say()
    say(f"# parameters       {estimate.parameters:,} ({estimate.deployed_parameters:,} deployed)")
    first = f", learnt first in {_duration(estimate.autoencoder_seconds)}" if config.learns_autoencoder else ""
    each = f"{estimate.steps:,} steps of {estimate.seconds_per_step:.3g} s"
    if estimate.autoencoder_parameters:
        say(f"# autoencoder      {estimate.autoencoder_parameters:,} parameters{first}")
    say(f"# time             about {_duration(estimate.seconds)}: {each}")
    recomputing = ", computing activations again to save memory" if estimate.recompute else ""
    say(f"# memory           about {estimate.memory_bytes / 2**20:,.0f} MiB beside PyTorch and the data{recomputing}")
    say(f"# disk             about {estimate.disk_bytes / 2**20:,.1f} MiB in {out}")


def _say_levels(config: RunConfig, as_json: bool) -> None:
    """The plan of a pyramid: what each level learns from, and what it takes."""
    import yaml

    from morphogen.core.model_files import header
    from morphogen.training.build import build
    from morphogen.training.devices import Devices
    from morphogen.training.estimate import estimate_run
    from morphogen.training.levels import FEW, find_levels

    levels = find_levels(config)
    with Devices(config.training.devices) as devices:
        estimates = [
            estimate_run(
                level.config,
                build(level.config, devices, level.config.read_labels(), classes=level.config.read_classes()),
                devices,
            )
            for level in levels
        ]
    settings = {**header(), **config.model_dump(mode="json")}
    if as_json:
        found = [
            {"scale": level.scale, "size": level.config.data.size, "patches": level.patches, **dataclasses.asdict(each)}
            for level, each in zip(levels, estimates, strict=True)
        ]
        say_json({**settings, "estimate": {"levels": found}})
        return
    for line in yaml.safe_dump(settings, sort_keys=False).splitlines():
        say(line)
    say()
    for number, (level, each) in enumerate(zip(levels, estimates, strict=True)):
        few = f" (few: below {FEW} it repeats them)" if level.patches < FEW else ""
        say(f"# {level.described(number)}{few}")
        say(f"#   {each.parameters:,} parameters, {each.steps:,} steps of {each.seconds_per_step:.3g} s")
    say(f"# time             about {_duration(sum(each.seconds for each in estimates))}, level after level")
    say(f"# memory           about {max(each.memory_bytes for each in estimates) / 2**20:,.0f} MiB beside PyTorch")
    say(f"# disk             about {sum(each.disk_bytes for each in estimates) / 2**20:,.1f} MiB")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
