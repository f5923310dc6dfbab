"""`expand`: a run's training images several times over as generated ones, with the same labels, none of them a copy."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import read_json, replace_file
from morphogen.core.images import read_metadata, save_png, to_bytes
from morphogen.core.keys import Key
from morphogen.core.model import Model
from morphogen.core.progress import Progress
from morphogen.core.validation import table, validate
from morphogen.data.config import DataConfig
from morphogen.data.dataset import UNREADABLE, ImageDataset, build_dataset
from morphogen.data.expansions import FILE, LABELS, Expansion, TrainedOn, read_expansion, write_expansion
from morphogen.data.labels import labels_of
from morphogen.data.source import label_records
from morphogen.data.splits import read_split
from morphogen.metrics.generated import weights_hash
from morphogen.metrics.image_sets import of_dataset
from morphogen.metrics.memorization import CopyFinder
from morphogen.metrics.networks import open_network
from morphogen.training.config import RunConfig
from morphogen.training.lineage import lineage, trained_on
from morphogen.training.run_folder import RunFolder, read_run

PIXELS = "pixels"


@dataclass(frozen=True)
class ExpansionSettings:
    """What to make. Image number k, of `times` times the training images, has the seed `seed` + k; where that gives a
    near-copy of a training image, the seed after all others, and so on, at most `tries` times.

    network: in whose features copies are told; `pixels`, or as for `evaluate`. keep_copies: only count them. shard:
    this process makes every shard[1]-th batch from number shard[0] on.
    """

    times: int = 5
    seed: int = 0
    sampler: str | None = None
    sampling_steps: int | None = None
    guidance: float = 1.5
    batch_size: int = 32
    precision: str = "auto"
    network: str = PIXELS
    keep_copies: bool = False
    tries: int = 20
    shard: tuple[int, int] = (0, 1)
    quiet: bool = False


@dataclass(frozen=True)
class _Item:
    number: int
    path: Path
    row: Tensor
    labels: tuple[str, ...]


def expand(model: Model, folder: Path, data: str | None, plan: ExpansionSettings, out: Path) -> dict[str, Any]:
    """Fill `out` with `plan.times` generated images for every training image of the run in `folder`, of its labels.

    Classes become folders; any other labels lie in labels.csv beside images/. Images that are there already stay. data:
    where the run's images are now, if elsewhere. Returns counts, as JSON types. Raises InputError for a model without
    labels, other images than those the run was trained on, a folder of something else, and where every try is a copy.
    """
    if not len(model.labels):
        raise InputError(
            f"{folder} was trained without labels, so that it cannot be asked for any; train it on labelled data"
        )
    config = read_run(folder)
    RunFolder(out).refuse_inside(data or config.data.source)
    train = _training_part(folder, config, data, plan.quiet)
    if labels_of(train.source) != model.labels:
        raise InputError(
            f"the labels of {train.config.source} are not those of {folder}: {', '.join(train.labels.names) or 'none'} "
            f"instead of {', '.join(model.labels.names)}; give the data and labels that it was trained on"
        )
    network = None if plan.network == PIXELS else open_network(plan.network, model.device)
    name, steps = model.sampling(plan.sampler, plan.sampling_steps)
    settings = {
        "weights": weights_hash(model),
        "sampler": name,
        "sampling_steps": steps,
        "guidance": plan.guidance,
        "precision": plan.precision,
        "first_seed": plan.seed,
        "batch_size": plan.batch_size,
        "copies_in": plan.network,
        "copies": "kept" if plan.keep_copies else "replaced",
    }
    items = _items(train, model, plan.times, out)
    Key.of([plan.seed, plan.seed + (plan.tries + 1) * len(items)])  # a bad seed is named before anything is made
    expansion = Expansion(
        run=str(folder),
        settings=settings,
        labels=model.labels,
        times=plan.times,
        images=len(items),
        trained_on=_seen(folder, train),
    )
    _claim(out, expansion, items)
    batches = [items[i : i + plan.batch_size] for i in range(0, len(items), plan.batch_size)]
    mine = [b for b in batches[plan.shard[0] :: plan.shard[1]] if not all(_is_done(i, settings) for i in b)]
    finder: CopyFinder | None = None
    with Progress("expanding", len(items), "images", len(items) - sum(map(len, mine)), plan.quiet) as progress:
        for batch in mine:
            if finder is None:
                finder = CopyFinder(of_dataset(train), train.recipe, network, quiet=True)
            _make(model, batch, len(items), finder, settings, plan)
            progress.advance(len(batch))
    found = _summary(out, expansion, items)
    if train.recipe.fit == "random":
        found["remarks"].append("training took random crops; copies were looked for among one crop of every image")
    return found


def _training_part(folder: Path, config: RunConfig, data: str | None, quiet: bool) -> ImageDataset:
    """The images that a run was trained on. Raises InputError where they are not there any more."""
    split = RunFolder(folder).split_file
    values = {**config.data.model_dump(mode="json"), "split": str(split), "fold": None}
    settings = validate(DataConfig, values if data is None else {**values, "source": data}, "expand")
    train = build_dataset(settings, "train", seed=config.training.seed, progress=not quiet)
    fingerprint = read_split(split).get("fingerprint")
    if fingerprint is not None and fingerprint != train.fingerprint:
        raise InputError(f"the images of {settings.source} are not those that {folder} was trained on; name those")
    return train


def _seen(folder: Path, train: ImageDataset) -> TrainedOn:
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
            patients |= {str(group) for name, group in groups.items() if name in seen}
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


def _items(train: ImageDataset, model: Model, times: int, out: Path) -> list[_Item]:
    """Every image to make: the training images in their order, `times` times."""
    count = len(train)
    width = len(str(count * times - 1))
    labels = [train.record(k % count).labels for k in range(count * times)]
    names = [f"{has[0] if model.labels.exclusive else 'images'}/{k:0{width}d}.png" for k, has in enumerate(labels)]
    if [r.labels for r in label_records(names)] != labels or any(Path(n).parts != tuple(n.split("/")) for n in names):
        names = [f"images/{k:0{width}d}.png" for k in range(count * times)]  # no folder could be named so
    return [_Item(k, out / names[k], model.labels.row(labels[k]), labels[k]) for k in range(count * times)]


def _claim(out: Path, expansion: Expansion, items: Sequence[_Item]) -> None:
    """Make the folder this expansion's, however far another process came with that, or another expansion without an
    image. Raises InputError where it holds something else, or cannot be written.
    """
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file; name a folder")
        out.mkdir(parents=True, exist_ok=True)
        foreign = [p for p in out.iterdir() if not p.name.startswith(f".{FILE}-")]  # of a process that was killed
        if (out / FILE).exists():
            before = table(read_json(out / FILE), str(out / FILE))
            changed = _changed(before, expansion.model_dump(mode="json"))
            if changed and any(out.glob("*/*.png")):
                raise InputError(f"{out} holds another expansion ({'; '.join(changed)}); name another --out")
            if changed:
                _clear(out)
        elif foreign:
            raise InputError(f"--out {out} is there and no expansion; name a new folder")
        if not (out / FILE).exists():
            write_expansion(out, expansion)
        for folder in {item.path.parent for item in items}:
            folder.mkdir(exist_ok=True)
        if all(item.path.parent == out / "images" for item in items) and not (out / LABELS).exists():
            replace_file(out / LABELS, _table(out, expansion, items))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two expansions, as flat as it can be told."""
    old, new = ({**e, **e.get("settings", {})} for e in (before, now))
    names = sorted(new.keys() - {"settings", "replaced", "run"})
    plain = (int, float, str)
    return [
        f"{k} was {old.get(k)}, is {new[k]}" if isinstance(new[k], plain) and k != "weights" else f"its {k} differ"
        for k in names
        if old.get(k) != new[k]
    ]


def _clear(out: Path) -> None:
    """Take away what an expansion without images made: its folders, its table, and last what it says of itself."""
    for folder in (p for p in out.iterdir() if p.is_dir()):
        for leftover in folder.glob(".*.png-*"):
            leftover.unlink()
        folder.rmdir()
    (out / LABELS).unlink(missing_ok=True)
    (out / FILE).unlink()


def _table(out: Path, expansion: Expansion, items: Sequence[_Item]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *expansion.labels.names])
    for item in items:
        writer.writerow([item.path.relative_to(out).as_posix(), *(int(x) for x in item.row.tolist())])
    return text.getvalue()


def _said(item: _Item, settings: dict[str, Any]) -> dict[str, Any]:
    return {"task": "expand", **settings, "number": item.number, "labels": list(item.labels)}


def _is_done(item: _Item, settings: dict[str, Any]) -> bool:
    """Whether the image is there, whole and made as it should be."""
    found = read_metadata(item.path)
    if found is None or any(found.get(k) != v for k, v in _said(item, settings).items()):
        return False
    try:
        with Image.open(item.path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _make(
    model: Model,
    batch: Sequence[_Item],
    total: int,
    finder: CopyFinder,
    settings: dict[str, Any],
    plan: ExpansionSettings,
) -> None:
    """Make and write the images of a batch: all at once, then those anew that were copies, and so on.

    An interrupted batch is made again as a whole, so that whatever a batch's size does to rounding, it does again.
    """
    waiting = list(batch)
    for attempt in range(plan.tries + 1):
        seeds = [plan.seed + item.number + attempt * total for item in waiting]
        rows = torch.stack([item.row for item in waiting]).to(model.device)
        images = model.generate(
            Key.of(seeds),
            labels=rows,
            guidance=plan.guidance,
            sampler=settings["sampler"],
            steps=settings["sampling_steps"],
        )
        arrays = to_bytes(images)
        colours = torch.from_numpy(np.repeat(arrays, 3 // arrays.shape[-1], axis=-1).transpose(0, 3, 1, 2).copy())
        again: list[_Item] = []
        for item, seed, array, (distance, near) in zip(waiting, seeds, arrays, finder(colours), strict=True):
            copy = distance <= finder.limit
            if copy and not plan.keep_copies:
                again.append(item)
                continue
            _remove_leftovers(item.path)
            facts = {"seed": seed, "copies_before": attempt, "copy": copy, "nearest": near, "distance": distance}
            facts["copy_limit"] = finder.limit
            picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
            save_png(item.path, picture, {**_said(item, settings), **facts})
        waiting = again
        if not waiting:
            return
    raise InputError(
        f"{plan.tries + 1} seeds for image {waiting[0].number} ({' + '.join(waiting[0].labels) or 'no label'}) all "
        f"gave near-copies of training images in {plan.network}: this run gives its training images back; train it "
        "less or on more images, or give --keep-copies to keep and only count them"
    )


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{path.name}-*"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)


def _summary(out: Path, expansion: Expansion, items: Sequence[_Item]) -> dict[str, Any]:
    """Counts of what is there; written into expansion.json once that is everything."""
    found = [read_metadata(item.path) for item in items]
    made = [facts for facts in found if facts is not None]
    replaced = sum(facts["copies_before"] for facts in made)
    if len(made) == len(items):
        write_expansion(out, expansion.model_copy(update={"replaced": replaced}))
        read_expansion(out)
    return {
        "out": str(out),
        "images": len(made),
        "of": len(items),
        "replaced": replaced,
        "copies": sum(facts["copy"] for facts in made),
        "remarks": [],
        "labels": dict(sorted(Counter(" + ".join(facts["labels"]) for facts in made).items())),
    }
