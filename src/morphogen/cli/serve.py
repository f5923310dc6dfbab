"""`morphogen serve RUN|SLIDE`."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli.options import Device, Precision, find_device, read_precision
from morphogen.core.console import say
from morphogen.core.errors import InputError

if TYPE_CHECKING:
    from morphogen.studio.views import View


def command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|SLIDE",
            help="A run's folder, a bundled model such as tissue, or a hub id; or a finished slide: "
            ".ome.zarr, .ome.tif, .dzi, or a scanner's, such as .svs.",
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Fixes the endless slide.")] = 0,
    sampler: Annotated[str | None, typer.Option(help="As in `morphogen sample`.", show_default="dpm++")] = None,
    sampling_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Sampling steps; more is slower.", show_default="12 of dpm++, 20 of others"),
    ] = None,
    zoom_out: Annotated[
        int,
        typer.Option(
            min=0, max=4, help="Halvings that one may zoom out of the (coarsest) level, each four times the work."
        ),
    ] = 2,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 for any free one.")] = 8765,
    cache_mb: Annotated[
        int, typer.Option(min=0, max=2**20, help="Disk for intermediate steps, in the folder for temporary files.")
    ] = 1024,
    deadline: Annotated[float, typer.Option(help="Seconds that a tile may take, 1 to 3600.")] = 60,
    root_path: Annotated[
        str, typer.Option(help="Path under which a proxy on this machine shows the page, such as /slides.")
    ] = "",
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Look at an endless slide, computed where you look, or at a finished one, in the browser."""
    computed_in = read_precision(precision)
    if not 1 <= deadline <= 3600:  # neither is "nan"
        raise InputError(f"--deadline {deadline:g}: it should be between 1 and 3600 seconds")
    if not re.fullmatch(r"(/[\w.~-]+)*/?", root_path, re.ASCII):
        raise InputError(f"--root-path {root_path}: it should be a path such as /slides")
    try:
        from morphogen.studio import server
    except ImportError as error:
        raise InputError(f'serve needs {error.name}: pip install "morphogen[studio]"') from None
    from morphogen.pyramids.opening import is_pyramid
    from morphogen.studio.queue import TileQueue

    listening = server.listen(port)  # before the model is loaded
    path = Path(what)
    try:
        if is_pyramid(path) and not (path.is_dir() and (path / "config.json").is_file()):
            view = _finished(path)
        else:
            view = _endless(what, seed, sampler, sampling_steps, zoom_out, cache_mb, device, computed_in)
    except BaseException:
        listening.close()
        raise
    address = f"http://{server.HOST}:{listening.getsockname()[1]}/"
    with contextlib.suppress(KeyboardInterrupt):  # which is how one ends it
        server.run(
            TileQueue(view, deadline_s=deadline),
            listening,
            lambda: say(f"{view.title} is at {address} (Ctrl-C ends it)", flush=True),
            root_path.rstrip("/"),
        )
    say("ended")


def _finished(path: Path) -> View:
    from morphogen.pyramids.opening import open_pyramid
    from morphogen.studio.views import FinishedView

    return FinishedView(open_pyramid(path), path.name)


def _endless(
    name: str,
    seed: int,
    sampler: str | None,
    steps: int | None,
    zoom_out: int,
    cache_mb: int,
    device: str,
    precision: str,
) -> View:
    from morphogen.studio.endless import endless_levels
    from morphogen.studio.views import EndlessView
    from morphogen.tasks.pipeline import Pipeline

    model = Pipeline.from_pretrained(name, find_device(device), read_precision(precision)).model
    levels = endless_levels(model, seed, sampler, steps, cache_mb * 2**20)
    return EndlessView(levels, Path(name).name or name, zoom_out, seed)
