"""A comparison on paper: a table over seeds, plots, grids of samples, all from what the trials wrote down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pydantic import JsonValue

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, replace_file
from morphogen.core.images import sample_grid, save_png
from morphogen.experiments.comparison import finished
from morphogen.experiments.comparison_records import ComparisonRow, ComparisonSummary, CopyShares, Estimate, TrialRecord
from morphogen.experiments.comparison_spec import Entry, Spec, published_rows, published_source, trials
from morphogen.experiments.plots import Point, scatter
from morphogen.metrics.format_table import number

_PUBLISHED = {"fid": "FID", "kid": "KID", "lpips": "LPIPS", "gap": "gap"}
_SAMPLE_COLUMNS, _LABEL_HEIGHT = 8, 16


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the half width of its 95 % interval over seeds (Student's t); None with one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    factor = float(t.ppf(0.975, len(values) - 1))
    return mean, factor * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def summarise(spec: Spec, out: Path) -> ComparisonSummary:
    """One row a model over the seeds that are done. Raises InputError where nothing is done yet."""
    published = published_rows(spec.published)
    rows = []
    all_trials = trials(spec, out)
    for entry in spec.models:
        records = [r for trial in all_trials if trial.entry == entry and (r := finished(trial, spec)) is not None]
        if records:
            rows.append(_row(entry, records, published.get(entry.published or "")))
    if not rows:
        raise InputError(f"{out} holds no finished runs of this comparison yet")
    return ComparisonSummary(
        title=spec.title,
        budget=spec.budget.model_dump(exclude_none=True),
        seeds=spec.seeds,
        published_source=published_source(spec.published),
        rows=tuple(rows),
    )


def _columns(trial: TrialRecord) -> Iterator[tuple[str, float | None]]:
    """Every figure of a trial under the name of its column, in the order of columns."""
    for figures in trial.results.figures:
        floor, network = figures.floor, figures.network
        for own, real in (
            (figures.frechet, None if floor is None else floor.frechet),
            (figures.kernel, None if floor is None else floor.kernel),
        ):
            yield own.label, own.value
            yield f"{own.label}, real against real", None if real is None else real.value
        for share, value in figures.manifold or ():
            yield f"{share} ({network})", value
        yield f"gap ({network})", None if figures.memorisation is None else figures.memorisation.gap
    lpips = trial.results.lpips
    yield "LPIPS diversity", None if lpips is None else lpips.mean
    yield "LPIPS diversity, real", None if lpips is None else lpips.real.mean
    yield "held-out noise error", trial.held_out_noise_error


def _row(entry: Entry, records: Sequence[TrialRecord], published: dict[str, JsonValue] | None) -> ComparisonRow:
    columns: dict[str, list[float]] = {}
    for record in records:
        for name, value in _columns(record):
            if value is not None:
                columns.setdefault(name, []).append(value)
    figures = {}
    for name, values in columns.items():
        mean, half = interval(values)
        figures[name] = Estimate(mean=mean, interval=half, values=tuple(values))
    return ComparisonRow(
        name=entry.name,
        model=entry.model,
        recipe=entry.recipe,
        parameters=records[0].parameters,
        runs=len(records),
        steps=float(np.mean([r.steps for r in records])),
        training_images=float(np.mean([r.training_images for r in records])),
        seconds_per_image=float(np.mean([r.results.generated.seconds_per_image or 0.0 for r in records])),
        copies=_copies(records),
        images=records[0].results.figures[0].images,
        figures=figures,
        published=published,
    )


def _copies(records: Sequence[TrialRecord]) -> CopyShares | None:
    """Mean shares of copies; None where none were looked for."""
    found = [(c, r.results.generated.images) for r in records if (c := r.results.copies) is not None]
    if not found:
        return None
    return CopyShares(
        share=float(np.mean([c.copies / count for c, count in found])),
        held_out_share=float(np.mean([c.held_out_copies / c.held_out_images for c, _ in found])),
    )


def main_figures(summary: ComparisonSummary) -> list[str]:
    """The columns of the table: distances, their floors, diversity, gap; only those that a row has."""
    names = list(dict.fromkeys(n for row in summary.rows for n in row.figures))
    return [n for n in names if not n.startswith(("density", "coverage"))]


def shown(figure: Estimate | None) -> str:
    """Mean and half width of the interval."""
    if figure is None:
        return ""
    half = figure.interval
    return number(figure.mean, 3) + (f" ± {number(half, 2)}" if half is not None else "")


def markdown(summary: ComparisonSummary) -> str:
    """The table, with the published values in columns of their own if there are any."""
    columns = main_figures(summary)
    head = ["model", "parameters", "runs", "steps", *columns, "s an image", "copies"]
    known = [k for k in _PUBLISHED if any(k in (row.published or {}) for row in summary.rows)]
    head += [f"published {_PUBLISHED[k]}" for k in known]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in summary.rows:
        cells = [row.name, f"{row.parameters:,}", str(row.runs), f"{row.steps:,.0f}"]
        cells += [shown(row.figures.get(column)) for column in columns]
        copies = row.copies
        shares = "" if copies is None else f"{copies.share:.1%} (real {copies.held_out_share:.1%})"
        cells += [number(row.seconds_per_image, 2), shares]
        cells += [number(row.published_figure(k)) for k in known]
        lines.append("| " + " | ".join(cells) + " |")
    images = summary.rows[0].images
    budget = ", ".join(f"{v:,} {k}" for k, v in summary.budget.items())
    notes = (
        f"Budget of each training: {budget}. Each figure is of {images.generated:,} generated against "
        f"{images.real:,} real images, mean over the runs ± half of the 95 % interval (Student's t)."
    )
    if any(row.published for row in summary.rows):
        notes += f" Published columns: {summary.published_source}; they were not measured here."
    return f"# {summary.title}\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def write_summary(spec: Spec, out: Path) -> ComparisonSummary:
    """Write table.md, results.json, the plots and samples.png into `out`; what results.json holds."""
    summary = summarise(spec, out)
    replace_file(out / "results.json", json_bytes(summary.as_json()))
    replace_file(out / "table.md", markdown(summary))
    label = next(iter(summary.rows[0].figures))
    measured = [(row, row.figures[label]) for row in summary.rows if label in row.figures]
    by_size = [_point(row.name, row.parameters, figure) for row, figure in measured]
    if label == "FID":
        published = [(row, row.published_figure("fid")) for row in summary.rows]
        by_size += [Point(f"{r.name} (published)", r.parameters, fid, None, True) for r, fid in published if fid]
    by_cost = [_point(row.name, row.seconds_per_image, figure) for row, figure in measured]
    replace_file(out / "parameters.svg", scatter(by_size, "parameters", label))
    replace_file(out / "cost.svg", scatter(by_cost, "seconds to make an image", label))
    _write_samples(spec, out)
    return summary


def _point(name: str, x: float, figure: Estimate) -> Point:
    return Point(name, max(x, 1e-9), figure.mean, figure.interval)


def _write_samples(spec: Spec, out: Path) -> None:
    """The same seeds of every model below one another, from the first training seed that is done."""
    strips = []
    for entry in spec.models:
        record = next((r for j in trials(spec, out) if j.entry == entry and (r := finished(j, spec)) is not None), None)
        if record is None:
            continue
        folder = Path(record.results.generated.folder)
        pictures = []
        for seed in range(_SAMPLE_COLUMNS):
            path = folder / f"{seed}.png"
            if path.is_file():
                with Image.open(path) as image:
                    pictures.append(image.convert("RGB"))
        if pictures:
            strips.append(_labelled(sample_grid(pictures, _SAMPLE_COLUMNS), entry.name))
    if strips:
        width = max(strip.width for strip in strips)
        samples = Image.new("RGB", (width, sum(strip.height for strip in strips)), "white")
        top = 0
        for strip in strips:
            samples.paste(strip, (0, top))
            top += strip.height
        save_png(out / "samples.png", samples)


def _labelled(strip: Image.Image, name: str) -> Image.Image:
    labelled = Image.new("RGB", (max(strip.width, 200), strip.height + _LABEL_HEIGHT), "white")
    ImageDraw.Draw(labelled).text((2, 2), name, fill="black")
    labelled.paste(strip, (0, _LABEL_HEIGHT))
    return labelled
