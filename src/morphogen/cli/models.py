"""`morphogen models`."""

from __future__ import annotations

import sys

from morphogen.cli.options import Json
from morphogen.core.console import say, say_json, writable


def command(json_: Json = False) -> None:
    """List the models that can be trained, and those that come trained."""
    import torch

    from morphogen.models import PRESETS, bundled_names, create_model

    rows: list[dict[str, object]] = []
    for name, preset in PRESETS.items():
        with torch.device("meta"):  # only counted
            model = create_model(name)
        rows.append(
            {
                "name": name,
                "parameters": model.parameter_count(),
                "deployed_parameters": model.deployed_parameter_count(),
                "published_parameters": preset.published_parameters,
                "summary": preset.summary,
            }
        )
    if json_:
        say_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "parameters", "deployed", "published", "what it is")
    for column in table.columns[:4]:
        column.no_wrap = True  # a narrow terminal breaks the summary, and cuts no name
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in rows:
        numbers = [row["parameters"], row["deployed_parameters"], row["published_parameters"]]
        table.add_row(str(row["name"]), *(f"{n:,}" if n else "" for n in numbers), str(row["summary"]))
    with writable(sys.stdout):
        Console().print(table)
    say(f"trained and bundled: {', '.join(bundled_names()) or 'none'} (morphogen sample NAME)")
