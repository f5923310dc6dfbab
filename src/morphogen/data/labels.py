"""Labels of images: classes by folder, or a table (CSV or Parquet) with a 0/1 column a label.

A table has the columns `file` (a path as in the data, or the end of one that only one image has), any number of labels
(0 or 1, true or false), and may have `patient`, `eye` (of its patient, where there is a patient column) and `split`
(train, val or test). A table without label columns leaves classes by folder as they are.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from morphogen.core.errors import InputError
from morphogen.core.files import read_bytes
from morphogen.data.source import PART_FOLDERS, Record, Source

if TYPE_CHECKING:
    from morphogen.core.model import LabelConfig

_RESERVED = ("file", "patient", "eye", "split")
_VALUES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_NAMED = 5  # of a list in a message


def named(names: Iterable[str]) -> str:
    """The first few of a list, for a message."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


@dataclass(frozen=True)
class Table:
    """What a label table says: records under the names that it uses, and its label columns in their order."""

    path: Path
    columns: tuple[str, ...]
    records: tuple[Record, ...]

    def put_on(self, source: Source) -> None:
        """Give the records of a source what the table says of them.

        Raises InputError, naming them, for files that the source does not hold or holds several times, and for images
        that the table does not list.
        """
        by_end: dict[str, list[int]] = defaultdict(list)
        for i, record in enumerate(source.records):
            by_end[PurePosixPath(record.name).name].append(i)
        exact = {record.name: i for i, record in enumerate(source.records)}
        found: dict[int, Record] = {}
        missing: list[str] = []
        for row in self.records:
            near = by_end[PurePosixPath(row.name).name]
            places = [exact[row.name]] if row.name in exact else [i for i in near if _ends(source, i, row.name)]
            if not places:
                missing.append(row.name)
                continue
            if len(places) > 1:
                both = " and ".join(source.records[i].name for i in places[:2])
                raise InputError(
                    f"{self.path}: the file {row.name} may be {both}; write its whole path in {source.name}"
                )
            if places[0] in found:
                raise InputError(f"{self.path} lists {source.records[places[0]].name} twice; keep one of the rows")
            found[places[0]] = row
        if missing:
            raise InputError(
                f"{self.path} lists {len(missing)} files that {source.name} does not hold: {named(missing)}; "
                "remove these rows or add the images"
            )
        unlisted = [r.name for i, r in enumerate(source.records) if i not in found]
        if unlisted:
            raise InputError(
                f"{source.name} holds {len(unlisted)} images that {self.path} does not list: {named(unlisted)}; "
                "add their rows or move the images elsewhere"
            )
        for i, row in found.items():
            old = source.records[i]
            labels, part = row.labels if self.columns else old.labels, row.part or old.part
            source.records[i] = replace(row, name=old.name, labels=labels, part=part)
        source.columns = self.columns


def _ends(source: Source, i: int, name: str) -> bool:
    return source.records[i].name.endswith("/" + name)


def labels_of(source: Source) -> LabelConfig:
    """The labels of a source: the columns of its table, else its folders, sorted; none where none are wanted.

    They are classes where every labelled image has exactly one of them and, in a table, none has none.
    """
    from morphogen.core.model import LabelConfig

    if source.config.labels == "none":
        return LabelConfig()
    if source.columns:
        return LabelConfig(names=source.columns, exclusive=all(len(r.labels) == 1 for r in source.records))
    return LabelConfig(names=tuple(sorted({name for r in source.records for name in r.labels})))


def checked_labels(source: Source, needed: bool = False) -> LabelConfig:
    """The labels of a source that a model is to learn. needed: one without any is no way out.

    Raises InputError, naming them, for images without a class among others that have one, and for class folders without
    images.
    """
    labels = labels_of(source)
    if not labels.names or source.columns:
        return labels
    without = [r.name for r in source.records if not r.labels]
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


def _empty_classes(source: Source) -> list[str]:
    """The folders beside those that are classes, in which there is no image; none where classes are no folders."""
    folders = source.folders()
    if not folders:
        return []
    beside: set[PurePosixPath] = set()
    used: set[PurePosixPath] = set()
    for record in source.records:
        parents = list(PurePosixPath(record.name).parents)
        folder = next(parent for parent in parents if parent.name == record.labels[0])  # the innermost of that name
        beside.add(folder.parent)
        used.update(parents)
    known = {name for record in source.records for name in record.labels}
    empty = (PurePosixPath(f) for f in folders if PurePosixPath(f) not in used)
    return sorted(str(f) for f in empty if f.parent in beside and f.name not in known)


# ------------------------------------------------------------------------------------------------ reading a table


def read_table(path: Path) -> Table:
    """A label table, CSV (UTF-8; commas, semicolons or tabs) or Parquet.

    Raises InputError, naming the row and the column, for a file that is none, a missing column, a value that is neither
    0 nor 1, a file listed twice, and a label that no image has.
    """
    header, rows, word = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    known = [name.strip() for name in header]
    for name, count in Counter(known).items():
        if count > 1 or not name:
            what = f"has {count} columns named '{name}'" if name else "has a column without a name"
            raise InputError(f"{path} {what}; give every column a name of its own")
    special = {name.lower(): i for i, name in enumerate(known) if name.lower() in _RESERVED}
    if "file" not in special:
        raise InputError(f"{path} has no column 'file'; its columns are {named(known)}")
    labels = [(i, name) for i, name in enumerate(known) if name.lower() not in _RESERVED]
    records = [_record(path, f"{word} {number}", row, special, labels) for number, row in rows]
    if not records:
        raise InputError(f"{path} lists no images; it should have a row for each")
    twice = [name for name, count in Counter(r.name for r in records).items() if count > 1]
    if twice:
        raise InputError(f"{path} lists {twice[0]} twice; keep one of the rows")
    for _, name in labels:
        if not any(name in r.labels for r in records):
            raise InputError(f"{path}: no image has the label '{name}'; remove the column or add images")
    return Table(path, tuple(name for _, name in labels), tuple(records))


def _record(
    path: Path, row: str, values: Sequence[Any], special: dict[str, int], labels: Sequence[tuple[int, str]]
) -> Record:
    texts = {name: _text(values[i]) for name, i in special.items()}
    for name, text in texts.items():
        if not text:
            raise InputError(f"{path}, {row}: the column '{name}' is empty; fill it in every row or remove the column")
    part = PART_FOLDERS.get(texts["split"].lower()) if "split" in texts else None
    if "split" in texts and part is None:
        raise InputError(f"{path}, {row}: split is {texts['split']!r}; it should be train, val or test")
    has = []
    for i, name in labels:
        value = _VALUES.get(_text(values[i]).lower())
        if value is None:
            raise InputError(f"{path}, {row}: the label '{name}' is {_text(values[i])!r}; it should be 0 or 1")
        if value:
            has.append(name)
    file = PurePosixPath(texts["file"].replace("\\", "/")).as_posix()
    return Record(file, tuple(has), part, texts.get("patient"), texts.get("eye"))


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The header, the rows with their line numbers, and what those are called."""
    try:
        text = read_bytes(path, "the label table ").decode("utf-8-sig")
    except ValueError:
        raise InputError(f"the label table {path} is not UTF-8 text; save it as CSV in UTF-8, or as .parquet") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: it is not valid CSV ({error})") from None
    if not rows:
        raise InputError(f"the label table {path} is empty; it should have a header with a column 'file'")
    header = rows[0][1]
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise InputError(f"{path}, line {number}: it has {len(row)} columns; it should have {len(header)}")
    return header, rows[1:], "line"


def _parquet(path: Path) -> tuple[list[str], list[tuple[int, list[Any]]], str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f'{path} needs pyarrow; install it with pip install "morphogen[datasets]", or use CSV'
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the label table {path} cannot be read as Parquet: {reason}") from None
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, list(enumerate(map(list, zip(*columns, strict=True)), 1)), "row"
