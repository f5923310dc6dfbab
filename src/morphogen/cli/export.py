"""`morphogen export RUN --to FORMAT OUT`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli import options
from morphogen.core.console import say
from morphogen.core.errors import InputError


def command(
    model: options.Trained,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What is written: of web a folder, of onnx a file.")],
    to: Annotated[
        str,
        typer.Option(
            help="web: a folder of static files that paints pictures in the browser; onnx: one evaluation, for other "
            "runtimes."
        ),
    ],
    level: options.Level = None,
    sampling_steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps of web, of dpm++.", show_default="12, as of slide")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a trained model for other programs."""
    if to == "web":
        if level is not None:
            raise InputError(f"--level {level}: the page is made of a whole model; export RUN/levels/{level} instead")
        from morphogen.export.web import export_web

        try:
            written = export_web(model, out, sampling_steps, overwrite)
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror or error}") from None
        served = shlex.quote(str(out))
        say(f"{out}: {written / 1e6:.1f} MB; serve it by any web server, such as python -m http.server -d {served}")
        return
    if to == "onnx":
        from morphogen.export.onnx import OPSET, export_onnx

        if sampling_steps is not None:
            raise InputError(f"--sampling-steps {sampling_steps}: an ONNX file holds one evaluation; leave it out")
        inputs, off = export_onnx(model, out, level, overwrite)
        say(f"{out}: opset {OPSET}, inputs {', '.join(inputs)}; onnxruntime agrees with PyTorch to {off:.1g}")
        return
    raise InputError(f"--to {to}: it should be web or onnx")
