"""Labels of images: classes by folder, or those of a table, which may leave classes by folder as they are."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from morphogen.core.errors import InputError
from morphogen.core.notices import say_once
from morphogen.data.matching import NameIndex, alike
from morphogen.data.source import Record, Source
from morphogen.data.tables import Table, named

if TYPE_CHECKING:
    from morphogen.core.model import LabelConfig

_RARE = 10  # times as many images as a label that may be it mistyped
_SHORTEST, _ALIKE = 4, 0.85  # letters, and share of them that agree


def put_on(table: Table, source: Source) -> None:
    """Give the records of a source what a table says of them. Names that had to be understood are said.

    Raises InputError, naming them, for files that the source does not hold or holds several times, and for images that
    the table does not list.
    """
    path = table.path
    index = NameIndex([record.name for record in source.records])
    found: dict[int, Record] = {}
    missing: list[str] = []
    understood: Counter[str] = Counter()
    example: dict[str, str] = {}
    for row in table.records:
        places, how = index.find(row.name)
        if not places:
            missing.append(row.name)
            continue
        if len(places) > 1:
            both = " and ".join(source.records[i].name for i in places[:2])
            raise InputError(f"{path}: the file {row.name} may be {both}; write its whole path in {source.name}")
        name = source.records[places[0]].name
        if places[0] in found:
            raise InputError(f"{path} lists {name} twice; keep one of the rows")
        found[places[0]] = row
        if how:
            understood[how] += 1
            example.setdefault(how, f"{row.name} as {name}")
    if missing:
        raise InputError(
            f"{path} lists {len(missing)} files that {source.name} does not hold: {named(missing)}; "
            "remove these rows or add the images"
        )
    unlisted = [r.name for i, r in enumerate(source.records) if i not in found]
    if unlisted:
        raise InputError(
            f"{source.name} holds {len(unlisted)} images that {path} does not list: {named(unlisted)}; "
            "add their rows or move the images elsewhere"
        )
    for how, count in understood.items():
        say_once(f"note: {path}: {count} names were found {how}, such as {example[how]}")
    for i, row in found.items():
        old = source.records[i]
        labels, part = row.labels if table.columns else old.labels, row.part or old.part
        source.records[i] = replace(row, name=old.name, labels=labels, part=part)
    source.columns = table.columns
    check_ids(source, [row.patient for row in table.records if row.patient is not None], f"{path}", "patients")


def check_ids(source: Source, ids: list[str], where: str, what: str) -> None:
    """Say which of the ids of patients or slides are probably one's, though they are kept apart; or refuse them, where
    the configuration is strict. Raises InputError then.
    """
    source.alike = alike(ids)
    if not source.alike:
        return
    groups = named(" and ".join(f"'{name}'" for name in group) for group in source.alike)
    if source.config.strict_ids:
        raise InputError(f"{where} has {what} that may be one (--strict-ids): {groups}; write each in one way")
    say_once(
        f"note: {where} has {what} that may be one but are kept apart: {groups}; write each in one way, or give "
        "--strict-ids to refuse them"
    )


def labels_of(source: Source) -> LabelConfig:
    """The labels of a source: those of its table, else its folders, sorted; none where none are wanted.

    They are classes where every labelled image has exactly one of them and, in a table, none has none.
    """
    from morphogen.core.model import LabelConfig

    if source.config.labels == "none":
        return LabelConfig()
    if source.columns:
        known = [r for r in source.records if not r.unlabelled]
        return LabelConfig(names=source.columns, exclusive=all(len(r.labels) == 1 for r in known))
    return LabelConfig(names=tuple(sorted({name for r in source.records for name in r.labels})))


def checked_labels(source: Source, needed: bool = False) -> LabelConfig:
    """The labels of a source that a model is to learn. needed: one without any is no way out.

    Raises InputError, naming them, for images without a class among others that have one, and for class folders without
    images.
    """
    labels = labels_of(source)
    say_alike_labels(source)
    if not labels.names or source.columns:
        return labels
    without = [r.name for r in source.records if not r.labels and not r.unlabelled]
    if without:
        raise InputError(
            f"{source.name} holds {len(without)} images without a label beside its class folders: {named(without)}; "
            f"move them into a class{' or elsewhere' if needed else ', or give --labels none to train without labels'}"
        )
    empty = _empty_classes(source)
    if empty:
        raise InputError(
            f"{source.name} has class folders without images: {named(empty)}; remove them or put images into them"
        )
    return labels


def say_alike_labels(source: Source) -> None:
    """Say which rare labels are probably a frequent one, mistyped. They stay labels of their own."""
    counts = Counter(name for record in source.records for name in record.labels)
    found = []
    for rare, few in sorted(counts.items()):
        near = [name for name, many in counts.items() if few * _RARE <= many and _may_be_one(rare, name)]
        found += [f"'{rare}' ({few} images) may be '{max(near, key=counts.__getitem__)}'"] if near else []
    if found:
        where = source.config.labels if source.columns else source.name
        say_once(f"note: {where}: labels that may be mistyped: {named(found)}; they are taken for labels of their own")


def _may_be_one(one: str, other: str) -> bool:
    """Whether two labels differ by little more than a typing error: not in their first letter, nor in numbers only."""
    a, b = one.casefold(), other.casefold()
    if min(len(a), len(b)) < _SHORTEST or a[0] != b[0] or re.sub(r"\d+", "", a) == re.sub(r"\d+", "", b):
        return False
    return SequenceMatcher(None, a, b).ratio() >= _ALIKE


def _empty_classes(source: Source) -> list[str]:
    """The folders beside those that are classes, in which there is no image; none where classes are no folders."""
    folders = source.folders()
    if not folders:
        return []
    beside: set[PurePosixPath] = set()
    used: set[PurePosixPath] = set()
    for record in (r for r in source.records if r.labels):
        parents = list(PurePosixPath(record.name).parents)
        folder = next(parent for parent in parents if parent.name == record.labels[0])  # the innermost of that name
        beside.add(folder.parent)
        used.update(parents)
    known = {name for record in source.records for name in record.labels}
    empty = (PurePosixPath(f) for f in folders if PurePosixPath(f) not in used)
    return sorted(str(f) for f in empty if f.parent in beside and f.name not in known)
