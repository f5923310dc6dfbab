"""The folder of a run: what lies where, who may write to it, and its metrics log."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.model_files import CONFIG_FILE, WEIGHTS_FILE
from morphogen.core.validation import table, validate
from morphogen.training.config import RunConfig, differences


class RunFolder:
    """RUN/run.json, split.json, config.json, model.safetensors, checkpoints/, samples/, metrics.jsonl, timing.jsonl,
    README.md; latents/ where the model works in them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "run.json"
        self.split_file = path / "split.json"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.metrics = path / "metrics.jsonl"
        self.timing = path / "timing.jsonl"
        self.card = path / "README.md"
        self._lock = FileLock(path / ".lock")

    @contextlib.contextmanager
    def locked(self, writes: bool) -> Iterator[Self]:
        """Make the folder and lock it, so that two trainings never write into it; nothing where `writes` is false.

        Raises InputError where it cannot be made or another process trains into it.
        """
        if not writes:
            yield self
            return
        made = self._lock_folder()
        try:
            yield self
        finally:
            self._lock.release()
            if not self.config_file.exists():  # the start was refused: leave what was there before
                with contextlib.suppress(OSError):
                    (self.path / ".lock").unlink()
                    if made:
                        self.path.rmdir()

    def _lock_folder(self) -> bool:
        """Make the folder and lock it; whether it is new."""
        try:
            new = not self.path.exists()
            self.refuse_foreign()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"another process is training into {self.path}; wait for it or name another folder"
            ) from None
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written: {error.strerror or error}") from None
        self._remove_leftovers()
        return new

    def refuse_foreign(self) -> None:
        """Raise InputError where the path is a file, or a folder that holds something else than a run."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file; name a folder")
        if self.path.is_dir() and not self.config_file.exists():
            own = (
                ".lock",
                f".{self.config_file.name}-",
                f".{self.split_file.name}-",
                self.split_file.name,
            )  # of a run that was killed before it wrote its settings
            if not all(p.name.startswith(own) for p in self.path.iterdir()):
                raise InputError(f"--out {self.path} holds other files and no run; name an empty or a new folder")

    def refuse_inside(self, source: str) -> None:
        """Raise InputError where the path lies in the folder of the images, whose part its sheets would become."""
        with contextlib.suppress(OSError, ValueError):  # names that are no paths
            images = Path(source).expanduser().resolve()
            if images.is_dir() and images in self.path.resolve().parents:
                raise InputError(
                    f"--out {self.path} lies inside {source}, where its own pictures would be trained on; "
                    "name a folder outside"
                )

    def _remove_leftovers(self) -> None:
        """Delete the half-written files of a process that was killed while it replaced them."""
        names = (self.config_file.name, self.split_file.name, CONFIG_FILE, WEIGHTS_FILE, self.card.name)
        for leftover in (*(p for n in names for p in self.path.glob(f".{n}-*")), *self.samples.glob(".step-*.png-*")):
            with contextlib.suppress(OSError):
                leftover.unlink()

    def read_config(self) -> RunConfig | None:
        """The configuration of the run that lies here, or None for a new folder."""
        return read_run(self.path) if self.config_file.exists() else None

    def recorded(self) -> RunConfig | None:
        """As `read_config`; None also where the folder cannot be looked into, which whoever opens it says."""
        try:
            return self.read_config()
        except OSError:
            return None

    def check(self, config: RunConfig) -> None:
        """Refuse, naming them, settings that differ from those of the run that lies here."""
        before = self.read_config()
        changed = differences(before, config) if before else []
        if changed:
            raise InputError(
                f"{self.path} was trained with other settings: {'; '.join(changed)}; "
                "give the same ones to resume, or another --out"
            )

    def write_config(self, config: RunConfig, split: Mapping[str, Any]) -> None:
        """Write down the settings and the split of the run, as they are from now on. Raises InputError where that is
        not possible.
        """
        try:
            replace_file(self.split_file, json_bytes(dict(split)))
            replace_file(self.config_file, json_bytes(config.model_dump(mode="json")))
            self.samples.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written: {error.strerror or error}") from None


def read_run(path: Path) -> RunConfig:
    """The configuration of a run. Raises InputError where the folder holds none, or a damaged one."""
    file = path / "run.json"
    if not file.is_file():
        raise InputError(f"{path} is not a run folder: it holds no run.json")
    return validate(RunConfig, table(read_json(file), str(file)), str(file))


def records_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, in their order. A line that is broken (a crash, a full disk, an editor) is left out."""
    found = []
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line) if line.endswith(b"\n") else None
                if isinstance(record, dict):
                    found.append(record)
    return found


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole line of a log that is not broken, or None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                return record
    return None


def length_until(path: Path, step: int) -> int:
    """The bytes of a log that are of steps up to `step`."""
    length = 0
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            length += len(line)
    return length


class Log:
    """A file of JSON lines that can be cut back to an earlier length, and that waits while the disk is full."""

    def __init__(self, path: Path, length: int | None = None) -> None:
        """length: the bytes to keep of what an interrupted run wrote; None to keep all."""
        self.path = path
        if length is not None and path.exists() and path.stat().st_size > length:
            os.truncate(path, length)
        self._waiting = b""
        self.length = path.stat().st_size if path.exists() else 0
        """Bytes written or waiting."""

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        line = (json.dumps(record) + "\n").encode()
        self._waiting += line
        self.length += len(line)
        self.flush()

    def flush(self, durably: bool = False) -> None:
        """Hand everything that waits to the system. A full disk leaves it waiting.

        durably: to the disk as well, or raise OSError.
        """
        try:
            with self.path.open("ab", buffering=0) as file:
                while self._waiting:
                    written = file.write(self._waiting)
                    self._waiting = self._waiting[written:]
                if durably:
                    os.fsync(file.fileno())
        except OSError as error:
            if durably or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
