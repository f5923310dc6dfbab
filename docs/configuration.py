"""Write docs/configuration.md, every setting there is, from the configuration models: `python docs/configuration.py`.

tests/test_docs.py holds the page to the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from morphogen.experiments.comparison_spec import Spec
from morphogen.models import FAMILIES, PRESETS, family_class
from morphogen.training.config import RunConfig
from morphogen.training.recipes import RECIPES

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """\
# Every setting

Written by `docs/configuration.py` from the models that check the settings; do not edit it by hand.

A setting is named by its place in the tree, such as `training.batch_size`. Set it by its own flag where
`morphogen train --help` has one, by `--set training.batch_size=8`, or in a YAML or JSON file given as `--config FILE`:

```yaml
data:
  size: [64, 64]
training:
  batch_size: 8
```

Later ones win: the field's default (below), the recipe, the preset, the file, the flag, `--set`.
`morphogen train DATA --out RUN --dry-run` prints what results, and `RUN/run.json` keeps it.
"""


def kind(schema: dict[str, Any]) -> str:
    """What values a field takes: its choices, or its type with its range."""
    if "anyOf" in schema:
        return "; ".join(dict.fromkeys(kind(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        inner = list(dict.fromkeys(kind(item) for item in schema.get("prefixItems", [schema.get("items", {})])))
        return (
            f"{schema.get('minItems', 'any number')} of: {inner[0]}"
            if "prefixItems" in schema
            else f"list of {inner[0]}"
        )
    names = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text", "null": "`null`"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    ranges = [
        f"{sign} {number(schema[key])}" for key, sign in limits.items() if key in schema and abs(schema[key]) < 2**53
    ]
    return " ".join([names.get(schema.get("type", ""), "table"), ", ".join(ranges)]).strip()


def number(given: float) -> str:
    """A limit, with thousands separated."""
    return f"{int(given):,}" if float(given).is_integer() else f"{given:g}"


def value(given: Any) -> str:
    """A value as one would write it in a file."""
    return f"`{json.dumps(given, ensure_ascii=False)}`"


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(schema: dict[str, Any], prefix: str = "") -> list[str]:
    """The table of a model's own fields; nested models are left to `sections`."""
    lines = [row("setting", "default", "values", "meaning"), "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        if not nested(field):
            default = value(field["default"]) if "default" in field else "required"
            lines.append(row(f"`{prefix}{name}`", default, kind(field), field.get("description", "")))
    return lines


def nested(field: dict[str, Any]) -> str | None:
    """The name of the model that a field holds, one or many of it; None for a plain value."""
    parts = [field, field.get("items", {}), *field.get("anyOf", []), *field.get("allOf", [])]
    return next((part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part), None)


def sections(model: type[BaseModel], heading: str, prefix: str = "") -> Iterator[str]:
    """A table for the model and for each model inside it, depth first."""
    whole = model.model_json_schema()

    def walk(schema: dict[str, Any], heading: str, prefix: str) -> Iterator[str]:
        about = " ".join(schema.get("description", "").split())
        yield "\n".join([heading, "", *([about, ""] if about else []), *table(schema, prefix), ""])
        for name, field in schema["properties"].items():
            if inner := nested(field):
                many = "[]" if "items" in field else ""
                yield from walk(whole["$defs"][inner], f"### `{prefix}{name}{many}`", f"{prefix}{name}{many}.")

    yield from walk(whole, heading, prefix)


def differing(settings: dict[str, Any]) -> str:
    """Nested settings on one line, by their dotted names."""
    flat = []
    for name, given in settings.items():
        if isinstance(given, dict):
            flat += [f"`{name}.{inner}={json.dumps(deep)}`" for inner, deep in given.items()]
        else:
            flat.append(f"`{name}={json.dumps(given)}`")
    return ", ".join(flat)


def page() -> str:
    """The whole page."""
    parts = [HEAD, *sections(RunConfig, "## A run")]
    parts.append("## Recipes\n")
    parts += [f"`{name}` sets {differing(settings)}.\n" for name, settings in RECIPES.items()]
    parts.append("## Architectures\n\nThe settings of `architecture`, by the model's family.\n")
    for family in (name for name in FAMILIES if hasattr(family_class(name), "config_class")):  # a pyramid has none
        schema = family_class(family).config_class.model_json_schema()
        names = [f"`{name}`" for name, preset in PRESETS.items() if preset.family == family]
        parts.append("\n".join([f"### {family}", "", f"Presets: {', '.join(names)}.", "", *table(schema), ""]))
    parts.append("## Presets\n\nWhat each sets where it differs from its family's defaults.\n")
    lines = [row("preset", "architecture"), "|---|---|"]
    lines += [row(f"`{name}`", differing(dict(preset.architecture))) for name, preset in PRESETS.items()]
    parts.append("\n".join([*lines, ""]))
    parts.append("What they add to a recipe:\n")
    added: dict[tuple[str, str], list[str]] = {}
    for name, preset in PRESETS.items():
        for recipe, own in preset.recipes.items():
            added.setdefault((f"`{recipe}`", differing(dict(own))), []).append(f"`{name}`")
        for recipe, own in preset.in_latents.items():
            added.setdefault((f"`{recipe}` in latents", differing(dict(own))), []).append(f"`{name}`")
    lines = [row("recipe", "presets", "settings"), "|---|---|---|"]
    lines += [row(recipe, ", ".join(names), own) for (recipe, own), names in added.items()]
    parts.append("\n".join([*lines, ""]))
    parts += sections(Spec, "## A list of `morphogen compare`")
    return "\n".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
