"""Label tables, CSV or Parquet, as people have them: which column is what, and what each row says of its image.

A table has a column of files (`file`, or a usual other name), any number of labels, each a column of 0 and 1 (or true
and false), or one column of class names (several separated by semicolons), and may have `patient`, `eye` (of its
patient, if there is a patient column) and `split` (train, val or test).
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from morphogen.core.errors import InputError, first_line
from morphogen.core.files import read_bytes
from morphogen.core.notices import say_once
from morphogen.data.source import PART_FOLDERS, Record

# The name that is meant, and other names that people give such a column.
_RESERVED = {
    "file": "filename file_name filepath file_path image image_file image_name image_path img img_path path",
    "patient": "patient_id patientid subject subject_id",
    "eye": "laterality",
    "split": "partition",
}
_CLASSES = frozenset(("class", "classes", "class_name", "label", "labels", "category", "diagnosis", "target", "tags"))
_VALUES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_NAMED = 5  # of a list in a message


def named(names: Iterable[str]) -> str:
    """The first few of a list, for a message."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


@dataclass(frozen=True)
class Table:
    """The content of a label table: records under the names that it uses, and its labels in their order."""

    path: Path
    columns: tuple[str, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class _Row:
    """A row's place, for messages, and its values as text."""

    where: str
    values: list[str]


def read_table(path: Path, unlabelled: bool = False) -> Table:
    """A label table, CSV (UTF-8; commas, semicolons or tabs) or Parquet. unlabelled: rows may have no label.

    What is understood though it is not spelt as documented is said once. Raises InputError, naming the row and the
    column, for a file that is none, a missing column, a value that is neither 0 nor 1 nor, in a column of classes, a
    name, a file listed twice, and a label that no image has.
    """
    header, read, word = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    rows = [_Row(f"{word} {number}", [_text(value) for value in values]) for number, values in read]
    known = [_text(name) for name in header]
    kept = [i for i, name in enumerate(known) if not _is_index(name, [row.values[i] for row in rows])]
    for name, count in Counter(known[i] for i in kept).items():
        if count > 1 or not name:
            what = f"has {count} columns named '{name}'" if name else "has a column without a name"
            raise InputError(f"{path} {what}; give every column a name of its own")
    special = _special(path, known, kept)
    others = [i for i in kept if i not in special.values()]
    classes = _class_column(known, others, rows)
    labels = [(i, known[i]) for i in others if i != classes]
    empty = [unlabelled and bool(others) and not any(row.values[i] for i in others) for row in rows]
    records = [_record(path, row, special, () if without else labels) for row, without in zip(rows, empty, strict=True)]
    records = [replace(r, unlabelled=without) for r, without in zip(records, empty, strict=True)]
    if not records:
        raise InputError(f"{path} lists no images; it should have a row for each")
    twice = [name for name, count in Counter(r.name for r in records).items() if count > 1]
    if twice:
        raise InputError(f"{path} lists {twice[0]} twice; keep one of the rows")
    for _, name in labels:
        if not any(name in r.labels for r in records):
            raise InputError(f"{path}: no image has the label '{name}'; remove the column or add images")
    columns = [name for _, name in labels]
    if classes is not None:
        cells = [(row.where, row.values[classes]) for row, without in zip(rows, empty, strict=True) if not without]
        names_of = iter(_class_names(path, known[classes], cells))
        found = [() if without else next(names_of) for without in empty]
        records = [replace(r, labels=(*r.labels, *names)) for r, names in zip(records, found, strict=True)]
        every = {name for names in found for name in names}
        both = sorted(every & set(columns))
        if both:
            raise InputError(f"{path}: '{both[0]}' is a column and a class in the column '{known[classes]}'")
        columns += sorted(every, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    return Table(path, tuple(columns), tuple(records))


def _is_index(name: str, values: list[str]) -> bool:
    """Whether a column only counts the rows, as pandas writes it."""
    counted = [[str(i + start) for i in range(len(values))] for start in (0, 1)]
    return (not name or name.lower().startswith("unnamed:")) and values in counted and len(values) > 1


def _special(path: Path, known: list[str], kept: list[int]) -> dict[str, int]:
    """The columns that are no labels, by what they are."""
    lower = {known[i].lower(): i for i in kept}
    found: dict[str, int] = {}
    for meaning, others in _RESERVED.items():
        there = [meaning] if meaning in lower else [name for name in others.split() if name in lower]
        if len(there) > 1:
            raise InputError(f"{path}: both {' and '.join(there[:2])} may be the column '{meaning}'; name one so")
        if there:
            found[meaning] = lower[there[0]]
            if there[0] != meaning:
                say_once(f"note: {path}: the column '{known[found[meaning]]}' is taken for '{meaning}'")
    if "file" not in found:
        raise InputError(f"{path} has no column 'file'; its columns are {named(known)}")
    return found


def _class_column(known: list[str], others: list[int], rows: list[_Row]) -> int | None:
    """The column of class names, if there is one: called so, or the only one, and not of 0 and 1 alone."""
    called = [i for i in others if known[i].lower() in _CLASSES] or (others if len(others) == 1 else [])
    for i in called:
        if any(row.values[i] and row.values[i].lower() not in _VALUES for row in rows):
            return i
    return None


def _class_names(path: Path, column: str, cells: list[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The names in each cell of a column of classes; those that differ in case or spaces only are made one, and that
    is said.
    """
    split = [[_whole(" ".join(part.split())) for part in text.split(";") if part.strip()] for _, text in cells]
    several = any(len(names) > 1 for names in split)
    for (where, _), names in zip(cells, split, strict=True):
        if not names and not several:
            raise InputError(
                f"{path}, {where}: the column '{column}' is empty; name the image's class, or give --unlabelled rows "
                "to learn from images without one"
            )
    spelt: dict[str, Counter[str]] = defaultdict(Counter)
    for names in split:
        for name in names:
            spelt[unicodedata.normalize("NFC", name).casefold()][name] += 1
    chosen = {key: counted.most_common(1)[0][0] for key, counted in spelt.items()}
    merged = [f"'{chosen[key]}' ({', '.join(sorted(counted))})" for key, counted in spelt.items() if len(counted) > 1]
    if merged:
        say_once(f"note: {path}: classes spelt in several ways are taken for one: {named(merged)}")
    return [
        tuple(dict.fromkeys(chosen[unicodedata.normalize("NFC", name).casefold()] for name in names)) for names in split
    ]


def _whole(name: str) -> str:
    """A class that is a whole number without the `.0` that pandas gives it."""
    return name[:-2] if re.fullmatch(r"\d+\.0", name) else name


def _record(path: Path, row: _Row, special: dict[str, int], labels: Sequence[tuple[int, str]]) -> Record:
    texts = {name: row.values[i] for name, i in special.items()}
    for name, text in texts.items():
        if not text:
            raise InputError(
                f"{path}, {row.where}: the column '{name}' is empty; fill it in every row or remove the column"
            )
    part = PART_FOLDERS.get(texts["split"].lower()) if "split" in texts else None
    if "split" in texts and part is None:
        raise InputError(f"{path}, {row.where}: split is {texts['split']!r}; it should be train, val or test")
    has = []
    for i, name in labels:
        value = _VALUES.get(row.values[i].lower())
        if value is None:
            raise InputError(
                f"{path}, {row.where}: the label '{name}' is {row.values[i]!r}; it should be 0 or 1, or the column of "
                "classes be called 'class'"
            )
        if value:
            has.append(name)
    file = PurePosixPath(texts["file"].replace("\\", "/")).as_posix()
    return Record(file, tuple(has), part, texts.get("patient"), texts.get("eye"))


def _text(value: object) -> str:
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


def _parquet(path: Path) -> tuple[list[str], list[tuple[int, list[object]]], str]:
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
        reason = first_line(error)
        raise InputError(f"the label table {path} cannot be read as Parquet: {reason}") from None
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, list(enumerate(map(list, zip(*columns, strict=True)), 1)), "row"
