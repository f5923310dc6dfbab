"""Environments of clusters, folders that vanish, signals at the start, budgets of time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import TINY, ForkServer, Outcome, RealCommand, draw_images, environment, until

from morphogen.core.progress import Progress

CLUSTER = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29587"}


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def waiting() -> dict[str, str]:
    """One of two processes, at a port of its own: another test that waits beside this one must not be its second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {**CLUSTER, "MASTER_PORT": str(free.getsockname()[1])}


# --- WORLD_SIZE ---


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set in the environment, but RANK and LOCAL_RANK and MASTER_ADDR and"),
        ({**CLUSTER, "RANK": ""}, "but RANK is not"),
        ({**CLUSTER, "RANK": "2"}, "RANK is '2'"),
        ({**CLUSTER, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(
    forks: ForkServer, images: Path, tmp_path: Path, env: dict[str, str], says: str
) -> None:
    process = forks.start("train", images, *TINY, "--steps", 1, "--out", tmp_path / "run", env=env)
    assert process.wait() == 2
    assert len(process.err.splitlines()) == 1
    assert says in process.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "env",
    [{"WORLD_SIZE": ""}, {"WORLD_SIZE": "1"}, {"LOCAL_RANK": "0"}, {"RANK": "3"}, {"PMI_SIZE": "2", "PMI_RANK": "1"}],
)
def test_one_process_needs_nothing(forks: ForkServer, images: Path, tmp_path: Path, env: dict[str, str]) -> None:
    process = forks.start("train", images, *TINY, "--steps", 1, "--out", tmp_path / "run", env=env)
    assert process.wait() == 0, process.err


@pytest.mark.parametrize("env", [{"WORLD_SIZE": "x"}, CLUSTER])
def test_other_commands_ignore_it(forks: ForkServer, tmp_path: Path, env: dict[str, str]) -> None:
    process = forks.start("models", env=env)
    assert process.wait() == 0, process.err
    few = ("--sampling-steps", 1, "--size", 16, "--out", tmp_path / "s")
    process = forks.start("sample", "tissue-texture", "-n", 1, *few, env=env)
    assert process.wait() == 0, process.err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_it_says_whom_it_waits_for_and_can_be_stopped(
    forks: ForkServer, images: Path, tmp_path: Path, rank: str
) -> None:
    env = {**waiting(), "RANK": rank, "LOCAL_RANK": rank}
    process = forks.start("train", images, *TINY, "--steps", 1, "--out", tmp_path / "run", env=env)
    until(lambda: process.err.endswith("\n"), seconds=20)
    assert process.err == "waiting for 1 more process (WORLD_SIZE=2) ...; giving up after 5 minutes\n"
    process.send(signal.SIGTERM)
    assert process.wait() == 3
    assert process.err.splitlines()[-1] == "morphogen: interrupted; what was finished is kept"


def test_it_gives_up() -> None:
    hurried = "import morphogen.training.processes as p; p._GIVE_UP_AFTER_S = 2; p.join_processes('cpu')"
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", hurried], env={**environment(), **waiting()}, capture_output=True, text=True, timeout=60
    )
    assert "InputError: gave up waiting for 1 more process (WORLD_SIZE=2): " in ended.stderr
    assert time.monotonic() - started < 40


# --- signals, folders, disks ---


def test_sigterm_while_it_starts_ends_it_like_ctrl_c(command: RealCommand, tmp_path: Path) -> None:
    """While the images are looked at, which takes long enough to be met."""
    images = draw_images(tmp_path / "images", 2, 20)
    for k in range(400):
        shutil.copy(images / "00.png", images / f"x{k}.png")
    ended = set()
    for pause in (0.3, 1.5, 3.0):
        process = command.start("train", images, *TINY, "--out", tmp_path / "run", "--steps", 10**6)
        time.sleep(pause)
        process.send(signal.SIGTERM)
        ended.add(process.wait())
        assert "Traceback" not in process.err
    # Before Python runs our first line, the system ends it.
    assert ended <= {3, -signal.SIGTERM}
    assert 3 in ended


def test_a_folder_that_vanishes_is_said(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = forks.start("train", images, *TINY, "--steps", 10**6, "--out", run)
    until(lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 3)
    run.rename(tmp_path / "gone")
    assert process.wait() == 1
    assert "Traceback" not in process.err
    assert f"the folder {run} was removed or renamed while it was trained into" in process.err.splitlines()[-1]
    assert not run.exists()


@pytest.mark.parametrize("spoil", ["deleted", "cut", "garbled"])
def test_a_spoilt_metrics_log_is_said_and_goes_on(
    cli: Callable[..., Outcome], images: Path, tmp_path: Path, spoil: str
) -> None:
    run = tmp_path / "run"
    assert cli("train", images, "--out", run, *TINY, "--steps", 5).code == 0
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    if spoil == "deleted":
        log.unlink()
    else:
        log.write_bytes(b"".join(lines[:2]) + (lines[2][:20] if spoil == "cut" else b"\xff{[\n" + lines[3]))
    (run / "timing.jsonl").write_bytes(b'{"step": 1, "el\n\x00\n[]\n{"step": "x"}\n')
    again = cli("train", images, "--out", run, *TINY, "--steps", 7)
    assert again.code == 0, again.err
    kept = {"deleted": [], "cut": [1, 2], "garbled": [1, 2, 4]}[spoil]
    assert [r["step"] for r in records(run)] == [*kept, 6, 7]
    said = [line for line in again.err.splitlines() if "metrics.jsonl" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert ("all its records are gone" if not kept else f"the last is of step {kept[-1]}") in said[0]
    assert cli("info", run).code == 0
    assert "metrics.jsonl" not in cli("train", images, "--out", run, *TINY, "--steps", 8).err


def test_a_manifest_nested_deeply_is_a_damaged_checkpoint(
    cli: Callable[..., Outcome], images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    often = ("--set", "training.saving.checkpoint_every=2")
    assert cli("train", images, "--out", run, *TINY, *often, "--steps", 4).code == 0
    (run / "checkpoints" / "step-00000004" / "manifest.json").write_text("[" * 100_000)
    again = cli("train", images, "--out", run, *TINY, *often, "--steps", 5)
    assert again.code == 0, again.err
    assert "manifest.json is missing or unreadable" in again.err
    assert "at step 2" in again.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["run.json", "config.json", "split.json"])
def test_only_ordinary_files_are_read(cli: Callable[..., Outcome], images: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    assert cli("train", images, "--out", run, *TINY, "--steps", 1).code == 0
    for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
        (run / name).unlink()
        make(run / name)
        if name == "split.json":
            ended = cli("train", images, "--out", tmp_path / "b", *TINY, "--steps", 1, "--split", run / name)
        else:
            ended = cli("sample", run, "--out", tmp_path / "s") if name == "config.json" else cli("info", run)
        assert ended.code == 2
        assert "not an ordinary file" in ended.err or "is no" in ended.err or "is neither" in ended.err, ended.err


# --- budgets of time ---


def test_the_samples_at_the_end_are_part_of_the_time(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    options = (*TINY[:-2], "--set", "training.saving.sample_images=4", "--minutes", 0.1)
    run = tmp_path / "run"
    cli("train", images, "--out", tmp_path / "warm", *TINY, "--steps", 1)
    started = time.monotonic()
    ended = cli("train", images, "--out", run, *options)
    took = time.monotonic() - started
    assert ended.code == 0, ended.err
    facts = json.loads((max((run / "checkpoints").iterdir()) / "facts.json").read_text())
    assert facts["spent_minutes"] == 0.1
    assert list((run / "samples").iterdir())
    assert facts["elapsed_s"] < 6.0  # the samples took of it, and no step is begun that would not end within it
    # 6 s, and 3 more for opening the images and what other work on the machine does to estimates.
    assert took < 9.0
    steps = len(records(run))
    assert cli("train", images, "--out", run, *options).code == 0
    assert len(records(run)) == steps


def test_few_images_are_said_not_to_be_held_out(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 5)
    ended = cli("train", images, "--out", tmp_path / "run", *TINY, "--steps", 1)
    assert "note: 5 images are too few to hold any out: all of them are trained on" in ended.err
    quiet = cli("train", images, "--out", tmp_path / "other", *TINY, "--steps", 1, "--split", "none")
    assert "too few" not in quiet.err


def test_progress_counts_whole_images_and_no_negative_time(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.core.progress._LINE_INTERVAL_S", 0.0)
    with Progress("training", 8538.79, "images") as shown:
        shown.update(960)
        shown.update(9000)
        shown.update(1_234_567, total=2_000_000)
    first, second, third = capfd.readouterr().err.splitlines()
    assert "960/8539 images" in first
    assert ", 0:00 left" in second
    assert "-" not in second
    assert "1234567/2000000 images" in third
