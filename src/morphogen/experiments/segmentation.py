"""`segment`: what annotated images, or painted pairs of image and map, are worth to a segmenter."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from morphogen.core.condition import class_names
from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.random import Purpose, mix
from morphogen.core.validation import validate
from morphogen.data.clusters import wanted_clusters
from morphogen.data.config import DataConfig
from morphogen.data.dataset import EmptyPartError, ImageDataset, build_dataset, permutation
from morphogen.data.expansions import read_expansion
from morphogen.data.prepared import UNREADABLE
from morphogen.experiments.segmentation_records import SegmentationComparison, SegmentationResults, SegmentationRun
from morphogen.experiments.segmentation_report import Shown, write_report
from morphogen.experiments.segmenter import Examples, SegmenterSettings, find, train_segmenter
from morphogen.metrics.scores import paired_p
from morphogen.metrics.segmentation import dice, object_f1

RESULTS = "results.json"
_CHOICE, _SHOWN = 0x5E61, 4


@dataclass(frozen=True)
class SegmentationSettings:
    """How segmenters are trained and compared.

    real: how many of the annotated training images are learnt from; None for all, 0 for none. extra: the folder of an
    expansion, pairs that are learnt from as well. mix: the share of a batch that is of these, where there are both.
    steps, batch_size, learning_rate: of every training. seeds: one training each. baseline: results to compare with.
    """

    real: int | None = None
    extra: Path | None = None
    mix: float = 0.5
    steps: int = 400
    batch_size: int = 8
    learning_rate: float = 2e-3
    precision: Literal["float32", "bfloat16"] = "float32"
    seeds: tuple[int, ...] = (0,)
    baseline: Path | None = None
    quiet: bool = False

    def training(self) -> SegmenterSettings:
        """What one training needs to know."""
        return SegmenterSettings(self.steps, self.batch_size, self.learning_rate, self.mix, self.precision)


def segment(data: DataConfig, settings: SegmentationSettings, out: Path) -> SegmentationResults:
    """Train a segmenter for every seed and test it on the test images; write results.json and report.html into `out`.

    What is done already with these very settings is not done again. Raises InputError for data without maps or a test
    part, an expansion that is wrong or whose generator saw a test image, and a baseline of something else.
    """
    if data.maps is not None and wanted_clusters(data.maps) is not None:
        raise InputError(f"--maps {data.maps}: there is nothing to learn from maps that follow from the images")
    train = build_dataset(data, "train", progress=not settings.quiet)
    if not train.has_maps:
        raise InputError(f"{data.source} has no maps to learn from; name them with --maps")
    try:
        test = train.other("test")
    except EmptyPartError as error:
        raise InputError(f"there is nothing to test on: {error}") from None
    names = tuple(class_names(train.classes))
    if len(names) < 2:
        raise InputError(f"the maps of {data.source} have one class; there should be at least two")
    real = _chosen(train, settings)
    extra = None if settings.extra is None else _extra(settings.extra, train, test)
    if not len(real) and extra is None:
        raise InputError("there is nothing to learn from: neither real images nor painted ones; give --extra")
    held_out = whole_examples(test, range(len(test)))
    baseline = None if settings.baseline is None else _baseline(settings, test)
    runs, shown = [], None
    try:
        out.mkdir(parents=True, exist_ok=True)
        for seed in settings.seeds:
            run, found = _run(real, extra, held_out, names, settings, seed, _identity(train, test, settings), out)
            runs.append(run)
            if found is not None and shown is None:
                shown = Shown(held_out.images[:_SHOWN], held_out.maps[:_SHOWN], found[:_SHOWN])
        results = SegmentationResults(
            source=data.source,
            classes=names,
            real_images=len(real),
            extra_images=0 if extra is None else len(extra),
            test_images=len(test),
            settings=asdict(settings.training()),
            dice=float(np.mean([_mean(run, names) for run in runs])),
            object_f1=float(np.mean([np.mean(list(run.object_f1.values())) for run in runs])),
            runs=tuple(runs),
            baseline=None if baseline is None else _compared(runs, names, baseline, settings),
            remarks=_remarks(train, settings),
        )
        replace_file(out / RESULTS, json_bytes(results.as_json()))
        write_report(out / "report.html", results, shown)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    return results


def _chosen(train: ImageDataset, settings: SegmentationSettings) -> Examples:
    """The real images that are learnt from: the first of an order that the data's seed fixes."""
    count = len(train) if settings.real is None else settings.real
    if not 0 <= count <= len(train):
        raise InputError(f"--real {count}: there are {len(train)} annotated training images")
    order = permutation(mix(train.config.split_seed, Purpose.SAMPLE, _CHOICE), len(train))
    return whole_examples(train, sorted(int(i) for i in order[:count]))


def whole_examples(data: ImageDataset, chosen: range | list[int]) -> Examples:
    """Whole images and maps of a part, shrunk as the data is asked to be."""
    fitting, source = data.fitting, data.source
    assert source.maps is not None
    images, maps = [], []
    for i in chosen:
        number = data.indices[i]
        images.append(data.images.read(number))
        maps.append(fitting.prepared_map(source.maps.read(number)))
    return Examples(images, maps)


def _extra(folder: Path, train: ImageDataset, test: ImageDataset) -> Examples:
    """The pairs of an expansion. Raises InputError where there are none, of other classes, or its run saw a test
    image.
    """
    expansion = read_expansion(folder)
    if expansion.classes is None:
        raise InputError(f"{folder} holds images without maps; expand a run that was trained with --maps")
    if class_names(expansion.classes) != class_names(train.classes):
        raise InputError(
            f"{folder} has the classes {', '.join(class_names(expansion.classes))}, but {test.config.source} has "
            f"{', '.join(class_names(train.classes))}; expand a run of this data"
        )
    own = {name: digest for name, digest in test.digests.items() if digest != UNREADABLE}
    parts = dict(zip((r.name for r in test.source.records), test.parts, strict=True))
    tested, learnt = ({n: d for n, d in own.items() if parts[n] == part} for part in ("test", "train"))
    expansion.check_unseen(folder, tested, learnt, {})
    table = folder / "classes.json"
    pairs = build_dataset(
        DataConfig(
            source=str(folder),
            maps="maps",
            classes=str(table),
            size=8,
            fit="random",
            split="none",
            colour=train.config.colour,
            labels="none",
        ),
        progress=False,
    )
    return whole_examples(pairs, range(len(pairs)))


def _identity(train: ImageDataset, test: ImageDataset, settings: SegmentationSettings) -> str:
    """A hash of everything that a training depends on but its seed."""
    words = [train.identity(), test.identity(), str(settings.real), str(train.config.size)]
    words.append(repr(settings.training()))
    if settings.extra is not None:
        words.append(read_expansion(settings.extra).model_dump_json(exclude={"run"}))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _run(
    real: Examples,
    extra: Examples | None,
    test: Examples,
    names: tuple[str, ...],
    settings: SegmentationSettings,
    seed: int,
    identity: str,
    out: Path,
) -> tuple[SegmentationRun, list[NDArray[np.uint8]] | None]:
    """Train and test, unless that is done: its figures, and what was found."""
    file = out / f"seed-{seed}.json"
    if file.is_file():
        before = validate(SegmentationRun, read_json(file), str(file))
        if before.identity == identity:
            return before, None
    network = train_segmenter(real, extra, len(names), settings.training(), seed, settings.quiet)
    found = [find(network, image) for image in test.images]
    pairs = list(zip(test.maps, found, strict=True))
    run = SegmentationRun(
        seed=seed,
        identity=identity,
        dice={name: dice(pairs, k) for k, name in enumerate(names)},
        object_f1={name: object_f1(pairs, k) for k, name in enumerate(names) if k},
    )
    replace_file(file, json_bytes(run.as_json()))
    return run, found


def _mean(run: SegmentationRun, names: tuple[str, ...]) -> float:
    """Dice over all classes but the first, the background."""
    return float(np.mean([run.dice[name] for name in names[1:]]))


def _baseline(settings: SegmentationSettings, test: ImageDataset) -> SegmentationResults:
    assert settings.baseline is not None
    file = settings.baseline / RESULTS if settings.baseline.is_dir() else settings.baseline
    if not file.is_file():
        raise InputError(f"--baseline {settings.baseline}: there is no {RESULTS} of morphogen segment")
    found = validate(SegmentationResults, read_json(file), str(file))
    if found.test_images != len(test) or found.classes != tuple(class_names(test.classes)):
        raise InputError(f"--baseline {settings.baseline} was tested on other images or classes")
    return found


def _compared(
    runs: list[SegmentationRun], names: tuple[str, ...], baseline: SegmentationResults, settings: SegmentationSettings
) -> SegmentationComparison:
    before = {run.seed: _mean(run, names) for run in baseline.runs}
    both = [(_mean(run, names), before[run.seed]) for run in runs if run.seed in before]
    if not both:
        raise InputError(f"--baseline {settings.baseline} has other seeds; give the same --seed and --seeds")
    mine, theirs = zip(*both, strict=True)
    return SegmentationComparison(
        file=str(settings.baseline),
        dice=float(np.mean(theirs)),
        difference=float(np.mean(mine) - np.mean(theirs)),
        p=paired_p(mine, theirs, "t"),
    )


def _remarks(train: ImageDataset, settings: SegmentationSettings) -> tuple[str, ...]:
    said = []
    if train.groups is None:
        said.append("it is not known which images are of one patient; images of a patient may be in several parts")
    if settings.extra is not None and (unknown := read_expansion(settings.extra).trained_on.unknown):
        said.append(f"{settings.extra} began with {', '.join(unknown)}, trained on images not known here")
    return tuple(said)
