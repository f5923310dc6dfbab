"""The one rule of what may be overwritten.

What we wrote and what the same command would write again is continued or replaced; all else is refused by name, unless
`--overwrite` says otherwise. A file says itself what made it: a PNG in its metadata, a JSON file in its content.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.files import read_json

_ADVICE = "name another {option}, or replace it with --overwrite"
_SHOWN = 3
_PLACE = "model_place"  # a hash, which tells the reader nothing
# What the same command with the same settings may find changed: then its result is made anew.
_FOUND = ("evaluations",)  # what only making it shows
_CONTENT = ("weights", "revision", "input_sha256", "mask_sha256", "seeds", "evaluations", "computed_in", "morphogen")


def same_place(name: str | Path | None) -> str | None:
    """A file or folder however it was spelt; other names, such as builtin:tissue, as they are."""
    if name is None:
        return None
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


def check_link(out: Path) -> None:
    """Raise InputError where `--out` is a link that leads nowhere."""
    if out.is_symlink() and not out.exists():
        raise InputError(f"--out {out} is a link to something that is not there; name another one")


def check_folder(out: Path) -> None:
    """Raise InputError where `--out`, which should be a folder, is something else, or a link that leads nowhere."""
    check_link(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")


def is_ours(
    path: Path,
    found: Mapping[str, object] | None,
    now: Mapping[str, object],
    overwrite: bool = False,
    option: str = "--out",
) -> bool:
    """Whether a file is there and is just what this command would write, so that it need not be made again.

    found: what the file says it was made with, None where it says nothing of the kind. now: what this command makes it
    with. False where it is not there, where the same command gives something else by now (new weights, another input
    of the same name), and where it is to be overwritten. Raises InputError, naming it, where it is anything else.
    """
    if not path.exists() and not path.is_symlink():
        return False
    if path.is_dir():
        raise InputError(f"{path} is a folder; name another {option}")
    if found is not None and {k: v for k, v in found.items() if k in now or k not in _FOUND} == now:
        return True
    if not overwrite:
        check_settings(path, found, now, option)
    return False


def check_settings(
    path: Path, found: Mapping[str, object] | None, now: Mapping[str, object], option: str = "--out"
) -> None:
    """Raise InputError, naming the file and what differs, unless it was made by this command with these settings."""
    advice = _ADVICE.format(option=option)
    if found is None:
        raise InputError(f"{path} is there and was not made by this command; {advice}")
    said = differences(found, now)
    if said:
        raise InputError(f"{path} was made with other settings ({said}); {advice}")


def differences(found: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The differences between two sets of settings, in words; not what they were applied to."""
    keys = [key for key in (*now, *(k for k in found if k not in now)) if key not in (*_CONTENT, _PLACE)]
    moved = found.get("model") == now.get("model") and found.get(_PLACE) != now.get(_PLACE)
    said = ["the model was in another folder"] if moved else []
    said += [
        f"{key.replace('_', ' ')} was {_shown(found.get(key))}, is {_shown(now.get(key))}"
        for key in keys
        if found.get(key) != now.get(key)
    ]
    more = len(said) - _SHOWN
    return "; ".join(said[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else f"...{text[-57:]}"  # the end of a path says most


def check_results(
    out: Path,
    names: Iterable[str],
    made_with: Callable[[dict[str, object]], Mapping[str, object] | None],
    now: Mapping[str, object],
    overwrite: bool = False,
) -> None:
    """Raise InputError where a command's files in a folder are not what it would write again.

    names: its files there, the first a JSON file that says what all were made with: `made_with` finds that in it, or
    None where it is another's.
    """
    check_folder(out)
    there = [path for path in (out / name for name in names) if path.exists() or path.is_symlink()]
    if not there or overwrite:
        return
    found: object = None
    with contextlib.suppress(InputError):
        found = read_json(there[0])
    check_settings(there[0], made_with(found) if isinstance(found, dict) else None, now)
