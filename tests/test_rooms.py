"""The rooms of the package: each imports downwards only, no modules import in a circle, and the picture is of today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """docs/architecture.py as a module."""
    spec = importlib.util.spec_from_file_location("morphogen_architecture", ROOT / "docs" / "architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules each of which imports all others of its set, directly or through others."""
    reach = {module: set(targets) for module, targets in graph.items()}
    while True:
        grown = {m: targets.union(*(reach[t] for t in targets)) for m, targets in reach.items()}
        if grown == reach:
            break
        reach = grown
    return list(
        {
            frozenset(other for other in reach[module] if module in reach[other]): None
            for module in reach
            if module in reach[module]
        }
    )


def test_every_room_has_its_place(architecture: ModuleType) -> None:
    rooms = {architecture.room(module) for module in architecture.modules()} - {None}
    assert rooms == set(architecture.ORDER)


def test_rooms_import_downwards_only(architecture: ModuleType) -> None:
    order = list(architecture.ORDER)
    upwards = [
        f"{module} imports {target}"
        for module, targets in architecture.imports().items()
        for target in sorted(targets)
        if (here := architecture.room(module)) and (there := architecture.room(target))
        if order.index(there) > order.index(here)
    ]
    assert upwards == []


def test_no_modules_import_in_a_circle(architecture: ModuleType) -> None:
    assert circles(architecture.imports()) == []


def test_the_picture_is_current(architecture: ModuleType) -> None:
    drawn = architecture.draw(architecture.room_imports())
    assert architecture.PICTURE.read_text(encoding="utf-8") == drawn, "run: python docs/architecture.py"


def test_contributing_lists_the_rooms_in_their_order(architecture: ModuleType) -> None:
    listed = re.findall(
        r"^\| `(\w+)(?:\.py)?` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert listed == list(architecture.ORDER)


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert circles(graph) == [{"b", "c"}]
