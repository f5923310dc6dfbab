"""`classify`: what a training set is worth to a classifier, fold by fold, with and without an expansion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from morphogen._version import VERSION
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.progress import Progress
from morphogen.core.random import mix
from morphogen.data.config import DataConfig
from morphogen.data.dataset import UNREADABLE, ImageDataset, build_dataset
from morphogen.data.expansions import LABELS, Expansion, read_expansion
from morphogen.data.formats import BadImage
from morphogen.data.labels import checked_labels
from morphogen.data.source import Part
from morphogen.data.sources import open_source
from morphogen.data.splits import read_split
from morphogen.experiments.classifier import ClassifierSettings, Examples, train_and_predict
from morphogen.metrics.feature_network import resize
from morphogen.metrics.scores import SCORES, by_eye, label_scores, macro, paired_p, summary

FORMAT = "morphogen-classification-2"
Test = Literal["t", "wilcoxon"]
_LEVELS = ("image", "eye")


@dataclass(frozen=True)
class ClassificationSettings:
    """How to classify. epochs: instead of steps, times the real training images of a fold, so that an expansion gets no
    longer training than its baseline. fold: only this one. baseline: a results.json to compare with.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    augment: Literal["geometric", "none"] = "geometric"
    seeds: tuple[int, ...] = (0,)
    fold: int | None = None
    extra: str | None = None
    baseline: Path | None = None
    test: Test = "t"
    name: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    quiet: bool = False

    def classifier(self, real: int) -> ClassifierSettings:
        """How the classifier of a fold with `real` real training images is trained."""
        steps = self.steps or max(1, round((self.epochs or 0) * real / self.batch_size))
        return ClassifierSettings(steps, self.batch_size, self.learning_rate, self.augment, self.precision, self.device)


@dataclass(frozen=True)
class _Fold:
    """One fold, ready: its real images of both parts, and the expansion of its training part."""

    number: int | None
    train: ImageDataset
    test: ImageDataset
    extra: tuple[Path, Expansion] | None

    @property
    def label(self) -> str:
        return "test" if self.number is None else f"fold-{self.number}"


def classify(data: DataConfig, plan: ClassificationSettings, out: Path) -> dict[str, Any]:
    """Train and test a classifier for every fold and seed, and write results.json and report.html into `out`.

    What is done already, with these very settings, is not done again. Returns what results.json holds. Raises
    InputError for data without labels, an expansion that is wrong or saw a test image, and a baseline that is of
    something else.
    """
    folds = _folds(data, plan)
    remarks = _remarks(folds)
    baseline = None if plan.baseline is None else _read_baseline(plan.baseline, folds, plan)
    try:
        out.mkdir(parents=True, exist_ok=True)
        records = [_run(fold, seed, plan, out) for fold in folds for seed in plan.seeds]
        results = _results(folds, plan, records)
        if baseline is not None:
            results["baseline"] = _against(results, baseline, plan)
            other = [k for k, v in _same_settings(folds[0], plan).items() if baseline["settings"][k] != v]
            if other:
                remarks.append(f"the baseline {plan.baseline} had another {', '.join(other)}")
        results["remarks"] = remarks
        replace_file(out / "results.json", json_bytes(results))
        from morphogen.experiments.classification_report import write_report

        write_report(out / "report.html", results)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    return results


# ------------------------------------------------------------------------------------------------ folds, checked


def _folds(data: DataConfig, plan: ClassificationSettings) -> list[_Fold]:
    """Every fold of the split, checked. Raises InputError before anything is trained."""
    if data.split in ("auto", "none"):
        numbers: list[int | None] = [None]
    else:
        count = read_split(Path(data.split).expanduser())["folds"]
        numbers = [None] if count is None else list(range(count))
        if plan.fold is not None and plan.fold not in numbers:
            there = "no folds" if count is None else f"folds 0..{count - 1}"
            raise InputError(f"--fold {plan.fold} is out of range; {data.split} has {there}")
        numbers = numbers if plan.fold is None else [plan.fold]
    if plan.extra is not None and len(numbers) > 1 and "{fold}" not in plan.extra:
        raise InputError(
            f"--extra {plan.extra} is one folder for {len(numbers)} folds, but each fold needs a generator of its own; "
            "write {fold} where its number stands"
        )
    labels = checked_labels(open_source(data), needed=True)
    if len(labels) < 1 + labels.exclusive:
        raise InputError(
            f"{data.source} has {'one class' if len(labels) else 'no labels'}; put the images of at least two classes "
            "into folders of their names, or give --labels TABLE"
        )
    folds: list[_Fold] = []
    for number in numbers:
        config = data.model_copy(update={"fold": number})
        train = folds[0].train.of_fold(number) if folds else build_dataset(config, progress=not plan.quiet)
        train.refuse_empty_classes()
        test = train.other("test")
        extra = None
        if plan.extra is not None:
            folder = Path(plan.extra.replace("{fold}", str(number))).expanduser()
            extra = (folder, _checked_extra(folder, train, test))
        folds.append(_Fold(number, train, test, extra))
    return folds


def _checked_extra(folder: Path, train: ImageDataset, test: ImageDataset) -> Expansion:
    """What an expansion says of itself. Raises InputError where it has other labels, or its run saw what is tested."""
    expansion = read_expansion(folder)
    if expansion.labels != test.labels:
        raise InputError(
            f"{folder} has the labels {', '.join(expansion.labels.names)}, but {test.config.source} has "
            f"{', '.join(test.labels.names)}; expand a run of this data"
        )
    patients: dict[str, str] = {}
    if train.groups is not None and train.groups.by == "patient":
        patients = dict(zip((r.name for r in train.source.records), train.groups.names, strict=True))
    expansion.refuse_seen(folder, _digests(test, "test"), _digests(test, "train"), patients)
    return expansion


def _digests(data: ImageDataset, part: Part) -> dict[str, str]:
    """The sha256 of every readable image of a part, by its name."""
    names = (record.name for record, of in zip(data.source.records, data.parts, strict=True) if of == part)
    return {name: data.digests[name] for name in names if data.digests[name] != UNREADABLE}


def _remarks(folds: Sequence[_Fold]) -> list[str]:
    said = []
    if folds[0].train.groups is None:
        said.append("it is not known which images are of one patient; images of a patient may be in several parts")
    for fold in folds:
        missing = [name for name, count in fold.test.label_counts().items() if not count]
        if missing:
            said.append(f"{fold.label}: no test image has {', '.join(missing)}, left out of the means that need one")
        train = {digest: name for name, digest in _digests(fold.test, "train").items()}
        twins = [(name, train[digest]) for name, digest in _digests(fold.test, "test").items() if digest in train]
        if twins:
            said.append(
                f"{fold.label}: {len(twins)} test images are exact copies of training images, such as {twins[0][0]} of "
                f"{twins[0][1]}; morphogen data check lists them"
            )
        unknown = () if fold.extra is None else fold.extra[1].trained_on.unknown
        if fold.extra is not None and unknown:
            said.append(
                f"{fold.label}: {fold.extra[0]} began with {', '.join(unknown)}, trained on images not known here"
            )
    return said


# ------------------------------------------------------------------------------------------------ one fold, one seed


def _run(fold: _Fold, seed: int, plan: ClassificationSettings, out: Path) -> dict[str, Any]:
    """Train and test, unless that is done: probabilities and truth of every test image, as JSON types."""
    classifier = plan.classifier(len(fold.train))
    facts: dict[str, Any] = {
        "fold": fold.number,
        "seed": seed,
        "budget": {k: v for k, v in vars(classifier).items() if k != "device"},
        "pixels": _pixels(fold),
        "data": fold.train.identity(),
        "extra": None if fold.extra is None else _identity(*fold.extra),
    }
    records = [fold.test.record(i) for i in range(len(fold.test))]
    eyes = [_eye(r.patient, r.eye) for r in records] if all(r.eye for r in records) else None
    file = out / f"{fold.label}-seed-{seed}.json"
    if file.is_file():
        before = read_json(file)
        if {k: before.get(k) for k in facts} == facts:
            return {**before, "eyes": eyes}  # which a table may have learnt since
    train = _examples(fold.train, plan.quiet)
    real = len(train)
    if fold.extra is not None:
        train = train.with_more(_extra_examples(*fold.extra, fold.train.config))
    test = _examples(fold.test, plan.quiet)
    exclusive = fold.train.labels.exclusive
    key = mix(seed, -1 if fold.number is None else fold.number)
    found = train_and_predict(train, test.images, exclusive, fold.train.recipe, classifier, key, plan.quiet)
    record = {
        **facts,
        "train_images": real,
        "extra_images": len(train) - real,
        "images": [r.name for r in records],
        "eyes": eyes,
        "truth": test.rows.int().tolist(),
        "probabilities": found.round(6).tolist(),
    }
    replace_file(file, json_bytes(record))
    return record


def _eye(patient: str | None, eye: str | None) -> str:
    return f"{patient} {eye}" if patient is not None else str(eye)


def _identity(folder: Path, expansion: Expansion) -> str:
    """A hash of what an expansion says of itself, but for where its run lay."""
    return hashlib.sha256(json_bytes(expansion.model_dump(mode="json", exclude={"run"}))).hexdigest()


def _examples(data: ImageDataset, quiet: bool) -> Examples:
    """All images of a part, not augmented, in colour."""
    images, rows = [], []
    with Progress(f"reading {data.part} images", len(data), quiet=quiet) as progress:
        for i in range(len(data)):
            image, row = data.fixed(i)
            images.append(image.expand(3, -1, -1))
            rows.append(row)
            progress.advance()
    return Examples(torch.stack(images), torch.stack(rows))


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


# ------------------------------------------------------------------------------------------------ results


def scored(record: dict[str, Any], exclusive: bool) -> dict[str, Any]:
    """The scores of one fold and seed: at the level of images and, where eyes are known, of eyes."""
    truth, said = np.asarray(record["truth"], bool), np.asarray(record["probabilities"], float)
    levels = {"image": (truth, said)}
    if record["eyes"] is not None:
        levels["eye"] = by_eye(truth, said, record["eyes"], exclusive)[:2]
    found = {name: (label_scores(*pair, exclusive), len(pair[0])) for name, pair in levels.items()}
    return {name: {**macro(labels), "labels": labels, "count": count} for name, (labels, count) in found.items()}


def _test_sets(folds: Sequence[_Fold]) -> dict[str, str]:
    """A hash of every fold's test images, their content and their labels."""
    found = {}
    for fold in folds:
        records = [fold.test.record(i) for i in range(len(fold.test))]
        lines = [f"{r.name} {fold.test.digests[r.name]} {r.labels}" for r in records]
        found[fold.label] = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return found


def _pixels(fold: _Fold) -> dict[str, Any]:
    """How images become what the classifier sees, as JSON types."""
    return {**asdict(fold.train.recipe), "size": list(fold.train.config.size), "channels": fold.train.config.channels}


def _same_settings(fold: _Fold, plan: ClassificationSettings) -> dict[str, Any]:
    """What should be the same of both where two training sets are compared."""
    budget = {k: getattr(plan, k) for k in ("steps", "epochs", "batch_size", "learning_rate", "precision")}
    return {**budget, **_pixels(fold)}


def _results(folds: Sequence[_Fold], plan: ClassificationSettings, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    labels, first = folds[0].train.labels, folds[0]
    runs = [
        {**{k: r[k] for k in ("fold", "seed", "train_images", "extra_images")}, **scored(r, labels.exclusive)}
        for r in records
    ]
    over = "folds" if len(folds) > 1 else "seeds"
    levels = [level for level in _LEVELS if all(level in run for run in runs)]
    units = [fold.number for fold in folds] if over == "folds" else list(plan.seeds)
    figures: dict[str, Any] = {}
    for level in levels:
        figures[level] = {}
        for score in SCORES:
            values = [_mean_of(runs, level, score, over, unit) for unit in units]
            figures[level][score] = summary(values)
    return {
        "format": FORMAT,
        "morphogen": VERSION,
        "name": plan.name or _name(plan),
        "data": {
            k: v for k, v in first.train.summary().items() if k not in ("part", "images", "bad", "labels", "fold")
        },
        "labels": labels.model_dump(mode="json"),
        "test_sets": _test_sets(folds),
        "settings": {**_same_settings(first, plan), "augment": plan.augment},
        "network": "ResNet-34 (torchvision, untrained), Adam",
        "seeds": list(plan.seeds),
        "extra": None if plan.extra is None else {f.label: _told(*f.extra) for f in folds if f.extra is not None},
        "level": levels[-1],
        "over": over,
        "units": units,
        "figures": figures,
        "runs": runs,
        "baseline": None,
    }


def _told(folder: Path, expansion: Expansion) -> dict[str, Any]:
    return {"folder": str(folder), "run": expansion.run, "images": expansion.images, "replaced": expansion.replaced}


def _name(plan: ClassificationSettings) -> str:
    augmented = "geometric augmentation" if plan.augment == "geometric" else "no augmentation"
    return augmented if plan.extra is None else f"{augmented}, expanded"


def _mean_of(runs: Sequence[dict[str, Any]], level: str, score: str, over: str, unit: Any) -> float | None:
    """The score of a fold, as the mean over its seeds, or of a seed."""
    values = [run[level][score] for run in runs if run["fold" if over == "folds" else "seed"] == unit]
    there = [v for v in values if v is not None]
    return float(np.mean(there)) if there else None


def _read_baseline(path: Path, folds: Sequence[_Fold], plan: ClassificationSettings) -> dict[str, Any]:
    """The results to compare with. Raises InputError where they are of other data, folds or seeds."""
    file = path / "results.json" if path.is_dir() else path
    found = read_json(file)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"--baseline {path} is no results.json of this version of morphogen classify; make it anew")
    if found["test_sets"] != _test_sets(folds):
        raise InputError(
            f"--baseline {path} was tested on other images, folds or labels; give it the same data and split"
        )
    if len(folds) == 1 and found["seeds"] != list(plan.seeds):
        raise InputError(
            f"--baseline {path} has the seeds {found['seeds']}, not {list(plan.seeds)}; pairs need the same"
        )
    return found


def _against(results: dict[str, Any], baseline: dict[str, Any], plan: ClassificationSettings) -> dict[str, Any]:
    """The baseline's figures, and what the difference to them signifies."""
    compared: dict[str, Any] = {}
    for level, scores in results["figures"].items():
        compared[level] = {}
        for score, ours in scores.items():
            theirs = baseline["figures"].get(level, {}).get(score)
            if ours is None or theirs is None:
                continue
            pairs = [p for p in zip(ours["values"], theirs["values"], strict=True) if None not in p]
            compared[level][score] = {
                **theirs,
                "difference": float(np.mean([a - b for a, b in pairs])) if pairs else None,
                "p": paired_p([a for a, _ in pairs], [b for _, b in pairs], plan.test),
            }
    words = {"t": "Student's paired t-test", "wilcoxon": "Wilcoxon's signed-rank test"}
    test = f"{words[plan.test]}, two-sided, over {len(results['units'])} {results['over']}"
    return {"file": str(plan.baseline), "name": baseline["name"], "test": test, "figures": compared}
