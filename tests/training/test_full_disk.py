"""A full disk: a warning, training goes on, the last good checkpoint stays, and the next save succeeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_helpers import TINY, ForkServer, assert_same_run, contents, until

from morphogen.training.checkpoint import find_corruption, list_checkpoints
from morphogen.training.loop import Result

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fills a file system of its own, or limits file sizes")
resource = pytest.importorskip("resource")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    (disk := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system ({error}); only root can")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes all space but `leave` bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        file.write(bytes(max(0, free - leave)))
    return ballast


def good(run: Path) -> list[str]:
    return [p.name for p in list_checkpoints(run / "checkpoints") if find_corruption(p) is None]


def test_training_goes_on_and_saves_when_there_is_space_again(
    forks: ForkServer, trained: Callable[..., Result], images: Path, small_disk: Path, tmp_path: Path
) -> None:
    options = (
        "train",
        images,
        *TINY,
        "--set",
        "training.saving.keep_checkpoints=1",
        "--set",
        "training.saving.checkpoint_every=10",
    )
    run = small_disk / "run"
    assert forks.run(*options, "--out", run, "--steps", 10).code == 0
    ballast = fill(small_disk, leave=20_000)
    before = {p: p.read_bytes() for p in (run / "checkpoints" / "step-00000010").iterdir()}

    process = forks.start(*options, "--out", run, "--steps", 120)
    try:
        until(lambda: "could not be saved" in process.err)
        process.send(signal.SIGSTOP)
        assert {p: p.read_bytes() for p in (run / "checkpoints" / "step-00000010").iterdir()} == before
        assert good(run) == ["step-00000010"]
        assert not list((run / "checkpoints").glob(".staging*"))
        ballast.unlink()
    finally:
        process.send(signal.SIGCONT)
    assert process.wait() == 0, process.err
    warnings = [line for line in process.err.splitlines() if "could not be saved" in line]
    assert warnings[0].startswith("warning: step 20 could not be saved (No space left on device)")
    assert good(run) == ["step-00000120"]

    trained("whole", steps=120)
    assert_same_run(tmp_path / "whole", run)


def test_a_training_that_ends_unsaved_says_so(
    forks: ForkServer, trained: Callable[..., Result], images: Path, small_disk: Path, tmp_path: Path
) -> None:
    options = ("train", images, *TINY, "--set", "training.saving.checkpoint_every=2", "--out", small_disk / "run")
    assert forks.run(*options, "--steps", 4).code == 0
    ballast = fill(small_disk, leave=12_000)
    before = contents(small_disk / "run")
    full = forks.run(*options, "--steps", 6)
    assert full.code == 2
    assert "trained" not in full.out
    assert "morphogen: the training reached step 6, which could not be saved" in full.err
    assert full.err.count("warning: step 6 could not be saved") == 1
    assert "Traceback" not in full.err
    now = contents(small_disk / "run")
    assert {k: now[k] for k in now if k != "metrics.jsonl"} == {k: before[k] for k in before if k != "metrics.jsonl"}
    ballast.unlink()
    assert forks.run(*options, "--steps", 6).code == 0
    trained("whole", steps=6)
    assert_same_run(tmp_path / "whole", small_disk / "run")


def test_no_space_for_the_log_either(forks: ForkServer, images: Path, small_disk: Path) -> None:
    """The log waits in memory while the disk takes nothing at all, and nothing is missing from it afterwards."""
    run = small_disk / "run"
    options = ("train", images, *TINY, "--set", "training.saving.checkpoint_every=20", "--out", run)
    assert forks.run(*options, "--steps", 20).code == 0
    process = forks.start(*options, "--steps", 300)
    until(lambda: (run / "metrics.jsonl").read_text().count("\n") > 20)
    ballast = fill(small_disk)
    until(lambda: "could not be saved" in process.err)
    size = (run / "metrics.jsonl").stat().st_size
    ballast.unlink()
    assert process.wait() == 0, process.err
    log = (run / "metrics.jsonl").read_text()
    assert size < len(log)
    assert [json.loads(line)["step"] for line in log.splitlines()] == list(range(1, 301))
    assert good(run)[0] == "step-00000300"


@pytest.mark.parametrize("leave", [0, 5_000, 15_000])
def test_starting_on_a_full_disk_is_refused_in_one_sentence(
    forks: ForkServer, images: Path, small_disk: Path, leave: int
) -> None:
    fill(small_disk, leave)
    started = forks.run("train", images, *TINY, "--steps", 2, "--out", small_disk / "run")
    assert started.code == 2
    assert "Traceback" not in started.err
    assert started.err.splitlines()[-1].startswith("morphogen: ")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="lifts a limit of another process, which needs Linux")
def test_any_failing_save(forks: ForkServer, trained: Callable[..., Result], images: Path, tmp_path: Path) -> None:
    """As above without a file system of its own: no file may be larger than 12 kB until the limit is lifted."""
    run = tmp_path / "run"
    options = ("train", images, *TINY, "--set", "training.saving.checkpoint_every=5", "--out", run)
    assert forks.run(*options, "--steps", 5).code == 0
    process = forks.start(*options, "--steps", 60, file_limit=12_000)
    until(lambda: "could not be saved" in process.err)
    assert "step-00000005" in good(run)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert process.wait() == 0, process.err
    assert good(run) == ["step-00000060", "step-00000055"]
    trained("whole", steps=60)
    assert_same_run(tmp_path / "whole", run)


def test_a_failing_sheet_is_no_loss(
    trained: Callable[..., Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"sample_images": 1, "sample_every": 2}
    samples = tmp_path / "run" / "samples"
    trained("run", "diffusion.timesteps=4", steps=3, **settings)
    assert sorted(p.name for p in samples.iterdir()) == ["step-00000002.png", "step-00000003.png"]
    (samples / "step-00000004.png" / "in the way").mkdir(parents=True)
    capsys.readouterr()
    assert trained("run", "diffusion.timesteps=4", steps=6, **settings).step == 6
    assert capsys.readouterr().err.startswith("warning: no samples of step 4")
    assert (samples / "step-00000006.png").is_file()
