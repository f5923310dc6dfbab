"""Checkpoints that survive a crash at any moment.

A checkpoint is staged in a folder of its own, every file synced, a manifest with sizes and SHA-256 written last, and
the folder renamed into place. Only then are older ones deleted. A checkpoint whose files don't match its manifest is
never used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import JsonObject, json_bytes, read_json, sha256, sync_folder, write_durably

_PREFIX, _STAGING, _DAMAGED = "step-", ".staging-", ".damaged"
_MANIFEST, _FACTS = "manifest.json", "facts.json"


@dataclass
class Checkpoint:
    """The state of a run: named groups of tensors, and plain facts."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: JsonObject


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int, before: int | None = None) -> Path:
    """Write a checkpoint durably, then delete all but the `keep` newest, and the newest up to step `before` if that is
    given. Returns its folder.

    Raises OSError where it cannot be written (a full disk); the older ones are untouched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_staging(folder)
    staging = folder / f"{_STAGING}{os.getpid()}"
    final = folder / f"{_PREFIX}{checkpoint.step:08d}"
    try:
        staging.mkdir()
        for name, tensors in checkpoint.tensors.items():
            content = save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
            write_durably(staging / f"{name}.safetensors", content)
        write_durably(staging / _FACTS, json_bytes({"step": checkpoint.step, **checkpoint.facts}))
        files = {p.name: {"size": p.stat().st_size, "sha256": sha256(p)} for p in sorted(staging.iterdir())}
        write_durably(staging / _MANIFEST, json_bytes({"format": 1, "files": files}))
        sync_folder(staging)
        if final.exists() and _same(staging, final):  # saved before an interruption
            shutil.rmtree(staging)
        else:
            if final.exists() and find_corruption(final) is not None:
                set_aside(final)
            elif final.exists():  # the same step with another history, such as another time taken
                final.rename(folder / f"{_STAGING}replaced")
            staging.rename(final)
            sync_folder(folder)
            remove_staging(folder)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    found = list_checkpoints(folder)
    kept = found[:keep] + ([] if before is None else [p for p in found if step_of(p) <= before][:1])
    for old in found:
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return final


def _same(one: Path, other: Path) -> bool:
    """Whether two checkpoints are undamaged and of the same content."""
    try:
        same = (one / _MANIFEST).read_bytes() == (other / _MANIFEST).read_bytes()
    except OSError:
        return False
    return same and find_corruption(other) is None


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def remove_newer(folder: Path, step: int) -> None:
    """Delete the checkpoints of steps beyond `step`: those that a run has gone back from."""
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, damaged ones included."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit() and p.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def remove_staging(folder: Path) -> None:
    """Delete what an interrupted save left."""
    for leftover in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def find_corruption(folder: Path) -> str | None:
    """The fault of a checkpoint, or None where every file matches the manifest."""
    try:
        files = read_json(folder / _MANIFEST)["files"]
        if _FACTS not in files:
            raise KeyError(_FACTS)
        for name, wanted in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {wanted['size']}"
            if sha256(path) != wanted["sha256"]:
                return f"{name} does not match its checksum"
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is missing or unreadable"
    return None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that has been found undamaged."""
    facts = read_json(folder / _FACTS)
    tensors = {p.stem: load_tensors(p.read_bytes()) for p in folder.glob("*.safetensors")}
    return Checkpoint(facts.pop("step"), tensors, facts)


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it is neither used nor in the way."""
    aside = path.with_name(path.name + _DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def newest_checkpoint(
    folder: Path, owner: bool = True, suits: Callable[[int, JsonObject], bool] = lambda _step, _facts: True
) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint that suits, or None; and a sentence for each damaged one passed over.

    owner: whether this process may tidy up: delete unfinished saves and set damaged checkpoints aside. suits: given the
    step and the facts of one.
    """
    if owner:
        remove_staging(folder)
    damaged: list[Path] = []
    remarks: list[str] = []
    for path in list_checkpoints(folder):
        wrong = find_corruption(path)
        if wrong is not None:
            damaged.append(path)
            remarks.append(f"the checkpoint {path} is damaged ({wrong})")
        elif suits(step_of(path), read_json(path / _FACTS)):
            if owner:  # only now: where all are damaged they stay, so that the next start is refused like this one
                for other in damaged:
                    set_aside(other)
            return load_checkpoint(path), [f"{remark}; using {path.name}" for remark in remarks]
    return None, remarks
