"""`morphogen sample RUN|NAME|HUB_ID`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from morphogen.cli import options
from morphogen.core.console import say
from morphogen.core.output_files import check_folder

if TYPE_CHECKING:
    from PIL import Image

    from morphogen.core.model import Callback, StepInfo
    from morphogen.tasks.batch import Output

_FILM_IMAGES, _GRID_IMAGES = 16, 1024


def command(
    model: options.Trained,
    number: Annotated[int, typer.Option("--n", "-n", min=1, help="How many images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the next images use the next seeds.")] = 0,
    size: Annotated[
        str | None, typer.Option(help="Height and width in pixels: 96 or 96x128.", show_default="the model's")
    ] = None,
    level: options.Level = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddpm, ddim, dpm++, dpm++-single, dpm++-sde, unipc, euler, euler-a or heun; mean or draw for vnca.",
            show_default="ddim, and mean for vnca",
        ),
    ] = None,
    sampling_steps: options.SamplingSteps = None,
    label: options.Label = None,
    guidance: options.Guidance = None,
    nca_steps: options.NCASteps = None,
    heredity: options.Heredity = None,
    batch_size: options.BatchSize = 16,
    shard: options.Shard = "1/1",
    grid: Annotated[bool, typer.Option("--grid/--no-grid", help="Also write all images side by side.")] = True,
    film: options.Film = False,
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("samples"),
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    positions: options.Positions = None,
    spectrum: options.Spectrum = None,
) -> None:
    """Generate images: one PNG a seed, named by its seed, with its settings inside.

    The same command again goes on where it was interrupted.
    """
    wanted = options.read_size(size)
    options.check_guidance(guidance, label)
    check_folder(out)
    computed_in = options.read_precision(precision)
    first, step = options.read_shard(shard)

    from morphogen._version import VERSION
    from morphogen.core.images import read_metadata, sample_grid, save_film, save_png, to_pil
    from morphogen.core.keys import Key
    from morphogen.core.output_files import is_ours
    from morphogen.core.request import SamplingRequest
    from morphogen.diffusion.samplers import find_sampler
    from morphogen.models import find_model, model_facts
    from morphogen.tasks.batch import Output, find_missing, is_film_frame, write_outputs, writing
    from morphogen.tasks.checks import check_size
    from morphogen.tasks.generate import generate, label_rows
    from morphogen.tasks.pipeline import Pipeline

    find_sampler(sampler if sampler not in ("mean", "draw") else None)  # before the model is loaded
    seeds = range(seed, seed + number)
    Key.of((seeds[0], seeds[-1]))
    folder = find_model(model)
    network = Pipeline.from_pretrained(folder, options.find_device(device), computed_in, level=level).model
    options.set_options(network, positions=positions, spectrum=spectrum, heredity=heredity)
    row = label_rows(network, [label] if label else None, 1)
    height, width = wanted or (network.picture.height, network.picture.width)
    check_size(network, (height, width))
    scale = 1.0 if guidance is None else guidance
    request = network.resolve(SamplingRequest(sampler, sampling_steps, scale, nca_steps, computed_in))
    metadata: dict[str, Any] = {
        **model_facts(folder),
        "sampler": request.sampler,
        "sampling_steps": request.steps,
        "height": height,
        "width": width,
        "precision": network.precision,
        "morphogen": VERSION,
    }
    if network.picture.mpp is not None:
        metadata["mpp"] = network.picture.mpp
    inputs: dict[str, object] = {
        "positions": positions,
        "spectrum": spectrum,
        "heredity": heredity,
        "nca_steps": nca_steps,
        "level": level,
    }
    inputs |= {"labels": label, "guidance": guidance}
    metadata |= {k: v for k, v in inputs.items() if v not in (None, [])}
    outputs = [Output(out / f"{s}.png", {**metadata, "seed": s}, s, (height, width)) for s in seeds[first::step]]
    missing = find_missing(outputs, overwrite=overwrite)
    whole, made_from = step == 1 and number > 1, {**metadata, "seeds": list(seeds[:_GRID_IMAGES])}
    if whole and grid:
        found = read_metadata(out / "grid.png")
        is_ours(out / "grid.png", found, made_from, overwrite)
        options.check_grid_seeds(out / "grid.png", found, made_from["seeds"], overwrite)
    if film and not is_ours(out / "film.webp", read_metadata(out / "film.webp"), made_from, overwrite):
        missing = [*outputs[:batch_size], *(o for o in missing if o not in outputs[:batch_size])]  # it shows those
    frames: list[Image.Image] = []

    def run_batch(batch: Sequence[Output], callback: Callback) -> list[object]:
        def report(now: StepInfo) -> None:
            callback(now)
            if film and batch[0] is outputs[0] and is_film_frame(now):
                frames.append(sample_grid(to_pil(network.to_pixels(now.images[:_FILM_IMAGES]))))

        made = generate(
            network,
            [output.seed for output in batch],
            (height, width),
            request,
            labels=None if row is None else row.expand(len(batch), -1),
            callback=report,
        )
        return [picture for images in made for picture in to_pil(images)]

    there = len(outputs) - len(missing)
    write_outputs("sampling", out, missing, run_batch, batch_size=batch_size, done=there)
    written = f"{len(outputs)} images in {out}" + (f" ({there} were there already)" if there else "")
    with writing(out):
        if whole and grid:
            save_png(out / "grid.png", sample_grid(_read(outputs[:_GRID_IMAGES])), made_from)
            shown = "all" if number <= _GRID_IMAGES else f"the first {_GRID_IMAGES}"
            written += f", {shown} on {out / 'grid.png'}"
        if frames:
            save_film(out / "film.webp", frames, metadata=made_from)
        if film:
            written += f", the film {out / 'film.webp'}"
    say(written)


def _read(outputs: Sequence[Output]) -> list[Image.Image]:
    from PIL import Image

    pictures = []
    for output in outputs:
        with Image.open(output.path) as picture:
            pictures.append(picture.copy())
    return pictures
