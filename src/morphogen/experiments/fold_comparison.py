"""A comparison of training sets: for every line and fold a generator is trained, its images expanded, and a classifier
measures what that is worth; a table like table 2 of Elbatel et al.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.progress import Progress
from morphogen.core.request import SamplingRequest
from morphogen.core.validation import validate
from morphogen.data.config import DataConfig
from morphogen.data.expansions import read_expansion
from morphogen.data.sources import open_source
from morphogen.data.splits import make_split, read_split, write_split
from morphogen.experiments.classification import classify
from morphogen.experiments.classification_records import ClassificationResults, FoldComparison, FoldComparisonRow
from morphogen.experiments.classification_report import p_values, percent, write_comparison
from morphogen.experiments.classification_settings import ClassificationSettings
from morphogen.experiments.comparison import locked
from morphogen.experiments.comparison_spec import (
    Classified,
    Entry,
    Spec,
    config_of,
    need_data,
    published_rows,
    published_source,
    slug,
)
from morphogen.experiments.expansion import ExpansionSettings, expand
from morphogen.metrics.scores import PUBLISHED, SCORES
from morphogen.models import load_model
from morphogen.training.devices import pick_device, resolve_precision
from morphogen.training.loop import train


def compare_training_sets(
    spec: Spec, out: Path, device: str = "auto", *, report: bool = False, quiet: bool = False
) -> FoldComparison:
    """Do whatever of a comparison is not done yet, and write table.md, results.json and report.html into `out`.

    report: do nothing but that. Returns what results.json holds. Raises InputError where a line's settings are wrong,
    or nothing is done yet.
    """
    chosen = spec.classify
    if chosen is None:
        raise TypeError("the spec does not classify")
    need_data(spec)
    for entry in spec.models:  # what is wrong with the settings is said before anything is trained
        if entry.model is not None:
            config_of(spec, entry, spec.data, spec.seeds[0])
    if report:  # also while another process compares
        return _write(spec, chosen, out)
    with locked(out):
        data = _data(spec, chosen, out)
        first = [entry for entry in spec.models if entry.name == chosen.baseline]
        for entry in [*first, *(entry for entry in spec.models if entry not in first)]:
            _do(spec, chosen, entry, data, out, device, quiet)
        return _write(spec, chosen, out)


def _data(spec: Spec, chosen: Classified, out: Path) -> dict[str, object]:
    """The settings of the data with a split file that has folds: the spec's, or one that is made here."""
    if spec.data.get("split") is not None:
        split = read_split(Path(str(spec.data["split"])).expanduser())
        if split["folds"] is None:
            raise InputError(f"{spec.data['split']} has no folds; make it with morphogen data split --folds 5")
        return dict(spec.data)
    file = out / "split.json"
    if not file.is_file():
        known = {k: v for k, v in spec.data.items() if k in DataConfig.model_fields}
        write_split(make_split(open_source(validate(DataConfig, known, "data")), folds=chosen.folds), file)
    there = read_split(file)["folds"]
    if there != chosen.folds:
        raise InputError(
            f"{file} has {there} folds, but classify.folds is {chosen.folds}; give {there} or another --out"
        )
    return {**spec.data, "split": str(file)}


def _do(
    spec: Spec, chosen: Classified, entry: Entry, data: dict[str, object], out: Path, device: str, quiet: bool
) -> None:
    """One line: its generators and expansions where it has a model, then its classifiers."""
    extra = None
    if entry.model is not None:
        extra = out / "expanded" / slug(entry.name) / "fold{fold}"
        folds = read_split(Path(str(data["split"])).expanduser())["folds"]
        if folds is None:
            raise InputError(f"{data['split']} has no folds; make it by `morphogen data split --folds 5`")
        with Progress(f"{entry.name}: generators", folds, "folds", quiet=quiet) as progress:
            for fold in range(folds):
                _expanded(spec, chosen, entry, {**data, "fold": fold}, fold, out, device)
                progress.advance()
    generators = ("size", "downscale", "mpp", "stain_jitter")  # the classifier sees whole images, at a size of its own
    known = {k: v for k, v in data.items() if k not in generators}
    if known.get("fit") == "random":
        known["fit"] = "crop"
    where = pick_device(device)
    how = ClassificationSettings(
        steps=chosen.steps,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        augment=entry.augment,
        seeds=spec.seeds,
        extra=None if extra is None else str(extra),
        baseline=None if chosen.baseline in (None, entry.name) else _results(out, str(chosen.baseline)),
        test=chosen.test,
        network=chosen.network,
        weights=chosen.weights,
        mix=chosen.mix,
        schedule=chosen.schedule,
        name=entry.name,
        precision=resolve_precision(chosen.precision, where.type),
        device=str(where),
        quiet=quiet,
    )
    settings = validate(DataConfig, {**known, "size": chosen.size}, "data")
    file = _results(out, entry.name)
    found = classify(settings, how, file.parent)
    of_line = found.model_copy(update={"fingerprint": _fingerprint(spec, entry)})
    replace_file(file, json_bytes(of_line.as_json()))


def _fingerprint(spec: Spec, entry: Entry) -> str:
    """A hash of everything that decides a line's figures."""
    of = {"title", "models", "evaluate", "published"}
    facts = {**spec.model_dump(exclude=of), "line": entry.model_dump(exclude={"published"})}
    return hashlib.sha256(json_bytes(facts)).hexdigest()


def _results(out: Path, name: str) -> Path:
    return out / "classified" / slug(name) / "results.json"


def _expanded(
    spec: Spec, chosen: Classified, entry: Entry, data: dict[str, object], fold: int, out: Path, device: str
) -> None:
    """Train the generator of a fold and expand its training part, unless that is done."""
    config = config_of(spec, entry, data, spec.seeds[0])
    run = out / "runs" / slug(entry.name) / f"fold-{fold}"
    run.parent.mkdir(parents=True, exist_ok=True)
    train(config.on_device(device), run, quiet=True)
    model = load_model(run).to(pick_device(device))
    how = ExpansionSettings(
        times=chosen.times,
        request=SamplingRequest(entry.sampler or chosen.sampler, chosen.sampling_steps, chosen.guidance),
        batch_size=chosen.sampling_batch,
        network=chosen.copies_in,
        agree=chosen.agree,
        quiet=True,
    )
    model.compute_in("auto")
    folder = out / "expanded" / slug(entry.name) / f"fold{fold}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    expand(model, run, None, how, folder)
    read_expansion(folder)


def _write(spec: Spec, chosen: Classified, out: Path) -> FoldComparison:
    """The table of the lines that are done."""
    published = published_rows(spec.published)
    rows = []
    for entry in spec.models:
        found = _finished(out, spec, entry)
        if found is not None:
            rows.append(FoldComparisonRow.of(found, entry.name, published.get(entry.published or "")))
    if not rows:
        raise InputError(f"{out} holds no finished lines of this comparison yet")
    summary = FoldComparison(
        title=spec.title,
        level=rows[0].level,
        seeds=spec.seeds,
        baseline=chosen.baseline,
        published_source=published_source(spec.published),
        rows=tuple(rows),
    )
    header, cells, note = _table(summary)
    replace_file(out / "results.json", json_bytes(summary.as_json()))
    replace_file(out / "table.md", markdown(summary))
    write_comparison(out / "report.html", spec.title, header, cells, note)
    return summary


def _finished(out: Path, spec: Spec, entry: Entry) -> ClassificationResults | None:
    """The results of a line, or None where it is not done with these very settings."""
    file = _results(out, entry.name)
    if not file.is_file():
        return None
    try:
        found = validate(ClassificationResults, read_json(file), str(file))
    except InputError:  # damaged: classified again
        return None
    return found if found.fingerprint == _fingerprint(spec, entry) else None


def _table(summary: FoldComparison) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and note, as text."""
    level = summary.level
    published = [k for k in SCORES if any(row.published_figure(PUBLISHED[k]) for row in summary.rows)]
    header = ["training set", *SCORES.values(), *(f"published {SCORES[k]}" for k in published)]
    rows = []
    for row in summary.rows:
        ps = p_values(row.baseline, level)
        cells = [percent(row.figures[level][k], p) for k, p in zip(SCORES, ps, strict=True)]
        cells += [row.published_figure(PUBLISHED[k]) for k in published]
        rows.append([row.name, *cells])
    first = summary.rows[0]
    note = f"Macro averages in percent at {level} level, mean ± deviation over {len(first.units)} {first.over}."
    tests = {row.baseline.test for row in summary.rows if row.baseline}
    if tests:
        note += f" * p below 0.05 against {summary.baseline} ({tests.pop()})."
    if published:
        note += f" Published columns: {summary.published_source}; they were not measured here."
    return header, rows, note


def markdown(summary: FoldComparison) -> str:
    """The table in Markdown."""
    header, rows, note = _table(summary)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return f"# {summary.title}\n\n" + "\n".join(lines) + f"\n\n{note}\n"
