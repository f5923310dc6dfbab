"""A comparison on paper: a table over seeds, plots, sheets of samples, all from what the trials wrote down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, replace_file
from morphogen.core.images import grid, save_png
from morphogen.experiments.comparison import finished
from morphogen.experiments.comparison_spec import Spec, published_rows, published_source, trials
from morphogen.experiments.plots import Point, scatter
from morphogen.metrics.format_table import number

_PUBLISHED = {"fid": "FID", "kid": "KID", "lpips": "LPIPS", "gap": "gap"}
_SHEET_COLUMNS, _LABEL_HEIGHT = 8, 16


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the half width of its 95 % interval over seeds (Student's t); None with one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    factor = float(t.ppf(0.975, len(values) - 1))
    return mean, factor * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def summarise(spec: Spec, out: Path) -> dict[str, Any]:
    """One row a model over the seeds that are done, as JSON types. Raises InputError where nothing is done yet."""
    published = published_rows(spec.published)
    rows = []
    all_trials = trials(spec, out)
    for entry in spec.models:
        records = [r for trial in all_trials if trial.entry == entry and (r := finished(trial, spec)) is not None]
        if records:
            row = _row(entry.name, records)
            row |= {"model": entry.model, "recipe": entry.recipe, "published": published.get(entry.published or "")}
            rows.append(row)
    if not rows:
        raise InputError(f"{out} holds no finished runs of this comparison yet")
    return {
        "title": spec.title,
        "budget": spec.budget.model_dump(exclude_none=True),
        "seeds": list(spec.seeds),
        "published_source": published_source(spec.published),
        "rows": rows,
    }


def _row(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}

    def take(key: str, pick: Callable[[dict[str, Any]], float | None]) -> None:
        values = [v for r in records if (v := pick(r)) is not None]
        if values:
            mean, half = interval(values)
            figures[key] = {"mean": mean, "interval": half, "values": values}

    networks = [f["network"] for f in records[0]["results"]["figures"]]
    for i, network in enumerate(networks):
        first = records[0]["results"]["figures"][i]
        for kind in ("frechet", "kernel"):
            label = first[kind]["label"]
            take(label, lambda r, i=i, kind=kind: r["results"]["figures"][i][kind]["value"])  # type: ignore[misc]
            take(
                f"{label}, real against real",
                lambda r, i=i, kind=kind: r["results"]["figures"][i].get("floor", {}).get(kind, {}).get("value"),  # type: ignore[misc]
            )
        for share in ("precision", "recall", "density", "coverage"):
            take(
                f"{share} ({network})",
                lambda r, i=i, share=share: r["results"]["figures"][i].get("manifold", {}).get(share),  # type: ignore[misc]
            )
        take(
            f"gap ({network})",
            lambda r, i=i: (r["results"]["figures"][i].get("memorisation") or {}).get("gap"),  # type: ignore[misc]
        )
    take("LPIPS diversity", lambda r: (r["results"]["lpips"] or {}).get("mean"))
    take("LPIPS diversity, real", lambda r: (r["results"]["lpips"] or {}).get("real", {}).get("mean"))
    take("held-out noise error", lambda r: r["held_out_noise_error"])
    images = records[0]["results"]["figures"][0]["images"]
    return {
        "name": name,
        "parameters": records[0]["parameters"],
        "runs": len(records),
        "steps": float(np.mean([r["steps"] for r in records])),
        "training_images": float(np.mean([r["training_images"] for r in records])),
        "seconds_per_image": float(np.mean([r["results"]["generated"]["seconds_per_image"] for r in records])),
        "copies": _copies(records),
        "images": images,
        "figures": figures,
    }


def _copies(records: list[dict[str, Any]]) -> dict[str, float] | None:
    """Shares of copies among generated and among held-out images, mean over runs; None where none were looked for."""
    found = [(r["results"]["copies"], r["results"]["generated"]["images"]) for r in records if r["results"]["copies"]]
    if not found:
        return None
    return {
        "share": float(np.mean([c["copies"] / count for c, count in found])),
        "held_out_share": float(np.mean([c["held_out_copies"] / c["held_out_images"] for c, _ in found])),
    }


def main_figures(summary: dict[str, Any]) -> list[str]:
    """The columns of the table: distances, their floors, diversity, gap; only those that a row has."""
    names = list(dict.fromkeys(n for row in summary["rows"] for n in row["figures"]))
    return [n for n in names if not n.startswith(("density", "coverage"))]


def shown(figure: dict[str, Any] | None) -> str:
    """Mean and half width of the interval."""
    if figure is None:
        return ""
    half = figure["interval"]
    return number(figure["mean"], 3) + (f" ± {number(half, 2)}" if half is not None else "")


def markdown(summary: dict[str, Any]) -> str:
    """The table, with the published values in columns of their own where there are any."""
    columns = main_figures(summary)
    published = any(row["published"] for row in summary["rows"])
    head = ["model", "parameters", "runs", "steps", *columns, "s an image", "copies"]
    known = [k for k in _PUBLISHED if any(k in (row["published"] or {}) for row in summary["rows"])]
    head += [f"published {_PUBLISHED[k]}" for k in known]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in summary["rows"]:
        cells = [row["name"], f"{row['parameters']:,}", str(row["runs"]), f"{row['steps']:,.0f}"]
        cells += [shown(row["figures"].get(column)) for column in columns]
        copies = row["copies"]
        shares = "" if copies is None else f"{copies['share']:.1%} (real {copies['held_out_share']:.1%})"
        cells += [number(row["seconds_per_image"], 2), shares]
        if published:
            cells += [number((row["published"] or {}).get(k)) for k in known]
        lines.append("| " + " | ".join(cells) + " |")
    images = summary["rows"][0]["images"]
    budget = ", ".join(f"{v:,} {k}" for k, v in summary["budget"].items())
    notes = (
        f"Budget of each training: {budget}. Each figure is of {images['generated']:,} generated against "
        f"{images['real']:,} real images, mean over the runs ± half of the 95 % interval (Student's t)."
    )
    if published:
        notes += f" Published columns: {summary['published_source']}; they were not measured here."
    return f"# {summary['title']}\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def write_summary(spec: Spec, out: Path) -> dict[str, Any]:
    """Write table.md, results.json, the plots and samples.png into `out`; what results.json holds."""
    summary = summarise(spec, out)
    replace_file(out / "results.json", json_bytes(summary))
    replace_file(out / "table.md", markdown(summary))
    label = next(iter(summary["rows"][0]["figures"]))
    for name, axis, key in (
        ("parameters.svg", "parameters", "parameters"),
        ("cost.svg", "seconds to make an image", "seconds_per_image"),
    ):
        points = [_point(row, float(row[key]), label) for row in summary["rows"] if label in row["figures"]]
        if name == "parameters.svg":
            points += [
                Point(f"{row['name']} (published)", row["parameters"], row["published"]["fid"], None, True)
                for row in summary["rows"]
                if label == "FID" and "fid" in (row["published"] or {})
            ]
        replace_file(out / name, scatter(points, axis, label))
    _write_sheet(spec, out)
    return summary


def _point(row: dict[str, Any], x: float, label: str) -> Point:
    figure = row["figures"][label]
    return Point(row["name"], max(x, 1e-9), figure["mean"], figure["interval"])


def _write_sheet(spec: Spec, out: Path) -> None:
    """The same seeds of every model below one another, from the first training seed that is done."""
    strips = []
    for entry in spec.models:
        record = next((r for j in trials(spec, out) if j.entry == entry and (r := finished(j, spec)) is not None), None)
        if record is None:
            continue
        folder = Path(record["results"]["generated"]["folder"])
        pictures = []
        for seed in range(_SHEET_COLUMNS):
            path = folder / f"{seed}.png"
            if path.is_file():
                with Image.open(path) as image:
                    pictures.append(image.convert("RGB"))
        if pictures:
            strips.append(_labelled(grid(pictures, _SHEET_COLUMNS), entry.name))
    if strips:
        width = max(strip.width for strip in strips)
        sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), "white")
        top = 0
        for strip in strips:
            sheet.paste(strip, (0, top))
            top += strip.height
        save_png(out / "samples.png", sheet)


def _labelled(strip: Image.Image, name: str) -> Image.Image:
    labelled = Image.new("RGB", (max(strip.width, 200), strip.height + _LABEL_HEIGHT), "white")
    ImageDraw.Draw(labelled).text((2, 2), name, fill="black")
    labelled.paste(strip, (0, _LABEL_HEIGHT))
    return labelled
