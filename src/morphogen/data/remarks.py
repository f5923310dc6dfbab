"""Remarks on a source: files that are not read, frames left out, bits unused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from morphogen.data.decode import Facts
from morphogen.data.source import Source

RemarkKind = Literal["not read", "linked twice", "ids alike", "no scale", "other scale", "several frames", "dark"]
_FEW_BITS = 14  # of 16, in which cameras and scanners store their own 10, 12 or 14


@dataclass(frozen=True)
class Remark:
    """Something worth saying of one file or folder."""

    name: str
    kind: RemarkKind
    detail: str


def remarks_of(source: Source, seen: Mapping[str, Facts]) -> list[Remark]:
    """The remarks on a source. seen: those of decoding its images, by name."""
    found = [Remark(name, "not read", f"it is {kind}") for name, kind in source.unread]
    found += [Remark(name, "linked twice", f"a link to {other}, read once") for name, other in source.linked]
    found += [Remark(" / ".join(ids), "ids alike", "kept apart, but may be one patient's") for ids in source.alike]
    found += _scales(source, seen)
    found += [
        Remark(name, "several frames", f"the first of {image.frames} frames or pages is used")
        for name, image in seen.items()
        if image.frames > 1
    ]
    deep = {name: image.largest for name, image in seen.items() if image.largest is not None}
    if deep:
        name, largest = max(deep.items(), key=lambda item: item[1])
        if 0 < largest < 2**_FEW_BITS:
            bits = next(n for n in (8, 10, 12, _FEW_BITS) if largest < 2**n)
            others = f", and none of {len(deep)} such images has a larger one" if len(deep) > 1 else ""
            detail = (
                f"its largest value is {largest} of 65535{others}, so it is read nearly black; "
                f"--max-value {2**bits - 1} reads it by {bits} bits"
            )
            found.append(Remark(name, "dark", detail))
    return found


def _scales(source: Source, seen: Mapping[str, Facts]) -> list[Remark]:
    """Slides that do not say how large their pixels are while others do, or say another size than the first, where
    patches are taken without regard to it.
    """
    if source.config.mpp is not None:
        return []
    known = {name: facts.mpp for name, facts in seen.items() if facts.mpp is not None}
    if not known:
        return []
    first, (down, across) = next(iter(known.items()))
    size = f"{first} has pixels of {across:g} micrometres"
    found = []
    for name, facts in seen.items():
        if facts.mpp is None:
            found.append(Remark(name, "no scale", f"it does not say how large its pixels are, but {size}"))
        elif max(facts.mpp[0] / down, down / facts.mpp[0], facts.mpp[1] / across, across / facts.mpp[1]) > 1.02:
            detail = f"its pixels are {facts.mpp[1]:g} micrometres, but {size}; --mpp brings all to one scale"
            found.append(Remark(name, "other scale", detail))
    return found


_SENTENCES: dict[RemarkKind, str] = {
    "not read": "files that are not read",
    "linked twice": "linked folders whose images are read once",
    "ids alike": "ids that may be one patient's",
    "no scale": "slides that do not say their scale among others that do",
    "other scale": "slides of another scale than others",
    "several frames": "images of which the first frame or page is used",
    "dark": "images with unused bits",
}


def sentences(remarks: list[Remark]) -> list[str]:
    """One line a kind, with how many there are and the first of them."""
    said = []
    for kind, what in _SENTENCES.items():
        named = [remark for remark in remarks if remark.kind == kind]
        if named:
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            said.append(f"note: {what}: {named[0].name} ({named[0].detail}){more}")
    return said
