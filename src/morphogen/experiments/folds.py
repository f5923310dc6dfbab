"""The folds that `classify` trains on, and what must not be among their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import ImageDataset, build_dataset
from morphogen.data.expansions import Expansion, read_expansion
from morphogen.data.labels import checked_labels
from morphogen.data.prepared import UNREADABLE
from morphogen.data.source import Part
from morphogen.data.sources import open_source
from morphogen.data.splits import read_split


@dataclass(frozen=True)
class Fold:
    """One fold, ready: its real images of both parts, and the expansion of its training part."""

    number: int | None
    train: ImageDataset
    test: ImageDataset
    extra: tuple[Path, Expansion] | None

    @property
    def label(self) -> str:
        return "test" if self.number is None else f"fold-{self.number}"


def open_folds(data: DataConfig, only: int | None, extra: str | None, quiet: bool) -> list[Fold]:
    """Every fold of the split with its expansion, checked. only: the number of one fold.

    Raises InputError before anything is trained.
    """
    if data.split in ("auto", "none"):
        numbers: list[int | None] = [None]
    else:
        count = read_split(Path(data.split).expanduser())["folds"]
        numbers = [None] if count is None else list(range(count))
        if only is not None and only not in numbers:
            there = "no folds" if count is None else f"folds 0..{count - 1}"
            raise InputError(f"--fold {only} is out of range; {data.split} has {there}")
        numbers = numbers if only is None else [only]
    if extra is not None and len(numbers) > 1 and "{fold}" not in extra:
        raise InputError(
            f"--extra {extra} is one folder for {len(numbers)} folds, but each fold needs a generator of its own; "
            "write {fold} where its number stands"
        )
    labels = checked_labels(open_source(data), needed=True)
    if len(labels) < 1 + labels.exclusive:
        raise InputError(
            f"{data.source} has {'one class' if len(labels) else 'no labels'}; put the images of at least two classes "
            "into folders of their names, or give --labels TABLE"
        )
    folds: list[Fold] = []
    for number in numbers:
        config = data.model_copy(update={"fold": number})
        train = folds[0].train.of_fold(number) if folds else build_dataset(config, progress=not quiet)
        train.check_classes_filled()
        test = train.other("test")
        expansion = None
        if extra is not None:
            folder = Path(extra.replace("{fold}", str(number))).expanduser()
            expansion = (folder, _checked_extra(folder, train, test))
        folds.append(Fold(number, train, test, expansion))
    return folds


def _checked_extra(folder: Path, train: ImageDataset, test: ImageDataset) -> Expansion:
    """The record of an expansion. Raises InputError where it has other labels, or its run saw what is tested."""
    expansion = read_expansion(folder)
    if expansion.labels != test.labels:
        raise InputError(
            f"{folder} has the labels {', '.join(expansion.labels.names)}, but {test.config.source} has "
            f"{', '.join(test.labels.names)}; expand a run of this data"
        )
    patients: dict[str, str] = {}
    if train.groups is not None and train.groups.by == "patient":
        patients = dict(zip((r.name for r in train.source.records), train.groups.names, strict=True))
    expansion.check_unseen(folder, _digests(test, "test"), _digests(test, "train"), patients)
    return expansion


def _digests(data: ImageDataset, part: Part) -> dict[str, str]:
    """The sha256 of every readable image of a part, by its name."""
    names = (record.name for record, of in zip(data.source.records, data.parts, strict=True) if of == part)
    return {name: data.digests[name] for name in names if data.digests[name] != UNREADABLE}


def remarks_on(folds: Sequence[Fold]) -> list[str]:
    """Remarks on the images for readers of the results."""
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
