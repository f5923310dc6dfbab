"""Figures as rows that a table shows: value, the same figure between real images, and how many images it is of."""

from __future__ import annotations

from typing import NamedTuple

from morphogen.metrics.records import DistanceFigures, EvaluationResults, NetworkFigures


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


def rows_of(results: EvaluationResults) -> list[Row]:
    """The rows of what `evaluate` found."""
    rows = [row for figures in results.figures for row in _of_network(figures)]
    lpips, copies = results.lpips, results.copies
    if lpips is not None:
        rows.append(
            Row(
                f"LPIPS diversity ({lpips.network})",
                with_error(lpips.mean, lpips.standard_error),
                with_error(lpips.real.mean, lpips.real.standard_error),
                f"{lpips.pairs:,} pairs",
            )
        )
    if copies is not None:
        total = results.generated.images
        rows.append(
            Row(
                "copies of training images",
                f"{copies.copies / total:.1%} ({copies.copies:,})",
                f"{copies.held_out_copies / copies.held_out_images:.1%} ({copies.held_out_copies:,})",
                f"{total:,} against {copies.training_images:,}",
            )
        )
    return rows


def _of_network(figures: NetworkFigures) -> list[Row]:
    floor, kernel = figures.floor, figures.kernel
    counts = _counts(figures)
    if floor is not None and _counts(floor) != counts:
        counts += f"; floor {_counts(floor)}"
    rows = [
        Row(
            figures.frechet.label,
            number(figures.frechet.value),
            "" if floor is None else number(floor.frechet.value),
            counts,
        ),
        Row(
            kernel.label,
            with_error(kernel.value, kernel.standard_error),
            "" if floor is None else with_error(floor.kernel.value, floor.kernel.standard_error),
            counts,
        ),
    ]
    if figures.manifold is not None:
        real = None if floor is None else floor.manifold
        for name, value in figures.manifold:
            beside = "" if real is None else number(getattr(real, name), 3)
            rows.append(Row(f"{name} ({figures.network})", number(value, 3), beside, counts))
    memory = figures.memorisation
    if memory is not None:
        verdict = " MEMORISES" if memory.memorises else ""
        rows.append(
            Row(
                f"generalisation gap ({figures.network})",
                with_error(memory.gap, memory.standard_error) + verdict,
                with_error(memory.floor.gap, memory.floor.standard_error),
                f"{counts}, {memory.train_images:,} training",
            )
        )
    return rows


def _counts(figures: DistanceFigures) -> str:
    return f"{figures.images.generated:,} against {figures.images.real:,}"
