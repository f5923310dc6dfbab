"""What README and docs say: commands parse, settings, files and imports exist, generated pages are current."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
import yaml

import morphogen
from morphogen.cli.main import app
from morphogen.models import FAMILIES, create_model, family_class
from morphogen.training.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


def spans(text: str) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def blocks(text: str) -> Iterator[str]:
    """The lines of a page's code blocks, indented or fenced, with continued ones joined."""
    joined = text.replace("\\\n", " ")
    for block in re.findall(r"^```\w*\n(.*?)^```", joined, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"^ {4}(\S.*)$", joined, re.MULTILINE)


def commands() -> list[tuple[str, str, bool]]:
    """Every `morphogen ...`: its page, the line, and whether it is whole, as in a code block, or only named."""
    found = []
    for name, text in TEXT.items():
        for whole, lines in ((True, blocks(text)), (False, spans(text))):
            found += [(name, line.strip(), whole) for line in lines if re.match(r"\s*morphogen [a-z-]", line)]
    return list(dict.fromkeys(found))


def every_option(command: Any) -> set[str]:
    """The options of a command and of all commands in it."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for inner in getattr(command, "commands", {}).values():
        found |= every_option(inner)
    return found


USAGE_ERROR: Any = typer.BadParameter.__base__
INCOMPLETE = ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage")


@cache
def command_line() -> Any:
    """The whole command line, which takes a while to put together."""
    return typer.main.get_command(app)


def parse(line: str, whole: bool = True) -> None:
    """Parse a command as the command line would, without running it.

    whole: it has all that it needs. `…` stands for the value of an option, or for what is left out.
    """
    given = shlex.split(line, comments=True)
    words = [word for before, word in pairwise(given) if word != "…" or before.startswith("-")]
    command = command_line()
    context = command.make_context("morphogen", list(words))
    while words and getattr(command, "commands", None):
        name, command, words = command.resolve_command(context, words)
        try:
            context = command.make_context(name, list(words), parent=context)
        except typer.Exit:  # --help
            return
        except USAGE_ERROR as error:
            if (whole and "…" not in line) or type(error).__name__ not in INCOMPLETE:
                raise


@pytest.mark.parametrize(("page", "line", "whole"), commands())
def test_every_command_parses(page: str, line: str, whole: bool) -> None:
    parse(line, whole)


@pytest.mark.parametrize("line", ["train x --out y --no-such", "paint-it x", "data lift x", "train x"])
def test_a_wrong_command_does_not(line: str) -> None:
    with pytest.raises(USAGE_ERROR):
        parse(f"morphogen {line}")


def test_the_readme_names_every_command() -> None:
    named = {line.split()[1] for page, line, _ in commands() if page == "README.md"}
    assert set(command_line().commands) - named == set()


def test_every_option_exists() -> None:
    known = every_option(command_line()) | {"--help", "-h"}
    named = {
        (page, option)
        for page, text in TEXT.items()
        for span in spans(text)
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
        if span.startswith("-")
    }
    assert {(page, option) for page, option in named if option not in known} == set()


def fields(model: Any) -> Iterator[str]:
    """The dotted names of a configuration model's fields."""
    for name, field in model.model_fields.items():
        yield name
        if hasattr(field.annotation, "model_fields"):
            yield from (f"{name}.{inner}" for inner in fields(field.annotation))


def test_every_setting_exists() -> None:
    known = set(fields(RunConfig))
    for family in (name for name in FAMILIES if hasattr(family_class(name), "config_class")):  # a pyramid has none
        known |= {f"architecture.{name}" for name in family_class(family).config_class.model_fields}
    named = {
        (page, setting)
        for page, text in TEXT.items()
        for code in (*spans(text), *blocks(text))
        for setting in re.findall(r"(?<![\w./])(?:architecture|data|diffusion|training)(?:\.[a-z_]+)+", code)
        if not re.search(rf"{re.escape(setting)}\.?(?:py|md|json|yaml|csv)\b", code)
    }
    assert len(named) > 30
    assert {(page, setting) for page, setting in named if setting not in known} == set()


def test_every_file_exists() -> None:
    rooms = "|".join(p.name for p in (ROOT / "src" / "morphogen").iterdir() if p.is_dir())
    pattern = re.compile(
        rf"^(?:python )?((?:benchmarks|docs|tests|src|examples|{rooms})/[\w/.-]+\.(?:py|md|cpp|h|json|yaml))"
    )
    missing = [
        (page, match[1])
        for page, text in {**TEXT, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}.items()
        for code in (*spans(text), *blocks(text))
        if (match := pattern.match(code.strip()))
        if not any((base / match[1]).exists() for base in (ROOT, ROOT / "src" / "morphogen"))
    ]
    assert missing == []


def snippets() -> list[tuple[str, str]]:
    """The Python of all pages."""
    return [
        (name, code)
        for name, text in TEXT.items()
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "code"), snippets())
def test_python_compiles_and_what_it_names_exists(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = {"morphogen": morphogen, "pipeline": morphogen.Pipeline}.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), node.attr


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"morphogen_docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_current() -> None:
    configuration = script("configuration")
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(), "run: python docs/configuration.py"


def test_every_setting_says_what_it_means() -> None:
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| .* \| .* \| (.*) \|$", TEXT["configuration.md"], re.MULTILINE)
    assert len(rows) > 100
    assert [name for name, meaning in rows if not meaning.strip()] == []


def test_parameter_counts_of_the_readme() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d,]+) \|", TEXT["README.md"], re.MULTILINE)
    assert len(rows) == 6
    for name, count in rows:
        with torch.device("meta"):  # only counted
            assert create_model(name).parameter_count() == int(count.replace(",", "")), name


def test_nobody_is_told_to_install_by_name_alone() -> None:
    """Morphogen is not on the index, where the name could be anybody's; extras of an installed one are fine."""
    assert [name for name, text in TEXT.items() if re.search(r"pip install morphogen(?![\w.\[-])", text)] == []


def test_the_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == morphogen.__version__
