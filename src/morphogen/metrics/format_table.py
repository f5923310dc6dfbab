"""Figures as rows that a table shows: value, the same figure between real images, and how many images it is of."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of a table, as text."""

    name: str
    value: str
    floor: str
    images: str


def number(value: float | None, digits: int = 4) -> str:
    """A figure in at most `digits` significant digits; nothing for None."""
    return "" if value is None else f"{value:.{digits}g}"


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A figure and its standard error."""
    if value is None:
        return ""
    return number(value, digits) + (f" ± {number(error, 2)}" if error is not None else "")


def rows_of(results: dict[str, Any]) -> list[Row]:
    """The rows of what `evaluate` found."""
    rows: list[Row] = []
    for figures in results["figures"]:
        rows += _of_network(figures)
    lpips = results["lpips"]
    if lpips is not None:
        real = lpips["real"]
        rows.append(
            Row(
                f"LPIPS diversity ({lpips['network']})",
                with_error(lpips["mean"], lpips["standard_error"]),
                with_error(real["mean"], real["standard_error"]),
                f"{lpips['pairs']:,} pairs",
            )
        )
    copies = results["copies"]
    if copies is not None:
        rows.append(
            Row(
                "copies of training images",
                f"{copies['copies'] / results['generated']['images']:.1%} ({copies['copies']:,})",
                f"{copies['held_out_copies'] / copies['held_out_images']:.1%} ({copies['held_out_copies']:,})",
                f"{results['generated']['images']:,} against {copies['training_images']:,}",
            )
        )
    return rows


def _of_network(figures: dict[str, Any]) -> list[Row]:
    floor = figures.get("floor", {})
    images, real = _images(figures), _images(floor) if floor else ""
    counts = images if not floor or images == real else f"{images}; floor {real}"
    frechet, kernel = figures["frechet"], figures["kernel"]
    floor_kernel = floor.get("kernel", {})
    rows = [
        Row(frechet["label"], number(frechet["value"]), number(floor.get("frechet", {}).get("value")), counts),
        Row(
            kernel["label"],
            with_error(kernel["value"], kernel["standard_error"]),
            with_error(floor_kernel.get("value"), floor_kernel.get("standard_error")),
            counts,
        ),
    ]
    for name, value in figures.get("manifold", {}).items():
        rows.append(
            Row(
                f"{name} ({figures['network']})",
                number(value, 3),
                number(floor.get("manifold", {}).get(name), 3),
                counts,
            )
        )
    memory = figures.get("memorisation")
    if memory:
        verdict = " MEMORISES" if memory["memorises"] else ""
        rows.append(
            Row(
                f"generalisation gap ({figures['network']})",
                with_error(memory["gap"], memory["standard_error"]) + verdict,
                with_error(memory["floor"]["gap"], memory["floor"]["standard_error"]),
                f"{counts}, {memory['train_images']:,} training",
            )
        )
    return rows


def _images(figures: dict[str, Any]) -> str:
    counts = figures["images"]
    return f"{counts['generated']:,} against {counts['real']:,}"
