"""Reading settings from files and from the command line: what was written, where, and which name was meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from morphogen.core.errors import InputError
from morphogen.core.files import read_text
from morphogen.core.validation import table

# Words for a setting that are too far from its name to be guessed.
_ALSO_CALLED = {"lr": "learning_rate", "epochs": "steps", "dtype": "precision", "iterations": "steps", "ema": "kind"}


@dataclass(frozen=True)
class Layer:
    """Settings from one place, as nested tables. node: of a file, which knows its lines."""

    where: str
    values: dict[str, object]
    node: yaml.Node | None = None

    def named(self, path: Sequence[str]) -> str:
        """The place for a message about the setting at a path: with its line, in a file."""
        line = _line(self.node, path)
        return self.where if line is None else f"{self.where}, line {line}"

    def holds(self, path: Sequence[str]) -> bool:
        """Whether the setting, or the table that should hold it, was given here."""
        value: object = self.values
        for key in path:
            if not isinstance(value, Mapping):
                return True
            if key not in value:
                return False
            value = value[key]
        return True


def _line(node: yaml.Node | None, path: Sequence[str]) -> int | None:
    """The line (from 1) of the deepest part of a path that a file has."""
    line = None
    for key in path:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((k, v) for k, v in node.value if k.value == key), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def read_layer(path: Path) -> Layer:
    """A configuration file, YAML or JSON. Raises InputError, naming it and the line, where it is neither."""
    text = read_text(path)
    if path.suffix.lower() == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: it is not valid JSON ({error.msg.lower()})") from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is not valid JSON") from None
    else:
        try:
            values = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = f"{path}, line {mark.line + 1}" if mark else str(path)
            raise InputError(f"{at}: it is not valid YAML ({error.problem or 'unreadable'})") from None
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"the configuration file {path} is not valid YAML") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):  # JSON that is no YAML: without lines
        node = None
    return Layer(str(path), dict(table(values or {}, str(path))), node)


def read_config_file(path: Path) -> dict[str, object]:
    """The settings of a YAML or JSON file as nested tables. Raises InputError, naming file and line."""
    return read_layer(path).values


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """`a.b=c` as a path and a value (parsed as YAML, so that numbers, true and null come out as such)."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise InputError(f"--set {text}: it should be KEY=VALUE, such as training.optimizer.learning_rate=1e-3")
    value = value.strip()
    try:
        parsed = value if value.startswith("#") else yaml.safe_load(value)  # a colour, not a comment
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"--set {text}: '{value}' is not a valid value") from None
    if isinstance(parsed, str) and not value.startswith(("'", '"')):  # YAML 1.1 takes 1e-3 for a word
        try:
            parsed = float(parsed)
        except ValueError:
            parsed = value
    return path.split("."), parsed


def assignment_layer(text: str) -> Layer:
    """`--set a.b=c` as nested tables."""
    path, nested = parse_assignment(text)
    for part in reversed(path):
        nested = {part: nested}
    return Layer(f"--set {text}", nested)


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """A copy of nested tables with another's values on top."""
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def check_names(layer: Layer, tree: type[BaseModel], extra: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError for a name that is no setting, with the nearest one. extra: what free tables hold."""
    paths = [*_paths(tree), *((table, name) for table, names in extra.items() for name in names)]

    def check(values: Mapping[str, object], owner: type[BaseModel] | None, before: tuple[str, ...]) -> None:
        for key, value in values.items():
            path = (*before, str(key))
            fields = owner.model_fields if owner is not None else {}
            names = fields if owner is not None else extra.get(".".join(before), ())
            if names and key not in names:
                raise InputError(f"{layer.named(path)}: there is no setting '{'.'.join(path)}'{_hint(path, paths)}")
            kind = fields[key].annotation if key in fields else None
            if isinstance(value, Mapping):
                check(value, kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None, path)

    check(layer.values, tree, ())


def _paths(tree: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, field in tree.model_fields.items():
        found.append((*before, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _paths(field.annotation, (*before, name))
    return found


def settings_called(word: str, tree: type[BaseModel]) -> list[str]:
    """The dotted names of the settings that have this name or are called so elsewhere; else of those most like it."""
    name = _ALSO_CALLED.get(word, word)
    by_name: dict[str, list[str]] = {}
    paths = _paths(tree)
    for path in paths:
        if not any(other[:-1] == path for other in paths):  # a value, not a table of them
            by_name.setdefault(path[-1], []).append(".".join(path))
    near = [name] if name in by_name else difflib.get_close_matches(name, by_name, n=1, cutoff=0.8)
    return by_name[near[0]] if near else []


def _hint(path: tuple[str, ...], known: Sequence[tuple[str, ...]]) -> str:
    """`; did you mean ...?`, the nearest name beside it or anywhere in the tree; else what there is beside it."""
    beside = [p for p in known if p[:-1] == path[:-1]]
    name = _ALSO_CALLED.get(path[-1], path[-1])
    longer = [p for p in known if p[-1].startswith(f"{name}_")]
    if not any(p[-1] == name for p in known) and 0 < len(longer) <= 3:
        return "; did you mean " + " or ".join(f"'{'.'.join(p)}'" for p in longer) + "?"
    for candidates in (beside, [p for p in known if p[: len(path) - 1] == path[:-1]], known):
        by_name: dict[str, list[tuple[str, ...]]] = {}
        for candidate in candidates:
            by_name.setdefault(candidate[-1], []).append(candidate)
        near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.6 if candidates is beside else 0.75)
        if near:
            return "; did you mean " + " or ".join(f"'{'.'.join(p)}'" for p in by_name[near[0]]) + "?"
    return f"; known are {', '.join(p[-1] for p in beside)}" if beside else ""
