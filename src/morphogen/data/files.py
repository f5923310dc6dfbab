"""Images in folders, single image files and zips."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.formats import KINDS, BadImage, is_image, unread_kind
from morphogen.data.source import Record, Source, label_records
from morphogen.pyramids.opening import is_ome_zarr

_MAX_ENTRY = 2 * 2**30
_RATIO_LARGE, _LARGE, _RATIO_ANY = 200, 2**20, 1000


def is_hidden(name: str) -> bool:
    """Whether a relative path has a hidden part, or lies among the copies that macOS leaves in zips."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


class Walk(NamedTuple):
    """The files below a folder: their relative paths, in order; the linked folders passed over, each with the one that
    it is the same as; and folders that are Zarr groups, whose files are not listed.
    """

    names: list[str]
    linked: list[tuple[str, str]]
    stores: list[str]


def walk(root: Path) -> Walk:
    """All files below root that are not hidden; of folders that links make one, the first is entered.

    Raises InputError, naming it, for a folder that cannot be read.
    """
    seen: dict[tuple[int, int], str] = {}
    names: list[str] = []
    linked: list[tuple[str, str]] = []
    stores: list[str] = []
    failed: list[OSError] = []
    for folder, folders, files in os.walk(root, followlinks=True, onerror=failed.append):
        if failed:
            break
        status, relative = Path(folder).stat(), Path(folder).relative_to(root)
        first = seen.setdefault((status.st_dev, status.st_ino), relative.as_posix())
        if first != relative.as_posix():
            linked.append((relative.as_posix(), "the whole folder" if first == "." else first))
            folders.clear()
            continue
        if folder != str(root) and is_ome_zarr(Path(folder)):
            stores.append(relative.as_posix())
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not is_hidden(f))
        names += [(relative / file).as_posix() for file in files if not is_hidden(file)]
    if failed:
        raise InputError(f"the folder {failed[0].filename} cannot be read: {failed[0].strerror}")
    return Walk(sorted(names), linked, sorted(stores))


def unread_among(names: Iterable[str]) -> list[tuple[str, str]]:
    """The files that are pictures or films of a kind that is not read, each with its kind."""
    return [(name, kind) for name in names if (kind := unread_kind(name)) is not None]


class FolderSource(Source):
    """Image files below a folder."""

    def __init__(self, config: DataConfig, root: Path, records: list[Record]) -> None:
        super().__init__(config, records)
        self.root = root

    @classmethod
    def of(cls, config: DataConfig, root: Path, found: Walk) -> FolderSource:
        """The images among the files found below root. Raises InputError if there are none."""
        images, unread = [name for name in found.names if is_image(name)], unread_among(found.names)
        if not images:
            what = f"holds {len(found.names)} files but no image" if found.names else "is an empty folder"
            such = f" ({unread[0][0]} is {unread[0][1]})" if unread else ""
            raise InputError(f"{config.source} {what}{such}; it should hold {KINDS} files (or slides)")
        source = cls(config, root, label_records(images))
        source.unread, source.linked = unread, found.linked
        return source

    def folders(self) -> list[str]:
        parents = {str(parent) for record in self.records for parent in PurePosixPath(record.name).parents}
        below = (p for parent in sorted(parents) for p in (self.root / parent).iterdir() if p.is_dir())
        return [p.relative_to(self.root).as_posix() for p in below if not is_hidden(p.name)]

    def content(self, i: int) -> bytes:
        name = self.records[i].name
        path = self.root / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise BadImage(name, "it is not an ordinary file")
            if status.st_size > _MAX_ENTRY:
                raise BadImage(name, f"the file has {status.st_size / 2**30:.1f} GiB; the limit is 2 GiB", "oversized")
            return path.read_bytes()
        except OSError as error:
            raise BadImage(name, f"the file cannot be read: {error.strerror}") from error


class ZipSource(Source):
    """Images in a zip, read in place and never extracted. Every process opens the archive for itself."""

    def __init__(self, config: DataConfig, path: Path, records: list[Record] | None = None) -> None:
        self.path = path.absolute()
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        if records is None:
            archive = self._archive(config.source)
            names = sorted(e.filename for e in checked_entries(path, archive))
            self.unread = unread_among(n for n in archive.namelist() if not is_hidden(n))
            if not names:
                such = f" ({self.unread[0][0]} is {self.unread[0][1]})" if self.unread else ""
                raise InputError(f"{config.source} holds no image{such}; it should hold {KINDS} files")
            records = label_records(names)
        super().__init__(config, records)

    def _archive(self, shown: str) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = (os.getpid(), zipfile.ZipFile(self.path))
            except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, UnicodeDecodeError) as error:
                raise InputError(f"{shown} is not a zip, or it is damaged: {error}") from error
            except OSError as error:
                raise InputError(f"{shown} cannot be read: {error.strerror}") from error
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def folders(self) -> list[str]:
        entries = self._archive(self.name).infolist()
        return [e.filename.rstrip("/") for e in entries if e.is_dir() and not is_hidden(e.filename)]

    def content(self, i: int) -> bytes:
        name = self.records[i].name
        try:
            return self._archive(self.name).read(name)
        except (
            zipfile.BadZipFile,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
            zlib.error,
            KeyError,
        ) as error:
            raise BadImage(name, f"its entry in the zip is damaged: {error}") from error


def checked_entries(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The image entries of a zip. Raises InputError for an archive that is built to harm or cannot be read.

    Refused: names that lead out of the archive (`..`, absolute, a drive letter), more than 200:1 compression of an
    entry above 1 MiB or 1000:1 of any, images above 2 GiB, encrypted images, two entries of the same name.
    """
    images: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        # zipfile itself replaces os.sep and cuts names at NUL; orig_filename is what the archive says.
        for name in {entry.filename, entry.orig_filename}:
            plain = name.replace("\\", "/")
            if plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in plain.split("/") or "\0" in plain:
                raise InputError(f"{path} is refused: its entry {name!r} leads out of the archive; make the zip anew")
        ratio = entry.file_size / max(entry.compress_size, 1)
        if ratio >= _RATIO_ANY or (ratio > _RATIO_LARGE and entry.file_size > _LARGE):
            raise InputError(
                f"{path} is refused as a zip bomb: its entry {entry.filename!r} unpacks to {ratio:.0f} times its size"
            )
        link = stat.S_ISLNK(entry.external_attr >> 16)
        if entry.is_dir() or link or is_hidden(entry.filename) or not is_image(entry.filename):
            continue
        if entry.flag_bits & 1:
            raise InputError(f"{path} is encrypted (entry {entry.filename!r}); it should be a zip without a password")
        if entry.file_size > _MAX_ENTRY:
            raise InputError(
                f"{path} is refused: its entry {entry.filename!r} claims {entry.file_size / 2**30:.0f} GiB, "
                f"the limit is {_MAX_ENTRY // 2**30} GiB"
            )
        if entry.filename in images:
            raise InputError(f"{path} holds two entries named {entry.filename!r}; make the zip anew")
        images[entry.filename] = entry
    return list(images.values())
