"""The data check: which images cannot be used or only in part, and which are there twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from morphogen.core.progress import Progress
from morphogen.data.colour_choice import choose_colour
from morphogen.data.config import DataConfig
from morphogen.data.decode import Colour, Facts
from morphogen.data.fitting import Fitting
from morphogen.data.formats import BadImage, BadKind
from morphogen.data.labels import labels_of, say_alike_labels
from morphogen.data.remarks import RemarkKind, remarks_of
from morphogen.data.source import PatchSource
from morphogen.data.sources import open_source
from morphogen.data.threads import map_ordered

Kind = BadKind | RemarkKind | Literal["duplicate"]


@dataclass(frozen=True)
class Problem:
    """One image that should be looked at: its name, the kind of trouble and what it is."""

    name: str
    kind: Kind
    detail: str


@dataclass(frozen=True)
class Report:
    """The findings of a check in a source of `images` images, in the order of names, those passed over last."""

    source: str
    images: int
    size: tuple[int, int]
    problems: list[Problem]
    colour: Colour
    """The colour mode that training reads the images in by default."""
    labels: dict[str, int]
    """How many images have each combination of labels, by its names joined with " + "; empty without labels."""

    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind."""
        return dict(Counter(p.kind for p in self.problems))

    def as_json(self) -> dict[str, object]:
        """The report in plain JSON values."""
        problems = [asdict(p) for p in self.problems]
        return {
            "source": self.source,
            "images": self.images,
            "size": list(self.size),
            "colour": self.colour,
            "counts": self.counts(),
            "labels": self.labels,
            "problems": problems,
        }


def check_images(config: DataConfig, progress: bool = True) -> Report:
    """Decode every image of a source and list what is unreadable, truncated, oversized, too small or a duplicate, of
    several frames or with unused bits; and files and folders that are passed over.

    Duplicates are exact: the same decoded pixels as an earlier image. Of slides, one patch is read, and their bytes
    are compared. Raises InputError where the source itself cannot be used, or its labels are not those of its images.
    """
    source = open_source(config)
    say_alike_labels(source)
    fitting = Fitting.of(config, source)

    seen: dict[str, Facts] = {}

    def look(i: int) -> str | BadImage:
        try:
            content = source.content(i)
            if isinstance(source, PatchSource):
                source.prepare(i)
                seen[source.records[i].name] = Facts(mpp=source.scale(i))
                return hashlib.sha256(content).hexdigest()
            pixels, seen[source.records[i].name] = source.examine(i, content)
            fitting.check_size(source.records[i].name, pixels.shape[:2])
        except BadImage as error:
            return error
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    problems: list[Problem] = []
    labels = {record.name: record.labels for record in source.records}
    first: dict[str, str] = {}
    with Progress("Checking images", len(source), quiet=not progress) as shown:
        for record, found in zip(source.records, map_ordered(look, len(source), shown), strict=True):
            if isinstance(found, BadImage):
                problems.append(Problem(record.name, found.kind, found.reason))
            elif (same := first.setdefault(found, record.name)) != record.name:
                other = "" if labels[same] == record.labels else ", with other labels"
                problems.append(Problem(record.name, "duplicate", f"the same pixels as {same}{other}"))
    seen = {record.name: seen[record.name] for record in source.records if record.name in seen}
    problems += [Problem(r.name, r.kind, r.detail) for r in remarks_of(source, seen)]
    combinations = Counter(record.label or "" for record in source.records)
    counted = {name: combinations[name] for name in sorted(combinations)} if len(labels_of(source)) else {}
    colour = choose_colour(config).colour
    return Report(config.source, len(source), config.size, problems, colour, counted)
