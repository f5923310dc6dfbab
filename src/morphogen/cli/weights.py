"""`morphogen weights`: the files of the networks that measure images."""

from __future__ import annotations

from typing import Annotated

import typer

from morphogen.cli.options import Json
from morphogen.core.console import say, say_json

app = typer.Typer(help="List, fetch and check the files of feature networks.", no_args_is_help=True)

Network = Annotated[str, typer.Argument(help="fid-inception, dinov2, dinov2-small or lpips-vgg.")]


@app.command("list")
def list_(json_: Json = False) -> None:
    """List the files: where each belongs, and whether it is there and whole."""
    from morphogen.metrics.weights import FILES, find_corruption, path_of

    rows: list[dict[str, object]] = [
        {
            "network": name,
            "state": find_corruption(name) or "whole",
            "path": str(path_of(name)),
            "url": file.url,
            "sha256": file.sha256,
            "bytes": file.size or None,
            "licence": file.licence,
        }
        for name, file in FILES.items()
    ]
    if json_:
        say_json(rows)
        return
    for row in rows:
        say(f"{row['network']}: {row['state']}")
        for name in ("path", "url", "sha256", "licence"):
            say(f"    {name:<8} {row[name]}")


@app.command()
def fetch(network: Network) -> None:
    """Download a file, check its SHA-256, and put it into place."""
    from morphogen.core.progress import Progress
    from morphogen.metrics.weights import fetch, find_file

    size = find_file(network).size
    with Progress(f"fetching {network}", size or None, "bytes") as progress:
        path = fetch(network, lambda done: progress.update(done))
    say(path)


@app.command()
def verify(network: Network) -> None:
    """Check a file that is there; exit with 2 where it is missing or damaged."""
    from morphogen.core.errors import InputError
    from morphogen.metrics.weights import find_corruption, find_file, how_to_get, path_of

    wrong = find_corruption(network)
    if wrong is not None:
        raise InputError(f"{path_of(network)} is {wrong}; {how_to_get(find_file(network))}")
    say(f"{path_of(network)} is whole")


@app.command()
def path(network: Network) -> None:
    """Print where a file belongs."""
    from morphogen.metrics.weights import path_of

    say(path_of(network))
