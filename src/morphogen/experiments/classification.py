"""`classify`: what a training set is worth to a classifier, fold by fold, with and without an expansion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import nn

from morphogen.core.errors import InputError, first_line
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.random import mix
from morphogen.core.validation import validate
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset
from morphogen.data.expansions import LABELS, Expansion
from morphogen.data.formats import BadImage
from morphogen.data.sources import open_source
from morphogen.experiments.agreement import examples_of
from morphogen.experiments.classification_records import (
    ClassificationResults,
    FoldFacts,
    FoldRecord,
)
from morphogen.experiments.classification_report import write_report
from morphogen.experiments.classification_results import (
    SINCE,
    collect,
    comparable_settings,
    compare_with,
    pixels_of,
    read_baseline,
)
from morphogen.experiments.classification_settings import ClassificationSettings
from morphogen.experiments.classifier import (
    ClassifierSettings,
    Examples,
    build_network,
    check_schedule,
    predict,
    train_classifier,
)
from morphogen.experiments.folds import Fold, open_folds, remarks_on
from morphogen.metrics.feature_network import resize
from morphogen.metrics.scores import label_scores, macro

_OF_EXTRA = ("mix", "schedule")


def classify(data: DataConfig, settings: ClassificationSettings, out: Path) -> ClassificationResults:
    """Train and test a classifier for every fold and seed, and write results.json and report.html into `out`.

    What is done already, with these very settings, is not done again. Returns what results.json holds. Raises
    InputError for data without labels, a network that cannot be had or does not take such images, an expansion that is
    wrong or saw a test image, and a baseline that is of something else.
    """
    check_schedule(settings.mix, settings.schedule)
    folds = open_folds(data, settings.fold, settings.extra, settings.quiet)
    _check_network(folds[0].train, settings)
    remarks, how = remarks_on(folds), settings
    if settings.extra is not None and settings.schedule == "choose" and not all(f.train.counts["val"] for f in folds):
        how = replace(settings, schedule="both")
        remarks.append(
            "there are no validation images to choose by, so every classifier was trained with generated images, as by "
            "--schedule both; whether they help, only a baseline can tell"
        )
    baseline = None if settings.baseline is None else read_baseline(settings.baseline, folds, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        records = [_run(fold, seed, how, out) for fold in folds for seed in settings.seeds]
        results = collect(folds, settings, records)
        remarks += _choices(records)
        if baseline is not None:
            own, others = comparable_settings(folds[0], settings), {**SINCE, **baseline.settings}
            changed = [k for k, v in own.items() if others.get(k) != v]
            if changed:
                remarks.append(f"the baseline {settings.baseline} had another {', '.join(changed)}")
            results = results.model_copy(update={"baseline": compare_with(results, baseline, settings)})
        results = results.model_copy(update={"remarks": tuple(remarks)})
        replace_file(out / "results.json", json_bytes(results.as_json()))
        write_report(out / "report.html", results)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    return results


def _check_network(data: ImageDataset, settings: ClassificationSettings) -> None:
    """Raise InputError where the network cannot be built or takes no images of this size."""
    network = build_network(len(data.labels), 0, settings.network, settings.weights).eval()
    height, width = data.config.size
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"--network {settings.network} takes no images of {height}x{width} ({first_line(error)}); "
            "give another --size or network"
        ) from None


def _run(fold: Fold, seed: int, settings: ClassificationSettings, out: Path) -> FoldRecord:
    """Train and test, unless that is done: probabilities and truth of every test image."""
    classifier = settings.classifier(len(fold.train.labelled))
    facts = FoldFacts(
        fold=fold.number,
        seed=seed,
        budget=_budget(classifier, fold.extra is not None),
        pixels=pixels_of(fold),
        data=fold.train.identity(),
        extra=None if fold.extra is None else _identity(*fold.extra),
    )
    records = [fold.test.record(i) for i in range(len(fold.test))]
    eyes = tuple(_eye(r.patient, r.eye) for r in records) if all(r.eye for r in records) else None
    file = out / f"{fold.label}-seed-{seed}.json"
    before = _done(file, facts)
    if before is not None:
        return before.model_copy(update={"eyes": eyes})  # which a table may have learnt since
    train, test = examples_of(fold.train, settings.quiet), examples_of(fold.test, settings.quiet)
    extra = None if fold.extra is None else _extra_examples(*fold.extra, fold.train.config)
    exclusive = fold.train.labels.exclusive
    key = mix(seed, -1 if fold.number is None else fold.number)
    validation = None
    if extra is None or classifier.schedule != "choose":
        network = train_classifier(train, extra, exclusive, fold.train.fitting, classifier, key, settings.quiet)
    else:
        network, validation = _better(fold, train, extra, classifier, key, settings.quiet)
    found = predict(network, test.images, exclusive, classifier.precision)
    record = FoldRecord(
        **facts.model_dump(),
        train_images=len(train),
        extra_images=0 if extra is None else len(extra),
        images=tuple(r.name for r in records),
        eyes=eyes,
        truth=tuple(map(tuple, test.rows.int().tolist())),
        probabilities=tuple(map(tuple, found.round(6).tolist())),
        validation=validation,
    )
    replace_file(file, json_bytes(record.as_json()))
    return record


def _better(
    fold: Fold, train: Examples, extra: Examples, classifier: ClassifierSettings, key: int, quiet: bool
) -> tuple[nn.Module, dict[str, float]]:
    """The classifier trained without generated images, or the one trained with them where that has the higher mAP on
    the validation images; and both figures.
    """
    held_out, exclusive = examples_of(fold.train.other("val"), quiet), fold.train.labels.exclusive
    networks: dict[str, nn.Module] = {}
    scores: dict[str, float] = {}
    for name, more in (("without", None), ("with", extra)):
        networks[name] = train_classifier(train, more, exclusive, fold.train.fitting, classifier, key, quiet)
        said = predict(networks[name], held_out.images, exclusive, classifier.precision)
        scores[name] = macro(label_scores(held_out.rows.numpy() > 0.5, said, exclusive))["map"] or 0.0
    return networks["with" if scores["with"] > scores["without"] else "without"], scores


def _choices(records: Sequence[FoldRecord]) -> list[str]:
    """What was chosen by validation images, and how often, for readers of the results."""
    asked = [r for r in records if r.validation is not None]
    if not asked:
        return []
    without = sum(record.chose_without for record in asked)
    each = ", ".join(
        f"{100 * r.validation['without']:.1f} and {100 * r.validation['with']:.1f}" for r in asked if r.validation
    )
    return [
        f"{without} of {len(asked)} classifiers were trained without generated images, which the validation images "
        f"spoke against (their mAP without and with: {each})"
    ]


def _budget(classifier: ClassifierSettings, extra: bool) -> dict[str, JsonValue]:
    """The settings that decide a training, as JSON types: those of expansions only if there is one."""
    values = {k: v for k, v in vars(classifier).items() if k != "device" and (extra or k not in _OF_EXTRA)}
    return {k: v for k, v in values.items() if k not in SINCE or v != SINCE[k]}


def _done(file: Path, facts: FoldFacts) -> FoldRecord | None:
    """The record in a file that was made with these facts, or None. Raises InputError for a file of something else."""
    if not file.exists():
        return None
    try:
        found = validate(FoldRecord, read_json(file), str(file))
    except InputError:
        raise InputError(
            f"{file} is there and was not made by this command; name another --out, or move the file"
        ) from None
    same = all(getattr(found, name) == value for name, value in facts)
    return found if same else None


def _eye(patient: str | None, eye: str | None) -> str:
    return f"{patient} {eye}" if patient is not None else str(eye)


def _identity(folder: Path, expansion: Expansion) -> str:
    """A hash of what an expansion says of itself, but for where its run lay."""
    return hashlib.sha256(json_bytes(expansion.model_dump(exclude={"run", "unrecognised", "quality"}))).hexdigest()


def _extra_examples(folder: Path, expansion: Expansion, config: DataConfig) -> Examples:
    """All images of an expansion, brought to the size of the classifier."""
    labels = str(folder / LABELS) if (folder / LABELS).is_file() else "auto"
    source = open_source(DataConfig(source=str(folder), size=config.size, split="none", labels=labels))
    if len(source) != expansion.images:
        raise InputError(f"{folder} holds {len(source)} images, but should hold {expansion.images}; expand anew")
    images, rows = [], []
    for i, record in enumerate(source.records):
        try:
            pixels = torch.from_numpy(np.ascontiguousarray(source.read(i).transpose(2, 0, 1)))
        except BadImage as error:
            raise InputError(f"{folder}: {error}") from None
        scaled = resize(pixels[None].expand(1, 3, -1, -1), config.size)[0]
        images.append((scaled * 255).round().to(torch.uint8))
        rows.append(expansion.labels.row(record.labels))
    return Examples(torch.stack(images), torch.stack(rows))
