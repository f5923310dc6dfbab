"""The images behind a run's weights: its own training images, and those of the runs that it started from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from morphogen.data.splits import SplitFile, read_split
from morphogen.training.run_folder import RunFolder, read_run


class Lineage(NamedTuple):
    """splits: the split files of a run and of those that it started from, by their folders, the run's own first.
    unknown: what the first of them started from where that is no run, so that its images are not known.
    """

    splits: dict[str, SplitFile]
    unknown: tuple[str, ...]


def lineage(folder: Path) -> Lineage:
    """Follow the starts of a run. Raises InputError for a damaged run.json or split.json."""
    splits: dict[str, SplitFile] = {}
    passed: set[Path] = set()
    start: str | None = str(folder)
    while start is not None and Path(start).resolve() not in passed:  # a folder may be trained anew from its successor
        run = RunFolder(Path(start))
        if not run.split_file.is_file() or not run.config_file.is_file():
            return Lineage(splits, (start,))
        passed.add(run.path.resolve())
        splits[start] = read_split(run.split_file)
        start = read_run(run.path).init
    return Lineage(splits, ())


def trained_on(split: SplitFile) -> dict[str, str | None]:
    """The names of a run's training images, with the sha256 of their content where its split file says that."""
    digests = split.get("digests", {})
    return {name: digests.get(name) for name, part in split["assignment"].items() if part == "train"}
