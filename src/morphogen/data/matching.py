"""Finding the images that a table's rows are of, and names that are alike though not the same."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from morphogen.data.formats import is_image


class Found(NamedTuple):
    """The images that a name may be, and how it was understood: nothing where it is the name, or the end of it."""

    places: list[int]
    how: str = ""


class NameIndex:
    """The names of images, to be found by those of a table.

    A name that is not an image's path, or the end of it, is looked for without regard to its Unicode form, to upper and
    lower case, and to the suffix, in this order; then without the folders before it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name: i for i, name in enumerate(names)}
        self._ends: list[dict[str, list[int]]] = []
        self._whole: list[dict[str, list[int]]] = []
        for form, _ in _FORMS:
            ends: dict[str, list[int]] = defaultdict(list)
            whole: dict[str, list[int]] = defaultdict(list)
            for i, name in enumerate(names):
                key = form(name)
                parts = key.split("/")
                whole[key].append(i)
                for first in range(len(parts)):
                    ends["/".join(parts[first:])].append(i)
            self._ends.append(ends)
            self._whole.append(whole)

    def find(self, name: str) -> Found:
        """The images that a name of a table may be."""
        if name in self._exact:
            return Found([self._exact[name]])
        for (form, how), ends in zip(_FORMS, self._ends, strict=True):
            places = ends.get(form(name), [])
            if places:
                return Found(places, how)
        for (form, how), whole in zip(_FORMS, self._whole, strict=True):
            parts = form(name).split("/")
            for first in range(1, len(parts)):
                places = whole.get("/".join(parts[first:]), [])
                if places:
                    return Found(places, "without the folders before it" + (f" and {how}" if how else ""))
        return Found([])


def _unicode(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _lower(name: str) -> str:
    return _unicode(name).casefold()


def _stem(name: str) -> str:
    return _lower(str(PurePosixPath(name).with_suffix("")) if is_image(name) else name)


_FORMS: list[tuple[Callable[[str], str], str]] = [
    (str, ""),
    (_unicode, "in another Unicode form"),
    (_lower, "in upper or lower case"),
    (_stem, "with another suffix or none"),
]


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names that are probably one's: they differ in case, spaces, leading zeros, a `.0`, or their Unicode form only."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        key = " ".join(re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).split()).casefold()
        key = re.sub(r"^(\d+)\.0+$", r"\1", key)
        groups[re.sub(r"\d+", lambda found: str(int(found[0])), key)].add(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)
