"""Images without labels beside labelled ones: `train --unlabelled`.

They are of the training part, and a model sees them under the null label. Images of a folder or zip of their own have
names that begin with `unlabelled: `; those of a label table, its rows without a label, keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from morphogen.core.errors import InputError
from morphogen.core.notices import say_once
from morphogen.data.config import UNLABELLED_ROWS
from morphogen.data.decode import Decoded
from morphogen.data.source import Look, Part, Record, Source
from morphogen.data.tables import named

PREFIX = "unlabelled: "


class WithUnlabelled(Source):
    """A labelled source and, after its images, those of another without their labels."""

    def __init__(self, labelled: Source, more: Source) -> None:
        patients = any(r.patient is not None for r in labelled.records)
        added = [Record(PREFIX + r.name, patient=PREFIX + r.name if patients else None) for r in more.records]
        marked = [replace(r, unlabelled=True) for r in added]
        super().__init__(labelled.config, [*labelled.records, *marked])
        self.labelled, self.more = labelled, more
        self.domain, self.columns = labelled.domain, labelled.columns
        self.unread = [*labelled.unread, *((PREFIX + name, kind) for name, kind in more.unread)]
        self.linked = [*labelled.linked, *((PREFIX + name, other) for name, other in more.linked)]
        self.alike = labelled.alike

    def _of(self, i: int) -> tuple[Source, int]:
        count = len(self.labelled)
        return (self.labelled, i) if i < count else (self.more, i - count)

    def content(self, i: int) -> bytes:
        source, k = self._of(i)
        return source.content(k)

    def folders(self) -> list[str]:
        return self.labelled.folders()

    def examine(self, i: int, content: bytes) -> Decoded:
        source, k = self._of(i)
        return source.examine(k, content)

    def size(self, i: int, content: bytes) -> tuple[int, int]:
        source, k = self._of(i)
        return source.size(k, content)

    def look(self, i: int) -> Look | None:
        source, k = self._of(i)
        return source.look(k)


def rows_only(unlabelled: str | None, use: str) -> None:
    """Raise InputError where more is named than the rows of a table, for what only works with labels. use: what."""
    if unlabelled not in (None, UNLABELLED_ROWS):
        raise InputError(
            f"--unlabelled {unlabelled}: {use} has no use for images without labels; give {UNLABELLED_ROWS}, which "
            "passes over the rows of the label table that have none, or leave it out"
        )


def with_unlabelled(labelled: Source, more: Source | None) -> Source:
    """A source with the unlabelled images that its configuration names. more: those of a folder or zip of their own.

    Raises InputError where nothing has labels or the table no row without one, and for slides.
    """
    config = labelled.config
    given = f"--unlabelled {config.unlabelled}"
    if more is None:
        if not any(r.unlabelled for r in labelled.records):
            raise InputError(f"{given}: every row of {config.labels} has a label; leave it out")
        return labelled
    for source in (labelled, more):
        if source.sampled:
            raise InputError(f"{given}: {source.name} holds slides; unlabelled images stand beside images, not slides")
    if any(r.patient is not None for r in labelled.records):
        say_once(
            f"note: it is not known whose the {len(more)} images of {more.name} are, so one of a test patient would "
            f"not be noticed; rows of {config.labels} without a label (--unlabelled {UNLABELLED_ROWS}) say whose"
        )
    return WithUnlabelled(labelled, more)


def check_contents(source: Source, parts: Sequence[Part], digests: Mapping[str, str], unreadable: str) -> None:
    """Raise InputError, naming it, for an unlabelled training image that is by content also a labelled or held-out one.

    digests: of what every image holds, by name; `unreadable` for one that could not be read.
    """
    others: dict[str, tuple[str, Part]] = {}
    for record, part in zip(source.records, parts, strict=True):
        if not (record.unlabelled and part == "train") and digests[record.name] != unreadable:
            held = others.get(digests[record.name])
            if held is None or held[1] == "train":  # a held-out one is the graver fault
                others[digests[record.name]] = record.name, part
    twice = [
        (record.name.removeprefix(PREFIX), *others[digests[record.name]])
        for record, part in zip(source.records, parts, strict=True)
        if record.unlabelled and part == "train" and digests[record.name] in others
    ]
    if not twice:
        return
    twice.sort(key=lambda found: found[2] == "train")
    name, other, part = twice[0]
    of = {"train": "labelled", "val": "validation", "test": "test"}[part]
    more = f" (and {len(twice) - 1} more of its images are in {source.name}: {named(n for n, _, _ in twice[1:])})"
    raise InputError(
        f"--unlabelled {source.config.unlabelled}: its image {name} is also the {of} image {other} of {source.name}"
        f"{more if len(twice) > 1 else ''}; remove it from the unlabelled images"
    )
