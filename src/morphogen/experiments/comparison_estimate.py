"""`compare --dry-run`: the steps, hours and disk of every line, from small measured steps; nothing is trained."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.request import SamplingRequest
from morphogen.data.config import DataConfig
from morphogen.data.fitting import Fitting
from morphogen.data.labels import labels_of
from morphogen.data.source import Source
from morphogen.data.sources import open_source
from morphogen.experiments.classifier import ClassifierSettings, Examples, train_classifier
from morphogen.experiments.comparison import finished
from morphogen.experiments.comparison_spec import Classified, Entry, Spec, config_of, trials
from morphogen.metrics.records import Record
from morphogen.training.build import build
from morphogen.training.config import RunConfig
from morphogen.training.devices import Devices, pick_device
from morphogen.training.estimate import estimate_run

_PROBE_STEPS = 2
_HOUR = 3600


class LineEstimate(Record):
    """The cost of a line, all its runs (seeds, or folds) that are not done together.

    steps, parameters: of one model; None where none is trained.
    """

    name: str
    runs: int
    parameters: int | None = None
    steps: int | None = None
    training_hours: float = 0.0
    sampling_hours: float = 0.0
    classifier_hours: float = 0.0
    disk_bytes: int = 0

    @property
    def hours(self) -> float:
        """All of it."""
        return self.training_hours + self.sampling_hours + self.classifier_hours


class ComparisonEstimate(Record):
    """The cost of the rest of a comparison on one device."""

    title: str
    lines: tuple[LineEstimate, ...]
    hours: float
    disk_bytes: int


def estimate_comparison(spec: Spec, out: Path, device: str = "auto") -> ComparisonEstimate:
    """Measure one small step of every line's training, sampling and classifier, and scale them.

    Raises InputError where a line's settings are wrong or its data is not there.
    """
    if spec.classify is None:
        planned = trials(spec, out)
        lines = []
        for entry in spec.models:
            todo = [t for t in planned if t.entry == entry and finished(t, spec) is None]
            config = (todo or [t for t in planned if t.entry == entry])[0].config
            images = spec.evaluate.images
            lines.append(_line(spec, entry, config, len(todo), images, device))
    else:
        lines = [_of_folds(spec, spec.classify, entry, device) for entry in spec.models]
    return ComparisonEstimate(
        title=spec.title,
        lines=tuple(lines),
        hours=sum(line.hours for line in lines),
        disk_bytes=sum(line.disk_bytes for line in lines),
    )


def _line(spec: Spec, entry: Entry, config: RunConfig, runs: int, images: int, device: str) -> LineEstimate:
    """A line that trains a model: `runs` trainings, each followed by the generation of `images` images."""
    config = config.on_device(device)
    source = open_source(config.data)
    with Devices(config.training.devices) as devices:
        model = build(config, devices, labels_of(source), config.open_autoencoder())
        training = estimate_run(config, model, devices)
        how = spec.evaluate if spec.classify is None else spec.classify
        seconds, pixels = _image_seconds(model, entry.sampler or how.sampler, how.sampling_steps)
    return LineEstimate(
        name=entry.name,
        runs=runs,
        parameters=training.parameters,
        steps=training.steps,
        training_hours=runs * training.seconds / _HOUR,
        sampling_hours=runs * images * seconds / _HOUR,
        disk_bytes=runs * (training.disk_bytes + images * pixels),
    )


def _image_seconds(model: Model, sampler: str | None, steps: int | None) -> tuple[float, int]:
    """How long one image takes, by a few of its steps, and how many bytes it has before it is compressed."""
    model.eval()
    whole = model.resolve(SamplingRequest(sampler, steps) if model.predicts_noise else SamplingRequest()).steps or 1
    few = SamplingRequest(sampler, min(_PROBE_STEPS, whole)) if model.predicts_noise else SamplingRequest()
    seconds = 0.0
    for _ in range(2):  # the first one compiles
        started = time.perf_counter()
        images = model.generate(Key.of([0]), request=few)
        seconds = time.perf_counter() - started
    return seconds * whole / (few.steps or whole), images.numel()


def _of_folds(spec: Spec, chosen: Classified, entry: Entry, device: str) -> LineEstimate:
    """A line of a comparison of training sets: in every fold a generator, its expansion, and classifiers."""
    data = {**spec.data, "split": "none", "fold": None}
    source = open_source(DataConfig(**{k: v for k, v in data.items() if k in DataConfig.model_fields}))
    train_images = round(len(source) * (1 - 1 / chosen.folds))
    line = LineEstimate(name=entry.name, runs=chosen.folds)
    if entry.model is not None:
        config = config_of(spec, entry, data, spec.seeds[0])
        line = _line(spec, entry, config, chosen.folds, chosen.times * train_images, device)
    steps = chosen.steps or max(1, round((chosen.epochs or 0) * train_images / chosen.batch_size))
    each = 2 if entry.model is not None and chosen.schedule == "choose" else 1
    trainings = chosen.folds * (each * len(spec.seeds) + (entry.model is not None and chosen.agree is not None))
    hours = trainings * steps * _classifier_seconds(chosen, source, device) / _HOUR
    return line.model_copy(update={"classifier_hours": hours})


def _classifier_seconds(chosen: Classified, source: Source, device: str) -> float:
    """How long a step of the classifier takes."""
    size, labels = (chosen.size, chosen.size), max(len(labels_of(source)), 1)
    shape = (chosen.batch_size, 3, *size)
    images = (torch.arange(math.prod(shape)) * 7919 % 251).to(torch.uint8).view(shape)  # that normalise to something
    examples = Examples(images, torch.eye(labels)[torch.arange(chosen.batch_size) % labels])
    fitting = Fitting.of(source.config.model_copy(update={"size": size}), source)

    def seconds(steps: int) -> float:
        settings = ClassifierSettings(steps, chosen.batch_size, network=chosen.network, device=str(pick_device(device)))
        started = time.perf_counter()
        train_classifier(examples, None, True, fitting, settings, 0, quiet=True)
        return time.perf_counter() - started

    first = seconds(1)
    return max((seconds(1 + _PROBE_STEPS) - first) / _PROBE_STEPS, 1e-3)


def table(estimate: ComparisonEstimate) -> list[str]:
    """The estimate as lines of text."""
    rows = [("LINE", "RUNS", "PARAMETERS", "STEPS", "TRAINING", "SAMPLING", "CLASSIFIER", "DISK")]
    for line in estimate.lines:
        counts = ("" if n is None else f"{n:,}" for n in (line.parameters, line.steps))
        times = (duration(h) for h in (line.training_hours, line.sampling_hours, line.classifier_hours))
        rows.append((line.name, str(line.runs), *counts, *times, size(line.disk_bytes)))  # type: ignore[arg-type]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, f"in all about {duration(estimate.hours) or '0 s'} on one device, {size(estimate.disk_bytes)}"]


def duration(hours: float) -> str:
    """Hours in words; nothing for none."""
    seconds = hours * _HOUR
    if not seconds:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{hours:.1f} h"


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"
