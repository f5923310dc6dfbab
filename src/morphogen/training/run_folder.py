"""The folder of a run: what lies where, who may write to it, and its settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from morphogen.core.errors import InputError
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.model_files import CONFIG_FILE, WEIGHTS_FILE, header, without_header
from morphogen.core.validation import table, validate
from morphogen.data.splits import SplitFile
from morphogen.training.config import RunConfig, differences, regroup
from morphogen.training.paths import absolute, located, relative_paths


class RunFolder:
    """RUN/run.json, split.json, config.json, model.safetensors, checkpoints/, samples/, metrics.jsonl, timing.jsonl,
    README.md; latents/ where the model works in them, and autoencoder/, a run of its own, where it has learnt them;
    levels/0, levels/1, ..., runs of their own, of a pyramid.
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
        self.autoencoder = path / "autoencoder"
        self.levels = path / "levels"
        self._lock = FileLock(path / ".lock")

    def level(self, number: int) -> Path:
        """The run of a level of a pyramid, 0 being the coarsest."""
        return self.levels / str(number)

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
            self.check_is_run()
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

    def check_is_run(self) -> None:
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

    def check_not_inside(self, source: str) -> None:
        """Raise InputError where the path lies in the folder of the images, and its grids would be trained on."""
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
        changed = differences(absolute(before), absolute(config, before)) if before else []
        if changed:
            raise InputError(
                f"{self.path} was trained with other settings: {'; '.join(changed)}; "
                "give the same ones to resume, or another --out"
            )

    def write_config(self, config: RunConfig, split: SplitFile) -> None:
        """Write down the settings and the split of the run, as they are from now on. Raises InputError where that is
        not possible.
        """
        try:
            replace_file(self.split_file, json_bytes(dict(split)))
            replace_file(self.config_file, json_bytes(written(config, self.path)))
            self.samples.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written: {error.strerror or error}") from None


def written(config: RunConfig, folder: Path) -> dict[str, object]:
    """The content of run.json: the settings, paths among them absolute, and where these lie as seen from the folder."""
    config = absolute(config)
    return {**header(), **config.model_dump(mode="json"), "relative_to_run": relative_paths(config, folder)}


def read_run(path: Path) -> RunConfig:
    """The configuration of a run. What has moved together with the folder is found where it lies now.

    Raises InputError where the folder holds none, a damaged one, or one of a newer Morphogen.
    """
    file = path / "run.json"
    if not file.is_file():
        raise InputError(f"{path} is not a run folder: it holds no run.json")
    values = regroup(without_header(table(read_json(file), str(file)), str(file)), str(file))
    relative = values.pop("relative_to_run", {})
    return located(validate(RunConfig, values, str(file)), path, table(relative, f"{file}: relative_to_run"))
