"""The paths among a run's settings: absolute, so that every folder finds them, and relative, so that a tree of folders
can be moved.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from morphogen.data.config import UNLABELLED_ROWS
from morphogen.training.config import RunConfig

_IN_DATA = ("source", "labels", "split", "unlabelled", "maps", "classes")
_NO_PATHS = ("auto", "none", "celeba", UNLABELLED_ROWS)  # ./celeba is a folder of that name


def _settings(config: RunConfig) -> dict[str, str]:
    """The settings that may be paths, by their dotted names."""
    found = {f"data.{name}": str(value) for name in _IN_DATA if (value := getattr(config.data, name)) is not None}
    found |= {name: value for name in ("init", "autoencoder") if (value := getattr(config, name)) is not None}
    return {name: value for name, value in found.items() if value not in _NO_PATHS}


def _with(config: RunConfig, changes: Mapping[str, str]) -> RunConfig:
    of_data = {name.removeprefix("data."): value for name, value in changes.items() if name.startswith("data.")}
    rest = {name: value for name, value in changes.items() if not name.startswith("data.")}
    return config.model_copy(update={**rest, "data": config.data.model_copy(update=of_data)})


def absolute_path(text: str) -> str:
    """A path as an absolute one, links kept."""
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 (resolve follows links)


def _there(text: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a name too long, a NUL
        return Path(text).expanduser().exists()
    return False


def absolute(config: RunConfig, known: RunConfig | None = None) -> RunConfig:
    """The settings with absolute paths for what lies on this machine now, and for what lay there in `known`. Names of
    built-in sets, bundled models and the hub stay as they are.
    """
    before = {} if known is None else _settings(known)
    found = _settings(config).items()
    return _with(config, {n: absolute_path(v) for n, v in found if _there(v) or absolute_path(v) == before.get(n)})


def relative_paths(config: RunConfig, folder: Path) -> dict[str, str]:
    """Where the absolute paths of a run lie as seen from its folder, by the settings' dotted names."""
    found: dict[str, str] = {}
    for name, value in _settings(config).items():
        if Path(value).is_absolute():
            with contextlib.suppress(ValueError):  # another drive
                found[name] = Path(os.path.relpath(value, absolute_path(str(folder)))).as_posix()
    return found


def located(config: RunConfig, folder: Path, relative: Mapping[str, object]) -> RunConfig:
    """The settings with paths that are not there any more replaced by those relative to the folder, where these are."""
    moved: dict[str, str] = {}
    for name, value in _settings(config).items():
        beside = relative.get(name)
        if isinstance(beside, str) and not _there(value) and _there(str(folder / beside)):
            moved[name] = absolute_path(str(folder / beside))
    return _with(config, moved)


def public_name(text: str) -> str:
    """The public part of a setting that can be a path: its last part, where it is one."""
    is_path = text.startswith("~") or Path(text).is_absolute() or _there(text)
    return Path(absolute_path(text)).name if is_path else text
