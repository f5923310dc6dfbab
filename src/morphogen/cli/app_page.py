"""`morphogen app RUN`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli.options import Device, Precision, find_device, read_precision
from morphogen.core.console import say
from morphogen.core.errors import missing_extra


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, a bundled model such as tissue, or a hub id.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 for any free one.")] = 7860,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Open a page with a form for each task: sample, inpaint, vary, upscale."""
    computed_in = read_precision(precision)
    try:
        from morphogen.studio.server import listen
    except ImportError as error:
        raise missing_extra("app", error.name or "gradio") from None
    with listen(port) as listening:  # whether it is free, which Gradio would find out when half of it runs
        free = listening.getsockname()[1]
    from morphogen.studio.gradio_app import build_app, launch
    from morphogen.tasks.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(run, find_device(device), computed_in)
    name = Path(run).name or run
    page = build_app(pipeline, name)
    with contextlib.suppress(KeyboardInterrupt):  # which is how one ends it
        launch(page, free, lambda address: say(f"{name} is at {address} (Ctrl-C ends it)", flush=True))
    say("ended")
