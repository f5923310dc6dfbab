"""The folder of an expansion: what each of its images is to be, and which are done."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import JsonValue
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.images import read_metadata
from morphogen.core.model import Model
from morphogen.core.validation import table
from morphogen.data.dataset import ImageDataset
from morphogen.data.expansions import FILE, LABELS, Expansion, write_expansion
from morphogen.data.source import label_records

CLASSIFIER = "classifier.safetensors"
"""The weights of the classifier that generated images have to agree with, where they have to."""
Settings = Mapping[str, JsonValue]
_OUTCOME = {"settings", "replaced", "run", "unrecognised", "quality"}  # what does not tell two expansions apart


@dataclass(frozen=True)
class Item:
    """One image to make: its number, its file, and its labels as a row and by name."""

    number: int
    path: Path
    row: Tensor
    labels: tuple[str, ...]

    def facts(self, made_with: Settings) -> dict[str, JsonValue]:
        """The least metadata of an image made with these settings."""
        return {"task": "expand", **made_with, "number": self.number, "labels": list(self.labels)}


def items_of(train: ImageDataset, model: Model, times: int, out: Path) -> list[Item]:
    """Every image to make: the training images that have labels in their order, `times` times."""
    count = len(train.labelled)
    width = len(str(count * times - 1))
    labels = [train.record(train.labelled[k % count]).labels for k in range(count * times)]
    names = [f"{has[0] if model.labels.exclusive else 'images'}/{k:0{width}d}.png" for k, has in enumerate(labels)]
    if [r.labels for r in label_records(names)] != labels or any(Path(n).parts != tuple(n.split("/")) for n in names):
        names = [f"images/{k:0{width}d}.png" for k in range(count * times)]  # no folder could be named so
    return [Item(k, out / names[k], model.labels.row(labels[k]), labels[k]) for k in range(count * times)]


def claim(out: Path, expansion: Expansion, items: Sequence[Item]) -> None:
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
            changed = _changed(before, json.loads(json_bytes(expansion.model_dump())))
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
        in_images = all(item.path.parent == out / "images" for item in items)
        if in_images and expansion.classes is None and not (out / LABELS).exists():
            replace_file(out / LABELS, _table(out, expansion, items))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None


def _changed(before: Mapping[str, JsonValue], now: Mapping[str, JsonValue]) -> list[str]:
    """The settings that differ between two expansions, flattened."""
    old, new = ({**e, **table(e.get("settings", {}), "settings")} for e in (before, now))
    names = sorted(new.keys() - _OUTCOME)
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
    for name in (LABELS, CLASSIFIER, f".{CLASSIFIER}.lock"):
        (out / name).unlink(missing_ok=True)
    (out / FILE).unlink()


def _table(out: Path, expansion: Expansion, items: Sequence[Item]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *expansion.labels.names])
    for item in items:
        writer.writerow([item.path.relative_to(out).as_posix(), *(int(x) for x in item.row.tolist())])
    return text.getvalue()


def is_done(item: Item, made_with: Settings) -> bool:
    """Whether the image is there, whole and made as it should be."""
    found = read_metadata(item.path)
    if found is None or any(found.get(k) != v for k, v in item.facts(made_with).items()):
        return False
    try:
        with Image.open(item.path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{path.name}-*"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
