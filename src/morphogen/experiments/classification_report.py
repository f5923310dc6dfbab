"""Classification results as a table in text and as one HTML file."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from morphogen.core.files import replace_file
from morphogen.experiments.classification_records import BaselineComparison, ClassificationResults
from morphogen.metrics.report import STYLE
from morphogen.metrics.scores import SCORES, Average

_SIGNIFICANT = 0.05


def percent(figure: Average | None, p: float | None = None) -> str:
    """Mean ± deviation in percent; a star where p is below 0.05."""
    if figure is None:
        return ""
    deviation = "" if figure.deviation is None else f" ± {100 * figure.deviation:.2f}"
    return f"{100 * figure.mean:.2f}{deviation}" + ("*" if p is not None and p < _SIGNIFICANT else "")


def p_values(baseline: BaselineComparison | None, level: str) -> list[float | None]:
    """The p-value of every score against a baseline; None if there is none."""
    compared = {} if baseline is None else baseline.figures.get(level, {})
    return [compared[score].p if score in compared else None for score in SCORES]


def table_rows(results: ClassificationResults, level: str) -> list[list[str]]:
    """The baseline's row if there is one, then the row of these results: a name and the scores."""
    rows, against, own = [], results.baseline, results.figures[level]
    ps = p_values(against, level)
    if against is not None:
        compared = against.figures.get(level, {})
        rows.append([against.name, *(percent(compared.get(score)) for score in SCORES)])
    rows.append([results.name, *(percent(own[s], p) for s, p in zip(SCORES, ps, strict=True))])
    if against is not None:
        rows.append(["p", *("" if p is None else f"{p:.3g}" for p in ps)])
    return rows


def head(results: ClassificationResults, level: str) -> str:
    """The heading of a table."""
    counts = sum(run.level(level).count for run in results.runs) // len(results.seeds)
    over = f"{len(results.units)} {results.over}"
    return f"{level} level, {counts:,} tested, macro averages in percent, mean ± deviation over {over}"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{html.escape(c)}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _by_label(results: ClassificationResults, level: str) -> str:
    """Every label's scores, as means over all runs that define them."""
    rows = []
    for k, name in enumerate(results.labels.names):
        cells = [name]
        for score in SCORES:
            values = [v for run in results.runs if (v := run.level(level).labels[k][score]) is not None]
            cells.append(f"{100 * sum(values) / len(values):.2f}" if values else "")
        rows.append(cells)
    return _html_table(["label", *SCORES.values()], rows)


def _by_run(results: ClassificationResults, level: str) -> str:
    rows = []
    for run in results.runs:
        images = f"{run.train_images:,} + {run.extra_images:,}"
        scores = ("" if (v := run.level(level)[s]) is None else f"{100 * v:.2f}" for s in SCORES)
        rows.append(["all" if run.fold is None else str(run.fold), str(run.seed), images, *scores])
    return _html_table(["fold", "seed", "real + generated", *SCORES.values()], rows)


def write_comparison(path: Path, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> None:
    """Write a page with the one table of a comparison."""
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1>{_html_table(header, rows)}<p>{html.escape(note)}</p></html>
"""
    replace_file(path, page)


def write_report(path: Path, results: ClassificationResults) -> None:
    """Write the page: tables and settings, no images."""
    title = f"Classification of {results.data['source']}"
    sections = []
    for level in reversed(results.figures):
        table = _html_table(["training set", *SCORES.values()], table_rows(results, level))
        sections.append(f"<h2>{head(results, level)}</h2>{table}")
    against = results.baseline
    if against is not None:
        note = f"p: {against.test}, against {against.name} ({against.file}); * where it is below {_SIGNIFICANT}."
        sections.append(f"<p>{html.escape(note)}</p>")
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in results.remarks)
    level = results.level
    settings = {k: v for k, v in results.as_json().items() if k not in ("runs", "figures", "baseline", "remarks")}
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1>{"".join(sections)}<ul class="warn">{remarks}</ul>
<h2>By label</h2>{_by_label(results, level)}<h2>By run</h2>{_by_run(results, level)}
<h2>Settings</h2><pre>{html.escape(json.dumps(settings, indent=1))}</pre></html>
"""
    replace_file(path, page)
