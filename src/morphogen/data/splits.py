"""Which source images are for training, validation and test: automatic, official, or a split file.

A split file is JSON: `format` "morphogen-split-1", `source`, `by` (image, slide, patient or folder), `pattern`,
`seed`, `folds` (K, or null) and `assignment`, which gives every record name its part, or its fold 0..K-1. With fold
k, fold k is the test part, fold (k+1) mod K the validation part and the others are trained on. Everything of one
group (a slide, a patient, a folder) is in the same part; `groups` gives every record name its group, where that is not
the image itself, and whoever reads the file checks it. Images without labels that a file does not assign are trained
on, unless their group is in another part. A run's own split file also has the `fingerprint` of its images,
and the sha256 of each as `digests`.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, NotRequired, TypedDict, cast, get_args

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_bytes, replace_file
from morphogen.core.random import mix
from morphogen.data.config import DataConfig
from morphogen.data.labels import check_ids
from morphogen.data.source import PARTS, Part, Source
from morphogen.data.unlabelled import PREFIX

FORMAT = "morphogen-split-1"
By = Literal["image", "slide", "patient", "folder"]
Place = int | str | None  # a part, a fold, or neither
RATIOS = (80.0, 10.0, 10.0)
MIN_IMAGES = 10  # with fewer there is no automatic split


class SplitFile(TypedDict):
    """The content of a split file; see the module."""

    format: str
    source: str
    by: By
    pattern: str | None
    seed: int
    folds: int | None
    assignment: dict[str, int | str]
    groups: NotRequired[dict[str, str]]
    fingerprint: NotRequired[str]
    digests: NotRequired[dict[str, str]]


def _hash(seed: int, text: str) -> int:
    data = text.encode("utf-8", "surrogateescape")
    return mix(seed, len(data), *(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)))


def patients_of(source: Source) -> list[str] | None:
    """The patient of every record, where a label table names them."""
    patients = [r.patient for r in source.records if r.patient is not None]
    return patients if patients and len(patients) == len(source) else None


def groups_of(source: Source, by: By, pattern: str | None = None) -> list[str]:
    """The group of every record: itself, its slide, its patient or its folder.

    pattern: a regular expression with one group that finds the patient (or slide) in the record's name; needed for
    slides where the records are images, and for patients where no label table names them. Raises InputError where it is
    missing or does not match.
    """
    names = [r.name for r in source.records]
    if pattern is None:
        patients = patients_of(source)
        if by == "patient" and patients is not None:
            return patients
        if by == "patient" or (by == "slide" and not source.sampled):
            table = " or --labels TABLE with a column 'patient'" if by == "patient" else ""
            raise InputError(
                f"--by {by} needs --pattern, such as '^([^_]+)_' for names like p017_3.png ({names[0]}){table}"
            )
        return [str(PurePosixPath(n).parent) for n in names] if by == "folder" else names
    if by in ("image", "folder"):
        raise InputError(f"--pattern is for --by patient or --by slide, not --by {by}")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--pattern {pattern!r} is not a regular expression: {error}") from error
    if compiled.groups != 1:
        raise InputError(
            f"--pattern {pattern!r} should have exactly one (group), which finds the {by}; it has {compiled.groups}"
        )
    found = [compiled.search(n) for n in names]
    missed = [n for n, match in zip(names, found, strict=True) if match is None or match[1] is None]
    if missed:
        raise InputError(
            f"--pattern {pattern!r} finds no {by} in {len(missed)} of {len(names)} names, such as {missed[0]}"
        )
    return [match[1] for match in found if match is not None]


def distribute(groups: Sequence[str], labels: Sequence[str | None], shares: Sequence[float], seed: int) -> list[int]:
    """Bin 0..len(shares)-1 of every record, so that groups stay whole and every class is spread by the shares.

    Groups are taken class by class (the class most frequent in the group), within a class in the order of a hash of
    seed and name, and each goes to the bin that lacks most of its share.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)

    def order(group: str) -> tuple[str, int, str]:
        label = Counter(labels[i] or "" for i in members[group]).most_common(1)[0][0]
        return (label, _hash(seed, group), group)

    bins = [0] * len(groups)
    filled, total, done = [0] * len(shares), sum(shares), 0
    for group in sorted(members, key=order):
        done += len(members[group])
        chosen = max(range(len(shares)), key=lambda b: (shares[b] / total * done - filled[b], -b))
        filled[chosen] += len(members[group])
        for i in members[group]:
            bins[i] = chosen
    return bins


def make_split(
    source: Source,
    ratios: Sequence[float] | None = None,
    folds: int | None = None,
    by: By | None = None,
    pattern: str | None = None,
    seed: int = 0,
) -> SplitFile:
    """The content of a split file: k folds where `folds` is given, else parts by `ratios` (80/10/10).

    by: by default the patient where a label table names them, else the image. Images without labels go where their
    group goes, and are left out where nothing of it has labels. Raises InputError if there are too few groups, for
    wrong ratios or folds, and where images of one patient would be separated.
    """
    patients = patients_of(source)
    if by is None:
        by = "image" if patients is None else "patient"
    if ratios is not None and folds is not None:
        raise InputError("--folds and --ratios exclude each other; give one of them")
    if folds is not None and folds < 3:
        raise InputError(
            f"--folds {folds}: at least 3 are needed, one for testing, one for validation, one for training"
        )
    shares = [1.0] * folds if folds is not None else list(ratios or RATIOS)
    if folds is None and (len(shares) != 3 or min(shares) < 0 or shares[0] <= 0 or sum(shares[1:]) <= 0):
        raise InputError("--ratios should be three numbers TRAIN/VAL/TEST, such as 80/10/10")
    groups = groups_of(source, by, pattern)
    if pattern is not None:
        check_ids(source, groups, source.name, f"{by}s")
    labelled = [i for i, r in enumerate(source.records) if not r.unlabelled]
    of = [source.records[i].label for i in labelled]
    bins = distribute([groups[i] for i in labelled], of, shares, seed)
    if {b for b, share in enumerate(shares) if share > 0} - set(bins):
        raise InputError(f"{source.name} has too few groups to fill {len(shares)} parts: {len(set(groups))} by {by}")
    chosen: dict[int, int | str] = {
        i: b if folds is not None else PARTS[b] for i, b in zip(labelled, bins, strict=True)
    }
    places = _with_their_groups(groups, [chosen.get(i) for i in range(len(source))])
    if patients is not None and groups != patients:
        _check_groups_whole(source, places, Groups("patient", patients), f"a split by {by}")
    assigned = [i for i, place in enumerate(places) if place is not None]
    split: SplitFile = {
        "format": FORMAT,
        "source": source.name,
        "by": by,
        "pattern": pattern,
        "seed": seed,
        "folds": folds,
        "assignment": {source.records[i].name: cast(int | str, places[i]) for i in assigned},
    }
    if by != "image":
        split["groups"] = {source.records[i].name: groups[i] for i in assigned}
    return split


def _with_their_groups(groups: Sequence[str], places: Sequence[Place]) -> list[Place]:
    """The place of every record: where it has none, that of another one of its group, if that has one."""
    known = {group: place for group, place in zip(groups, places, strict=True) if place is not None}
    return [known.get(group) if place is None else place for group, place in zip(groups, places, strict=True)]


class Groups(NamedTuple):
    """What must stay together: the group of every record, and what kind of group that is."""

    by: By
    names: list[str]


class Assignment(NamedTuple):
    """The part of every record, a word or path for what made it, and the groups that it keeps together."""

    parts: list[Part]
    made_by: str
    groups: Groups | None = None


def split_of(source: Source, parts: Sequence[Part], groups: Groups | None = None) -> SplitFile:
    """The content of a split file that gives every record of a source the part that it has."""
    assignment = {r.name: part for r, part in zip(source.records, parts, strict=True)}
    split: SplitFile = {
        "format": FORMAT,
        "source": source.name,
        "by": "image" if groups is None else groups.by,
        "pattern": None,
        "seed": 0,
        "folds": None,
        "assignment": dict(assignment),
    }
    if groups is not None:
        split["groups"] = dict(zip(assignment, groups.names, strict=True))
    return split


def _check_groups_whole(source: Source, places: Sequence[Place], groups: Groups, where: str) -> None:
    """Raise InputError, naming two images, where one group is in two parts or folds. None is in none."""
    first: dict[str, int] = {}
    for i, group in enumerate(groups.names):
        if places[i] is None:
            continue
        j = first.setdefault(group, i)
        if places[j] != places[i]:
            parts = [f"fold {place}" if isinstance(place, int) else str(place) for place in (places[j], places[i])]
            raise InputError(
                f"{where}: {groups.by} {group} is in {parts[0]} ({source.records[j].name}) and in {parts[1]} "
                f"({source.records[i].name}); split by {groups.by} (morphogen data split --by {groups.by})"
            )


def parse_ratios(text: str) -> list[float]:
    """Three numbers out of "80/10/10". Raises InputError."""
    try:
        ratios = [float(word) for word in text.split("/")]
        if not all(map(math.isfinite, ratios)):
            raise ValueError
        return ratios
    except ValueError:
        raise InputError(f"--ratios {text!r} should be TRAIN/VAL/TEST, such as 80/10/10") from None


def write_split(split: SplitFile, path: Path) -> None:
    """Write a split file. Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json_bytes(split))
    except OSError as error:
        raise InputError(f"the split file {path} cannot be written: {error.strerror}") from error


def read_split(path: Path) -> SplitFile:
    """The content of a split file, checked. Raises InputError."""
    try:
        split = json.loads(read_bytes(path, "the split file ").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a split file: {error}") from error
    if not isinstance(split, dict) or split.get("format") != FORMAT:
        raise InputError(f'{path} is not a split file: its "format" should be "{FORMAT}" (see morphogen data split)')
    folds, assignment = split.get("folds"), split.get("assignment")
    groups = split.get("groups", {})
    sound = isinstance(assignment, dict) and isinstance(groups, dict) and set(groups) in (set(), set(assignment))
    if split.get("by") not in get_args(By) or not isinstance(assignment, dict) or not sound:
        raise InputError(f'{path} is not a whole split file: it needs "by" and "assignment"; make it anew')
    if folds is not None and (type(folds) is not int or folds < 3):
        raise InputError(f'{path}: "folds" should be null or at least 3, not {folds!r}')
    for name, part in assignment.items():
        right = part in PARTS if folds is None else type(part) is int and 0 <= part < folds
        if not right:
            wanted = "train, val or test" if folds is None else f"a fold 0..{folds - 1}"
            raise InputError(f"{path} assigns {name!r} to {part!r}; it should be {wanted}")
    return cast(SplitFile, split)


def _from_file(path: Path, fold: int | None, source: Source) -> Assignment:
    split = read_split(path)
    folds = split["folds"]
    if folds is None and fold is not None:
        raise InputError(f"--fold {fold} needs a split file with folds; {path} has none")
    if folds is not None and fold is None:
        raise InputError(f"{path} has {folds} folds; choose one with --fold 0..{folds - 1}")
    if folds is not None and fold is not None and fold >= folds:
        raise InputError(f"--fold {fold} is out of range; {path} has folds 0..{folds - 1}")
    assignment = split["assignment"]
    names = {r.name for r in source.records}
    missing = sorted(name for name in set(assignment) - names if not name.startswith(PREFIX))
    new = sorted({r.name for r in source.records if not r.unlabelled} - set(assignment))
    if missing:
        raise InputError(f"{path} names {len(missing)} images that {source.name} does not hold, such as {missing[0]}")
    if new:
        raise InputError(
            f"{source.name} holds {len(new)} images that {path} does not assign, such as {new[0]}; make it anew"
        )
    places: list[Place] = [assignment.get(r.name) for r in source.records]
    known = [] if patients_of(source) is None else [Groups("patient", patients_of(source) or [])]
    if split.get("groups"):
        known.append(Groups(split["by"], [_group_of(r.name, split) for r in source.records]))
    for groups in known:
        places = _with_their_groups(groups.names, places)
        _check_groups_whole(source, places, groups, str(path))
    roles: dict[Place, Part] = {p: p for p in PARTS}
    if folds is not None:
        roles = {cast(int, fold): "test", (cast(int, fold) + 1) % folds: "val"}
    parts = [roles.get(place, "train") for place in places]
    _check_unlabelled_train(source, parts, known)
    return Assignment(parts, str(path), known[0] if known else None)


def _group_of(name: str, split: SplitFile) -> str:
    """The group of an image: as a split file says it, or its pattern finds it; else the image itself."""
    group, pattern = split.get("groups", {}).get(name), split.get("pattern")
    if group is not None or pattern is None:
        return name if group is None else str(group)
    match = re.search(pattern, name.removeprefix(PREFIX))
    return name if match is None or match[1] is None else match[1]


def _check_unlabelled_train(source: Source, parts: Sequence[Part], known: Sequence[Groups]) -> None:
    """Raise InputError, naming one, where `--unlabelled FOLDER` has images of a group that is held out."""
    for i, (record, part) in enumerate(zip(source.records, parts, strict=True)):
        if record.unlabelled and record.name.startswith(PREFIX) and part != "train":
            own = [f"of {g.by} {g.names[i]}, which is in the {part} part" for g in known if g.names[i] != record.name]
            raise InputError(
                f"--unlabelled {source.config.unlabelled}: its image {record.name.removeprefix(PREFIX)} is "
                f"{own[0] if own else f'in the {part} part'}; remove it from the unlabelled images"
            )


def _labelled_only(source: Source) -> Source:
    """The source without its unlabelled images, whose numbers may be others: to be asked for records alone."""
    view = copy.copy(source)
    view.records = [r for r in source.records if not r.unlabelled]
    return view


def assign_parts(config: DataConfig, source: Source) -> Assignment:
    """The part of every record of the source. Raises InputError, also where one patient is in two parts or folds."""
    if config.split not in ("auto", "none"):
        return _from_file(Path(config.split).expanduser(), config.fold, source)._replace(made_by=config.split)
    if not any(r.unlabelled for r in source.records):
        return _assigned(config, source)
    labelled = _assigned(config, _labelled_only(source))
    given, patients = iter(labelled.parts), patients_of(source)
    places: list[Place] = [r.part if r.unlabelled else next(given) for r in source.records]
    if patients is not None:
        places = _with_their_groups(patients, places)
    parts = [cast(Part, place or "train") for place in places]
    groups = None if patients is None else Groups("patient", patients)
    if groups is not None:
        _check_groups_whole(source, parts, groups, config.labels)
    return Assignment(parts, labelled.made_by, groups)


def _assigned(config: DataConfig, source: Source) -> Assignment:
    """The same for a source all of whose images have labels, or none."""
    records = source.records
    patients = patients_of(source)
    groups = None if patients is None else Groups("patient", patients)
    if config.split == "none":
        return Assignment(["train"] * len(records), "none", groups)
    if any(r.part is not None for r in records):
        parts: list[Part] = [r.part or "train" for r in records]
        if groups is not None:
            _check_groups_whole(source, parts, groups, config.labels)
        return Assignment(parts, "official", groups)
    if len(records) < MIN_IMAGES:
        return Assignment(["train"] * len(records), "none", groups)
    together = [r.name for r in records] if patients is None else patients
    bins = distribute(together, [r.label for r in records], RATIOS, config.split_seed)
    return Assignment([PARTS[b] for b in bins], f"80/10/10 by {'image' if patients is None else 'patient'}", groups)
