"""`expand`: a run's training images several times over as generated ones, with the same labels, none of them a copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.images import read_metadata, save_png, to_bytes, to_rgb
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.progress import Progress
from morphogen.core.request import SamplingRequest
from morphogen.core.validation import validate
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.data.expansions import Expansion, ExpansionQuality, TrainedOn, read_expansion, write_expansion
from morphogen.data.labels import labels_of
from morphogen.data.prepared import UNREADABLE
from morphogen.data.splits import read_split
from morphogen.data.unlabelled import PREFIX
from morphogen.experiments.agreement import agreement, training_classifier
from morphogen.experiments.classifier import ClassifierSettings
from morphogen.experiments.expansion_folder import Item, Settings, claim, is_done, items_of, remove_leftovers
from morphogen.experiments.expansion_quality import measure_expansion
from morphogen.metrics.feature_network import FeatureNetwork
from morphogen.metrics.generated import weights_hash
from morphogen.metrics.image_sets import of_dataset
from morphogen.metrics.memorization import CopyFinder
from morphogen.metrics.networks import open_network
from morphogen.metrics.records import Record
from morphogen.training.config import RunConfig
from morphogen.training.lineage import lineage, trained_on
from morphogen.training.run_folder import RunFolder, read_run

PIXELS = "pixels"
_FEW = 10  # images of a label, of which a generator knows little
Agreement = Callable[[Tensor, Tensor], NDArray[np.float64]]


@dataclass(frozen=True)
class ExpansionSettings:
    """The settings of an expansion. Image number k, of `times` times the training images, has the seed `seed` + k;
    where that gives a near-copy of a training image, the seed after all others, and so on, at most `tries` times.

    network: in whose features copies are found: `pixels`, or as for `evaluate`. keep_copies: only count. agree: how
    sure a classifier of the training images must be of an image's labels, else it is made anew, at most `agree_tries`
    times, and the image that it was surest of is kept and counted; None asks no classifier. classifier_steps: of its
    training. shard: this process makes every shard[1]-th batch from number shard[0] on.
    """

    times: int = 5
    seed: int = 0
    request: SamplingRequest = SamplingRequest(guidance=1.5)
    batch_size: int = 32
    network: str = PIXELS
    keep_copies: bool = False
    tries: int = 20
    agree: float | None = None
    agree_tries: int = 4
    classifier_steps: int = 1000
    shard: tuple[int, int] = (0, 1)
    quiet: bool = False


class ExpansionSummary(Record):
    """The state of an expansion. replaced: images made anew, having been copies. unrecognised: by their labels, the
    images that the classifier never agreed with; None where none was asked. labels: images of every combination.
    """

    omitted = frozenset({"unrecognised", "quality"})

    out: str
    images: int
    of: int
    replaced: int
    copies: int
    remarks: tuple[str, ...] = ()
    labels: dict[str, int]
    unrecognised: dict[str, int] | None = None
    quality: ExpansionQuality | None = None


def expand(
    model: Model,
    folder: Path,
    data: str | None,
    settings: ExpansionSettings,
    out: Path,
    labels: str | None = None,
    unlabelled: str | None = None,
) -> ExpansionSummary:
    """Fill `out` with `times` generated images for every labelled training image of the run in `folder`, of its labels.

    Classes become folders; any other labels lie in labels.csv beside images/. Images that are there already stay. data,
    labels, unlabelled: where the run's images, their table and its images without labels are now, if elsewhere. Raises
    InputError for a model without labels, other images than those the run was trained on, a folder of something else,
    and where every try is a copy.
    """
    if not len(model.labels):
        raise InputError(
            f"{folder} was trained without labels, so that it cannot be asked for any; train it on labelled data"
        )
    config = read_run(folder)
    RunFolder(out).check_not_inside(data or config.data.source)
    moved = {"source": data, "labels": labels, "unlabelled": unlabelled}
    train = training_part(folder, config, moved, settings.quiet)
    if labels_of(train.source) != model.labels:
        raise InputError(
            f"the labels of {train.config.source} are not those of {folder}: {', '.join(train.labels.names) or 'none'} "
            f"instead of {', '.join(model.labels.names)}; give the data and labels that it was trained on"
        )
    network = None if settings.network == PIXELS else open_network(settings.network, model.device)
    made_with = settings_made_with(model, settings)
    items = items_of(train, model, settings.times, out)
    Key.of([settings.seed, settings.seed + (settings.tries + 1) * len(items)])  # a bad seed is named before any work
    expansion = Expansion(
        run=str(folder),
        settings=dict(made_with),
        labels=model.labels,
        times=settings.times,
        images=len(items),
        trained_on=seen_by(folder, train),
    )
    claim(out, expansion, items)
    batches = [items[i : i + settings.batch_size] for i in range(0, len(items), settings.batch_size)]
    mine = [b for b in batches[settings.shard[0] :: settings.shard[1]] if not all(is_done(i, made_with) for i in b)]
    if mine:
        maker = _Maker(model, len(items), train, network, made_with, settings, out)
        done = len(items) - sum(map(len, mine))
        with Progress("expanding", len(items), "images", done, settings.quiet) as progress:
            for batch in mine:
                maker.make(batch)
                progress.advance(len(batch))
    return _summary(out, expansion, items, train, network, settings)


def settings_made_with(model: Model, settings: ExpansionSettings) -> Settings:
    """All settings that decide an image beside its seed and labels."""
    request = model.resolve(settings.request)
    made_with: dict[str, JsonValue] = {
        "weights": weights_hash(model),
        "sampler": request.sampler,
        "sampling_steps": request.steps,
        "guidance": request.guidance,
        "precision": model.precision,
        "first_seed": settings.seed,
        "batch_size": settings.batch_size,
        "copies_in": settings.network,
        "copies": "kept" if settings.keep_copies else "replaced",
    }
    if settings.request.nca_steps is not None:
        made_with["nca_steps"] = settings.request.nca_steps
    if settings.agree is not None:
        made_with |= {"agree": settings.agree, "classifier_steps": settings.classifier_steps}
    return made_with


def training_part(folder: Path, config: RunConfig, moved: dict[str, str | None], quiet: bool) -> ImageDataset:
    """The images that a run was trained on. moved: settings of the data that are others now, None for those that are
    not. Raises InputError where they are not there any more.
    """
    split = RunFolder(folder).split_file
    values = {**config.data.model_dump(mode="json"), "split": str(split), "fold": None}
    settings = validate(DataConfig, values | {k: v for k, v in moved.items() if v is not None}, "expand")
    train = build_dataset(settings, "train", seed=config.training.seed, progress=not quiet)
    fingerprint = read_split(split).get("fingerprint")
    if fingerprint is not None and fingerprint != train.fingerprint:
        raise InputError(f"the images of {settings.source} are not those that {folder} was trained on; name those")
    return train


def seen_by(folder: Path, train: ImageDataset) -> TrainedOn:
    """Every image that went into the weights: the run's, and those of the runs that it started from."""
    splits, unknown = lineage(folder)
    images: dict[str, str] = {}
    patients: set[str] = set()
    by_patient = train.groups is not None and train.groups.by == "patient"
    groups = splits[str(folder)].get("groups", {}) if by_patient else {}
    for where, split in splits.items():
        seen = trained_on(split)
        if where == str(folder) or split.get("fingerprint") == train.fingerprint:
            images |= {name: train.digests[name] for name in seen if train.digests[name] != UNREADABLE}
            patients |= {
                str(group) for name, group in groups.items() if name in seen and not str(group).startswith(PREFIX)
            }
        else:  # other images, whose patients are not those of the same name here
            unknown = (*unknown, where)
            images |= {f"{where}: {name}": digest for name, digest in seen.items() if digest is not None}
    return TrainedOn(
        source=train.config.source,
        fingerprint=train.fingerprint,
        images=dict(sorted(images.items())),
        patients=tuple(sorted(patients)),
        unknown=unknown,
    )


class _Maker:
    """Makes the images of an expansion, batch by batch."""

    def __init__(
        self,
        model: Model,
        total: int,
        train: ImageDataset,
        network: FeatureNetwork | None,
        made_with: Settings,
        settings: ExpansionSettings,
        out: Path,
    ) -> None:
        self._model, self._total, self._made_with, self._settings = model, total, made_with, settings
        self._finder = CopyFinder(of_dataset(train), train.fitting, network, quiet=True)
        self._classifier = None
        if settings.agree is not None:
            how = ClassifierSettings(settings.classifier_steps, device=str(model.device))
            self._classifier = training_classifier(train, how, out, settings.quiet)

    def make(self, batch: Sequence[Item]) -> None:
        """Make and write the images of a batch: all at once, then those anew that were no good, and so on.

        An interrupted batch is made again as a whole, so that whatever a batch's size does to rounding, it does again.
        """
        waiting = [_Candidate(item) for item in batch]
        for attempt in range(self._settings.tries + 1):
            made = self._generate([c.item for c in waiting], attempt)
            waiting = [c for c, image in zip(waiting, made, strict=True) if not self._keep(c, image)]
            if not waiting:
                return
        for candidate in waiting:
            if candidate.best is None:
                item = candidate.item
                what = f"image {item.number} ({' + '.join(item.labels) or 'no label'})"
                raise InputError(
                    f"{self._settings.tries + 1} seeds for {what} all gave near-copies of training images in "
                    f"{self._settings.network}: this run gives its training images back; train it less or on more "
                    "images, or give --keep-copies to keep and only count them"
                )
            self._write(candidate, candidate.best)

    def _generate(self, items: Sequence[Item], attempt: int) -> list[_Made]:
        """One image an item, of the seeds of an attempt."""
        seeds = [self._settings.seed + item.number + attempt * self._total for item in items]
        rows = torch.stack([item.row for item in items])
        labels = rows.to(self._model.device)
        images = self._model.generate(Key.of(seeds), request=self._settings.request, labels=labels)
        arrays = to_bytes(images)
        colours = torch.from_numpy(to_bytes(to_rgb(images)).transpose(0, 3, 1, 2).copy())
        near, sure = self._finder(colours), np.ones(len(items))
        if self._classifier is not None:
            sure = agreement(self._classifier, colours, rows, self._model.labels.exclusive)
        return [
            _Made(seed, pixels, distance, name, distance <= self._finder.limit, float(agreed))
            for seed, pixels, (distance, name), agreed in zip(seeds, arrays, near, sure, strict=True)
        ]

    def _keep(self, candidate: _Candidate, made: _Made) -> bool:
        """Write an image if it is good, or the best that there will be. Whether it was written."""
        if made.copy and not self._settings.keep_copies:
            candidate.copies += 1
            return False
        if candidate.best is None or made.agreed > candidate.best.agreed:
            candidate.best = made
        if made.agreed < (self._settings.agree or 0.0) and candidate.unrecognised < self._settings.agree_tries:
            candidate.unrecognised += 1
            return False
        self._write(candidate, candidate.best)
        return True

    def _write(self, candidate: _Candidate, made: _Made) -> None:
        item = candidate.item
        facts: dict[str, JsonValue] = {
            **item.facts(self._made_with),
            "seed": made.seed,
            "copies_before": candidate.copies,
            "copy": made.copy,
            "nearest": made.nearest,
            "distance": made.distance,
            "copy_limit": self._finder.limit,
        }
        if self._settings.agree is not None:
            facts |= {"agreement": made.agreed, "recognised": made.agreed >= self._settings.agree}
        remove_leftovers(item.path)
        pixels = made.pixels
        save_png(item.path, Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), facts)


@dataclass(frozen=True)
class _Made:
    """A generated image, its distance to the nearest training image, and how sure the classifier is of its labels."""

    seed: int
    pixels: NDArray[np.uint8]
    distance: float
    nearest: str
    copy: bool
    agreed: float


@dataclass
class _Candidate:
    """An image that is not there yet, and what was made of it so far."""

    item: Item
    copies: int = 0
    unrecognised: int = 0
    best: _Made | None = None


def _summary(
    out: Path,
    expansion: Expansion,
    items: Sequence[Item],
    train: ImageDataset,
    network: FeatureNetwork | None,
    settings: ExpansionSettings,
) -> ExpansionSummary:
    """Counts of what is there; written into expansion.json once that is everything."""
    made = [facts for item in items if (facts := read_metadata(item.path)) is not None]
    replaced = sum(facts["copies_before"] for facts in made)
    unrecognised = None
    if settings.agree is not None:
        unrecognised = dict(sorted(Counter(_named(f) for f in made if not f["recognised"]).items()))
    quality = None
    if len(made) == len(items):
        quality = measure_expansion([item.path for item in items], train, network, settings.quiet)
        outcome = {"replaced": replaced, "unrecognised": unrecognised, "quality": quality}
        write_expansion(out, expansion.model_copy(update=outcome))
        read_expansion(out)
    remarks = []
    if train.fitting.fit == "random":
        remarks.append("training took random crops; copies were looked for among one crop of every image")
    few = {name: count for name, count in train.label_counts().items() if count < _FEW}
    if few:
        names = ", ".join(f"{name} ({count} images)" for name, count in few.items())
        remarks.append(f"the run was trained on few images of {names}: what it makes of those is little but variations")
    if unrecognised:
        made_of = Counter(_named(facts) for facts in made)
        names = ", ".join(f"{count} of {made_of[name]} of {name or 'no label'}" for name, count in unrecognised.items())
        remarks.append(
            f"a classifier of the training images recognised none of {settings.agree_tries + 1} tries of these images; "
            f"the try that it was surest of is kept: {names}"
        )
    return ExpansionSummary(
        out=str(out),
        images=len(made),
        of=len(items),
        replaced=replaced,
        copies=sum(facts["copy"] for facts in made),
        remarks=tuple(remarks),
        labels=dict(sorted(Counter(_named(facts) for facts in made).items())),
        unrecognised=unrecognised,
        quality=quality,
    )


def _named(facts: dict[str, list[str]]) -> str:
    return " + ".join(facts["labels"])
