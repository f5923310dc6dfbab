"""`morphogen paint RUN MAP`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import options
from morphogen.cli.pictures import find_sources
from morphogen.core.console import say
from morphogen.core.output_files import check_folder

if TYPE_CHECKING:
    from morphogen.core.model import Callback
    from morphogen.core.request import PrecisionChoice
    from morphogen.tasks.batch import Output


def command(
    model: options.Trained,
    map_: Annotated[
        Path,
        typer.Argument(
            metavar="MAP", help="A label image that says which class each pixel is of, or a folder of them."
        ),
    ],
    number: Annotated[int, typer.Option("--n", "-n", min=1, help="Images of each map.")] = 1,
    seed: options.Seed = 0,
    label: options.Label = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance scale, of the map: 1 is none, more follows it closer."),
    ] = None,
    sampler: options.Sampler = None,
    sampling_steps: options.SamplingSteps = None,
    nca_steps: options.NCASteps = None,
    batch_size: options.BatchSize = 16,
    film: options.Film = False,
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("painted"),
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Paint images of maps: which class each pixel is of in, an image of the same size out."""
    check_folder(out)
    computed_in = options.read_precision(precision)
    if guidance is not None:
        options.check_guidance_scale(guidance)
    if map_.suffix.lower() == ".json":
        _paint_again(model, map_, out, overwrite, device, computed_in)
        return
    sources = find_sources(map_, out)

    import numpy as np
    import torch

    from morphogen._version import VERSION
    from morphogen.core.errors import InputError
    from morphogen.core.files import sha256
    from morphogen.core.images import to_pil
    from morphogen.core.keys import Key
    from morphogen.core.request import SamplingRequest
    from morphogen.data.maps import read_map
    from morphogen.models import find_model, model_facts
    from morphogen.tasks.batch import Output, find_missing, write_outputs
    from morphogen.tasks.checks import check_size
    from morphogen.tasks.generate import generate, label_rows
    from morphogen.tasks.pipeline import Pipeline

    seeds = Key.of(range(seed, seed + number)).seeds
    folder = find_model(model)
    network = Pipeline.from_pretrained(folder, options.find_device(device), computed_in).model
    if not network.classes:
        raise InputError(f"{model} was trained without maps; use one that was trained with --maps, such as nuclei")
    classes = dict(network.classes)
    row = label_rows(network, [label] if label else None, 1)
    request = network.resolve(
        SamplingRequest(sampler, sampling_steps, 1.0 if guidance is None else guidance, nca_steps, computed_in)
    )
    settings = {"labels": label, "guidance": guidance, "nca_steps": nca_steps, "mpp": network.picture.mpp}
    facts: dict[str, object] = {
        "task": "painting",
        **model_facts(folder),
        "sampler": request.sampler,
        "sampling_steps": request.steps,
        **{k: v for k, v in settings.items() if v not in (None, [])},
        "precision": network.precision,
        "morphogen": VERSION,
    }
    outputs: list[Output] = []
    for k, source in enumerate(sources):
        size = read_map(source.path, classes).shape
        check_size(network, size)
        known = {**facts, "map": source.path.name, "map_sha256": sha256(source.path)}
        for s in seeds:
            path = out / f"{source.name}{f'-{s}' if number > 1 else ''}.png"
            if path.resolve() == source.path.resolve():
                raise InputError(f"the result would replace {path}, which is among the maps; name another --out")
            outputs.append(Output(path, {**known, "seed": s}, s, size, k))
    missing = find_missing(outputs, film, overwrite)

    def run_batch(batch: Sequence[Output], callback: Callback) -> list[object]:
        made = generate(
            network,
            [output.seed for output in batch],
            None,
            request,
            labels=None if row is None else row.expand(len(batch), -1),
            callback=callback,
            maps=torch.from_numpy(np.stack([read_map(sources[o.source].path, classes) for o in batch])),
        )
        return [picture for images in made for picture in to_pil(images)]

    there = len(outputs) - len(missing)
    films = network.to_pixels if film else None
    write_outputs("painting", out, missing, run_batch, batch_size=batch_size, done=there, films=films)
    say(f"{len(outputs)} images in {out}" + (f" ({there} were there already)" if there else ""))


def _paint_again(model: str, file: Path, out: Path, overwrite: bool, device: str, precision: PrecisionChoice) -> None:
    """Paint what the page of `serve` has saved: the same strokes on the same slide."""
    from PIL import Image

    from morphogen._version import VERSION
    from morphogen.core.errors import InputError
    from morphogen.core.files import sha256
    from morphogen.core.images import save_png
    from morphogen.models import find_model, model_facts
    from morphogen.studio.edits import read_painting
    from morphogen.studio.painting import paint_again
    from morphogen.tasks.batch import Output, find_missing, prepare_folder, writing
    from morphogen.tasks.pipeline import Pipeline

    painting = read_painting(file)
    folder = find_model(model)
    network = Pipeline.from_pretrained(folder, options.find_device(device), precision).model
    facts: dict[str, object] = {"task": "painting", **model_facts(folder), "painting_sha256": sha256(file)}
    facts |= {"seed": painting.seed, "precision": network.precision, "morphogen": VERSION}
    size = (painting.height, painting.width)
    output = Output(out / f"{file.stem}.png", facts, painting.seed, size)
    if find_missing([output], overwrite=overwrite):
        prepare_folder(out)
        try:
            pixels = paint_again(network, painting)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        with writing(out):
            save_png(output.path, Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), facts)
    say(f"{painting.width}x{painting.height} pixels, {len(painting.edits)} strokes: {output.path}")
