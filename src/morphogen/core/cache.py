"""Where things are kept between runs that can be made or fetched again."""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from pathlib import Path

VARIABLE = "MORPHOGEN_CACHE"


def cache_folder(name: str) -> Path:
    """The folder of one kind of thing in $MORPHOGEN_CACHE, else $XDG_CACHE_HOME/morphogen, else ~/.cache/morphogen."""
    own, system = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser() / name
    if system and Path(system).is_absolute():  # as the XDG specification has it, relative ones are ignored
        return Path(system) / "morphogen" / name
    return Path("~/.cache/morphogen").expanduser() / name


def is_usable(folder: Path) -> bool:
    """Whether files can be put into a folder, or it can be made; nothing is made to find out."""
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def private_folder(name: str) -> Path:
    """A folder for the time being that nobody else can write to, the same one for all of a user's processes.

    Raises OSError if there is nowhere to make one.
    """
    user = getattr(os, "getuid", lambda: os.environ.get("USERNAME", ""))()
    folder = Path(tempfile.gettempdir()) / f"morphogen-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (os.name == "posix" and (found.st_uid != user or found.st_mode & 0o077)):
            raise OSError(f"{folder} is not this user's own")
        (folder / name).mkdir(exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="morphogen-"))
        (folder / name).mkdir()
    return folder / name
