"""`morphogen`: the commands, and what an error becomes on the way out."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from morphogen._version import VERSION
from morphogen.cli import data, info, models, sample, train
from morphogen.core.errors import Interrupted, MorphogenError

app = typer.Typer(
    name="morphogen",
    help="Image diffusion with neural cellular automata: train on a folder of images, paint any size.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("sample")(sample.command)
app.command("models")(models.command)
app.command("info")(info.command)
app.add_typer(data.app, name="data")


def _version(value: bool) -> None:
    if value:
        print(f"morphogen {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 wrong use or input, 3 interrupted with the work saved, 1 a bug."""
    # The hub's client would otherwise say on standard error that it has no token, and retry for long when offline.
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except MorphogenError as error:
        print(f"morphogen: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"morphogen: {Interrupted('interrupted; what was finished is kept')}", file=sys.stderr)
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
