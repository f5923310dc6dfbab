"""`morphogen sample RUN|NAME|HUB_ID`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from morphogen.cli.options import (
    Device,
    Heredity,
    NCASteps,
    Positions,
    Precision,
    Spectrum,
    check_guidance,
    find_device,
    read_precision,
    read_size,
    set_options,
)
from morphogen.core.console import say
from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_FILM_FRAMES, _FILM_IMAGES = 60, 16


def command(
    model: Annotated[str, typer.Argument(help="A run's folder, a bundled model such as tissue, or a hub id.")],
    number: Annotated[int, typer.Option("--n", "-n", min=1, help="How many images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="The first image's seed; the others follow it.")] = 0,
    size: Annotated[str | None, typer.Option(help="Height and width in pixels: 96 or 96x128.")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddpm, ddim, dpm++, dpm++-single, dpm++-sde, unipc, euler, euler-a or heun; mean or draw for vnca."
        ),
    ] = None,
    sampling_steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; more is slower.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label that all images have, of a model trained with labels. Repeatable.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How far the labels count: 1 is no guidance, 1.5 as published.")
    ] = None,
    nca_steps: NCASteps = None,
    heredity: Heredity = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images computed at once; changes no image.")] = 16,
    grid: Annotated[bool, typer.Option("--grid/--no-grid", help="Also write all images on one sheet.")] = True,
    film: Annotated[bool, typer.Option("--film", help="Also write an animation of the denoising.")] = False,
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("samples"),
    device: Device = "auto",
    precision: Precision = "auto",
    positions: Positions = None,
    spectrum: Spectrum = None,
) -> None:
    """Generate images: one PNG a seed, named by its seed, with its settings inside."""
    wanted = read_size(size)
    check_guidance(guidance, label)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    computed_in = read_precision(precision)

    from morphogen._version import VERSION
    from morphogen.core.images import grid as make_grid
    from morphogen.core.images import save_film, save_png, to_pil
    from morphogen.core.model import StepInfo
    from morphogen.core.progress import Progress
    from morphogen.core.request import SamplingRequest
    from morphogen.diffusion.samplers import find_sampler
    from morphogen.tasks.generate import generate, label_rows
    from morphogen.tasks.pipeline import Pipeline

    find_sampler(sampler if sampler not in ("mean", "draw") else None)  # before the model is loaded
    network = Pipeline.from_pretrained(model, find_device(device), computed_in).model
    set_options(network, positions=positions, spectrum=spectrum, heredity=heredity)
    rows = label_rows(network, [label] * number if label else None, number)
    height, width = wanted or (network.picture.height, network.picture.width)
    scale = 1.0 if guidance is None else guidance
    request = network.resolve(SamplingRequest(sampler, sampling_steps, scale, nca_steps, computed_in))
    metadata: dict[str, Any] = {
        "model": model,
        "sampler": request.sampler,
        "sampling_steps": request.steps,
        "height": height,
        "width": width,
        "precision": precision,
        "morphogen": VERSION,
    }
    told: dict[str, Any] = {"positions": positions, "spectrum": spectrum, "heredity": heredity, "nca_steps": nca_steps}
    told |= {"labels": label, "guidance": guidance}
    metadata |= {k: v for k, v in told.items() if v not in (None, [])}
    seeds = list(range(seed, seed + number))
    pictures: list[Image.Image] = []
    frames: list[Image.Image] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Progress("sampling", number, "images") as progress:

            def step_done(now: StepInfo) -> None:
                metadata["evaluations"] = now.steps
                first = len(pictures) == 0
                progress.update(len(pictures) + now.step / now.steps * min(batch_size, number - len(pictures)))
                if film and first and (now.step % -(-now.steps // _FILM_FRAMES) == 0 or now.step == now.steps):
                    frames.append(make_grid(to_pil(network.to_pixels(now.images[:_FILM_IMAGES]))))

            for batch in generate(
                network,
                seeds,
                (height, width),
                request,
                batch_size=batch_size,
                labels=rows,
                callback=step_done,
            ):
                for picture in to_pil(batch):
                    number_of_seed = seeds[len(pictures)]
                    save_png(out / f"{number_of_seed}.png", picture, {**metadata, "seed": number_of_seed})
                    pictures.append(picture)
        written = f"{len(pictures)} images in {out}"
        if grid and number > 1:
            save_png(out / "grid.png", make_grid(pictures), {**metadata, "seeds": seeds})
            written += f", all on {out / 'grid.png'}"
        if film:
            save_film(out / "film.webp", frames)
            written += f", the film {out / 'film.webp'}"
    except OSError as error:
        with contextlib.suppress(OSError):
            (out / "grid.png").unlink(missing_ok=True)
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    say(written)
