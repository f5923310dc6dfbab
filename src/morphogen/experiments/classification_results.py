"""From what classifiers predicted to scores, averages and the comparison with a baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from morphogen._version import VERSION
from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.validation import validate
from morphogen.data.expansions import Expansion
from morphogen.experiments.classification_records import (
    BaselineComparison,
    ClassificationResults,
    ComparedAverage,
    ExpansionFacts,
    FoldRecord,
    LevelScores,
    RunScores,
    Scores,
)
from morphogen.experiments.classification_settings import ClassificationSettings
from morphogen.experiments.classifier import (
    DEFAULT_NETWORK,
)
from morphogen.experiments.folds import Fold
from morphogen.metrics.scores import (
    SCORES,
    Average,
    Probabilities,
    Truth,
    average,
    by_eye,
    label_scores,
    macro,
    paired_p,
)

FORMAT = "morphogen-classification-2"
_LEVELS = ("image", "eye")
SINCE: dict[str, JsonValue] = {"network": DEFAULT_NETWORK, "weights": None}
"""Settings that results of before they were settings do not name, and what these were made with."""


def scored(record: FoldRecord, exclusive: bool) -> RunScores:
    """The scores of one fold and seed: at the level of images and, where eyes are known, of eyes."""
    truth, said = np.asarray(record.truth, bool), np.asarray(record.probabilities, float)

    def level(truth: Truth, said: Probabilities) -> LevelScores:
        labels = label_scores(truth, said, exclusive)
        return LevelScores(**macro(labels), labels=tuple(Scores(**of) for of in labels), count=len(truth))

    eye = None if record.eyes is None else level(*by_eye(truth, said, record.eyes, exclusive)[:2])
    return RunScores(
        fold=record.fold,
        seed=record.seed,
        train_images=record.train_images,
        extra_images=record.extra_images,
        image=level(truth, said),
        eye=eye,
    )


def test_sets(folds: Sequence[Fold]) -> dict[str, str]:
    """A hash of every fold's test images, their content and their labels."""
    found = {}
    for fold in folds:
        records = [fold.test.record(i) for i in range(len(fold.test))]
        lines = [f"{r.name} {fold.test.digests[r.name]} {r.labels}" for r in records]
        found[fold.label] = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return found


def pixels_of(fold: Fold) -> dict[str, JsonValue]:
    """How images become what the classifier sees, as JSON types."""
    fitting = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(fold.train.fitting).items()}
    return {**fitting, "size": list(fold.train.config.size), "channels": fold.train.config.channels}


def comparable_settings(fold: Fold, settings: ClassificationSettings) -> dict[str, JsonValue]:
    """The settings that two compared training sets should share."""
    names = ("steps", "epochs", "batch_size", "learning_rate", "precision", *SINCE)
    return {**{k: getattr(settings, k) for k in names}, **pixels_of(fold)}


def collect(
    folds: Sequence[Fold], settings: ClassificationSettings, records: Sequence[FoldRecord]
) -> ClassificationResults:
    labels, first = folds[0].train.labels, folds[0]
    runs = tuple(scored(record, labels.exclusive) for record in records)
    over = "folds" if len(folds) > 1 else "seeds"
    levels = [level for level in _LEVELS if level == "image" or all(run.eye is not None for run in runs)]
    units = tuple(fold.number for fold in folds) if over == "folds" else settings.seeds
    figures: dict[str, dict[str, Average | None]] = {
        level: {score: average([_mean_of(runs, level, score, over, unit) for unit in units]) for score in SCORES}
        for level in levels
    }
    how: dict[str, JsonValue] = {**comparable_settings(first, settings), "augment": settings.augment}
    if settings.extra is not None:
        how |= {"mix": settings.mix, "schedule": settings.schedule}
    left_out = ("part", "images", "bad", "labels", "fold")
    return ClassificationResults(
        format=FORMAT,
        morphogen=VERSION,
        name=settings.name or _name(settings),
        data={k: v for k, v in first.train.summary().items() if k not in left_out},
        labels=labels,
        test_sets=test_sets(folds),
        settings=how,
        network=_network(settings),
        seeds=settings.seeds,
        extra=None
        if settings.extra is None
        else {f.label: _expansion_facts(*f.extra) for f in folds if f.extra is not None},
        level=levels[-1],
        over=over,
        units=units,
        figures=figures,
        runs=runs,
    )


def _network(settings: ClassificationSettings) -> str:
    name = "ResNet-34 (torchvision)" if settings.network == DEFAULT_NETWORK else settings.network
    return f"{name}, {'untrained' if settings.weights is None else f'weights {settings.weights}'}, Adam"


def _expansion_facts(folder: Path, expansion: Expansion) -> ExpansionFacts:
    return ExpansionFacts(folder=str(folder), run=expansion.run, images=expansion.images, replaced=expansion.replaced)


def _name(settings: ClassificationSettings) -> str:
    augmented = "geometric augmentation" if settings.augment == "geometric" else "no augmentation"
    return augmented if settings.extra is None else f"{augmented}, expanded"


def _mean_of(runs: Sequence[RunScores], level: str, score: str, over: str, unit: int | None) -> float | None:
    """The score of a fold, as the mean over its seeds, or of a seed."""
    chosen = [run for run in runs if (run.fold if over == "folds" else run.seed) == unit]
    there = [v for run in chosen if (v := run.level(level)[score]) is not None]
    return float(np.mean(there)) if there else None


def read_baseline(path: Path, folds: Sequence[Fold], settings: ClassificationSettings) -> ClassificationResults:
    """The results to compare with. Raises InputError where they are of other data, folds or seeds."""
    file = path / "results.json" if path.is_dir() else path
    content = read_json(file)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise InputError(f"--baseline {path} is no results.json of this version of morphogen classify; make it anew")
    found = validate(ClassificationResults, content, f"--baseline {path}")
    if found.test_sets != test_sets(folds):
        raise InputError(
            f"--baseline {path} was tested on other images, folds or labels; give it the same data and split"
        )
    if len(folds) == 1 and found.seeds != settings.seeds:
        raise InputError(
            f"--baseline {path} has the seeds {list(found.seeds)}, not {list(settings.seeds)}; pairs need the same"
        )
    return found


def compare_with(
    results: ClassificationResults, baseline: ClassificationResults, settings: ClassificationSettings
) -> BaselineComparison:
    """The baseline's figures, and what the difference to them signifies."""
    compared: dict[str, dict[str, ComparedAverage]] = {}
    for level, scores in results.figures.items():
        compared[level] = {}
        for score, ours in scores.items():
            theirs = baseline.figures.get(level, {}).get(score)
            if ours is None or theirs is None:
                continue
            both = zip(ours.values, theirs.values, strict=True)
            pairs = [(a, b) for a, b in both if a is not None and b is not None]
            compared[level][score] = ComparedAverage(
                **theirs.model_dump(),
                difference=float(np.mean([a - b for a, b in pairs])) if pairs else None,
                p=paired_p([a for a, _ in pairs], [b for _, b in pairs], settings.test),
            )
    words = {"t": "Student's paired t-test", "wilcoxon": "Wilcoxon's signed-rank test"}
    test = f"{words[settings.test]}, two-sided, over {len(results.units)} {results.over}"
    return BaselineComparison(file=str(settings.baseline), name=baseline.name, test=test, figures=compared)
