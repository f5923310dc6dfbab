"""Draw the rooms of the package and their imports: `python docs/architecture.py` writes docs/images/architecture.svg.

tests/test_rooms.py holds the package to ORDER, and the picture to the package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "morphogen"
PICTURE = Path(__file__).parent / "images" / "architecture.svg"

# From the ground floor up: a room imports only from rooms that stand before it.
ORDER = {
    "core": "contracts, randomness, errors, files",
    "diffusion": "schedules, objective, samplers, guidance",
    "automata": "the models that are cellular automata",
    "baselines": "U-Nets, DiT, LDM and VNCA, same contract",
    "models": "families, presets, finding and loading",
    "pyramids": "OME-Zarr, TIFF, DeepZoom: read, written",
    "data": "images, slides, labels, splits",
    "training": "configuration, the loop, checkpoints",
    "metrics": "feature networks, distances, memorisation",
    "tasks": "Pipeline, and one function per task",
    "experiments": "compare, expand, classify",
    "slides": "images larger than memory, in tiles",
    "studio": "the local web app: serve",
    "napari": "the plugin of napari",
    "export": "the page for the browser",
    "cli": "one file per command",
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str | None:
    """The room of a module; None for what stands in no room: the package itself, its version, __main__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and not parts[1].startswith("_") else None


@cache
def imports() -> dict[str, set[str]]:
    """Which modules of the package each imports: at its head, in a function, for types only, or lazily by its name."""
    paths = modules()

    def named(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in paths else node.module
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("morphogen."):
                yield node.value.partition(":")[0]  # "morphogen.automata.geca:GeCA"

    return {
        module: {name for name in named(ast.parse(path.read_text(encoding="utf-8"))) if name in paths} - {module}
        for module, path in paths.items()
    }


def room_imports() -> dict[str, set[str]]:
    """Which other rooms each room imports, in the order of ORDER."""
    found: dict[str, set[str]] = {name: set() for name in ORDER}
    for module, targets in imports().items():
        here = room(module)
        if here in found:
            found[here] |= {there for there in map(room, targets) if there in ORDER and there != here}
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: 0 for one that imports nothing, else one above the highest that it imports."""
    height: dict[str, int] = {}
    for name in ORDER:
        height[name] = 1 + max((height[below] for below in graph[name] if below in height), default=-1)
    return height


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that do not follow from others: where A imports B and B imports C, A's of C is left out."""

    def reachable(name: str) -> set[str]:
        return graph[name].union(*(reachable(below) for below in graph[name]))

    return {name: below - set().union(*(reachable(other) for other in below)) for name, below in graph.items()}


def draw(graph: dict[str, set[str]]) -> str:
    """The picture, as SVG: one box a room, floor by floor, and an arrow for each direct import."""
    width, height, gap, rise = 300, 54, 40, 46
    floor = floors(graph)
    rows: list[list[str]] = [[n for n in ORDER if floor[n] == k] for k in range(max(floor.values()) + 1)]
    whole_width = max(len(row) for row in rows) * (width + gap) + gap + 140
    whole_height = len(rows) * (height + rise) + rise
    place = {
        name: (
            (whole_width - 60) / 2 + (k - len(row) / 2) * (width + gap) + gap / 2,
            whole_height - (floor[name] + 1) * (height + rise),
        )
        for row in rows
        for k, name in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole_width} {whole_height}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>The rooms of Morphogen; an arrow points to what a room imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#5b6b7b"/></marker></defs>',
        f'<rect width="{whole_width}" height="{whole_height}" fill="#ffffff"/>',
    ]
    lane = 0
    for name, below in direct(graph).items():
        for other in sorted(below, key=list(ORDER).index):
            (x1, y1), (x2, y2) = place[name], place[other]
            start, end = (x1 + width / 2, y1 + height), (x2 + width / 2, y2)
            if floor[name] - floor[other] > 1:  # around the boxes between, on a lane of its own
                lane += 1
                side, turn, middle_y = whole_width - 90 + 16 * lane, start[1] + 8 + 7 * lane, y2 + height / 2
                middle = f"L{start[0]} {turn} L{side} {turn} L{side} {middle_y} L{x2 + width} {middle_y}"
            else:
                middle = f"C{start[0]} {start[1] + rise / 2}, {end[0]} {end[1] - rise / 2}, {end[0]} {end[1]}"
            lines.append(
                f'<path d="M{start[0]} {start[1]} {middle}" fill="none" stroke="#5b6b7b" stroke-width="1.4" '
                'marker-end="url(#tip)"/>'
            )
    for name, what in ORDER.items():
        x, y = place[name]
        lines += [
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="#eef4f1" stroke="#2f6f5e"/>',
            f'<text x="{x + width / 2}" y="{y + 23}" text-anchor="middle" font-size="16" font-weight="bold" '
            f'fill="#173a31">{escape(name)}</text>',
            f'<text x="{x + width / 2}" y="{y + 42}" text-anchor="middle" font-size="12.5" '
            f'fill="#33433d">{escape(what)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(room_imports()), encoding="utf-8")
