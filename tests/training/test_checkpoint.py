"""Checkpoints: what damages them, what is used instead, when old ones go."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from run_helpers import assert_same_run, snapshot

from morphogen.core.errors import InputError
from morphogen.training.checkpoint import (
    Checkpoint,
    find_corruption,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from morphogen.training.loop import Result


def some(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    groups = {
        "model": {"a": torch.randn(3, 4, generator=generator), "b.c": torch.randn((), generator=generator)},
        "optimizer": {},
    }
    return Checkpoint(step, groups, {"loss": step / 7, "note": None})


def flip(path: Path, where: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "byte flipped in the weights": (lambda p: flip(p / "model.safetensors", 0.9), "model.safetensors does not match"),
    "byte flipped in a header": (lambda p: flip(p / "ema.safetensors", 0.01), "ema.safetensors does not match"),
    "byte flipped in the facts": (lambda p: flip(p / "facts.json"), "facts.json does not match"),
    "truncated": (lambda p: truncate(p / "optimizer.safetensors"), "optimizer.safetensors has"),
    "emptied": (lambda p: (p / "facts.json").write_bytes(b""), "facts.json has 0 bytes"),
    "file missing": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
    "manifest missing": (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest truncated": (lambda p: truncate(p / "manifest.json", 20), "manifest.json is missing or unreadable"),
    "manifest of another kind": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json"),
    "manifest that lists nothing": (lambda p: (p / "manifest.json").write_text('{"files": {}}'), "manifest.json"),
    "folder emptied": (lambda p: [f.unlink() for f in p.iterdir()], "manifest.json is missing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_newest_is_named_and_the_one_before_used(
    trained: Callable[..., Result], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    do, says = DAMAGES[kind]
    whole = tmp_path / "whole"
    trained("whole", steps=6, checkpoint_every=2)
    trained("run", steps=4, checkpoint_every=2)
    newest = tmp_path / "run" / "checkpoints" / "step-00000004"
    do(newest)
    capsys.readouterr()
    trained("run", steps=6, checkpoint_every=2)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert str(newest) in warning
    assert says in warning
    assert newest.with_name("step-00000004.damaged").is_dir()
    assert find_corruption(newest) is None  # made again
    assert_same_run(whole, tmp_path / "run")


def test_every_checkpoint_damaged_is_refused(trained: Callable[..., Result], tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained("run", steps=4, checkpoint_every=2)
    for folder in list_checkpoints(run / "checkpoints"):
        flip(folder / "model.safetensors")
    kept = {p: p.read_bytes() for p in (run / "metrics.jsonl", run / "model.safetensors", run / "run.json")}
    with pytest.raises(InputError, match="every checkpoint"):
        trained("run", steps=6, checkpoint_every=2)
    assert {p: p.read_bytes() for p in kept} == kept
    assert len(list((run / "checkpoints").glob("*/model.safetensors"))) == 2
    with pytest.raises(InputError, match="every checkpoint"):  # and again: it does not start anew in silence
        trained("run", steps=6, checkpoint_every=2)
    assert {p: p.read_bytes() for p in kept} == kept


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = some(3)
    found = load_checkpoint(save_checkpoint(tmp_path / "c", saved, keep=1))
    assert found.step == 3
    assert found.facts == saved.facts
    assert found.tensors.keys() == saved.tensors.keys()
    for group, tensors in saved.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        assert all(torch.equal(found.tensors[group][name], value) for name, value in tensors.items())


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_as_many_are_kept_as_asked_for(trained: Callable[..., Result], tmp_path: Path, keep: int) -> None:
    trained("run", steps=7, checkpoint_every=2, keep_checkpoints=keep)
    names = [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == [f"step-{n:08d}" for n in (7, 6, 4, 2)][:keep]


_watchers: list[list[tuple[str, str, str]]] = []


def _note(event: str, details: tuple[object, ...]) -> None:
    if _watchers and event in ("os.rename", "shutil.rmtree", "os.mkdir"):
        _watchers[-1].append((event, Path(str(details[0])).name, Path(str(details[1])).name))


@pytest.fixture
def file_events() -> Iterator[list[tuple[str, str, str]]]:
    """What Python does with folders, in order, by its audit events."""
    if not getattr(sys, "_morphogen_audited", False):
        sys.addaudithook(_note)
        sys._morphogen_audited = True  # type: ignore[attr-defined]
    _watchers.append([])
    yield _watchers[-1]
    _watchers.pop()


def test_an_old_one_goes_only_when_the_new_one_is_in_place(
    tmp_path: Path, file_events: list[tuple[str, str, str]]
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, some(step), keep=1)
    events = [(event, a, b) for event, a, b in file_events if event != "os.mkdir"]
    order = [b if event == "os.rename" else f"-{a}" for event, a, b in events]
    assert order == ["step-00000001", "step-00000002", "-step-00000001", "step-00000003", "-step-00000002"]


def test_a_save_that_fails_leaves_the_others(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, some(1), keep=1)
    before = snapshot(tmp_path)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError):
            save_checkpoint(tmp_path, some(2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(tmp_path) == before


def test_unfinished_saves_are_ignored_and_removed(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path, some(1), keep=2)
    shutil.copytree(good, unfinished := tmp_path / ".staging-77")
    (unfinished / "manifest.json").unlink()
    other, remarks = newest_checkpoint(tmp_path, owner=False)
    assert unfinished.exists()  # another process's business
    assert (other is not None and other.step, remarks) == (1, [])
    newest_checkpoint(tmp_path)
    assert not unfinished.exists()


def test_only_the_owner_sets_damaged_ones_aside(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, some(1), keep=2)
    flip(save_checkpoint(tmp_path, some(2), keep=2) / "facts.json")
    for owner, name in ((False, "step-00000002"), (True, "step-00000002.damaged")):
        found, remarks = newest_checkpoint(tmp_path, owner)
        assert found is not None
        assert found.step == 1
        assert len(remarks) == 1
        assert {p.name for p in tmp_path.iterdir()} == {"step-00000001", name}


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, some(5), keep=1)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert set(files) == {"model.safetensors", "optimizer.safetensors", "facts.json"}
