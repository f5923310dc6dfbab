"""Several processes (gloo on the CPU) train as one does at the same global batch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import TINY, ForkServer, Process, RealCommand, assert_same_run, environment, until
from safetensors.torch import load_file

STEPS = 8
# Losses: each process sums its own half first, in float32, and the next steps build on that: 1e-5 of the value.
TOLERANCE = 1e-5
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "morphogen")
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def lonely(arguments: tuple[object, ...], run: Path, forks: ForkServer) -> list[float]:
    assert forks.run(*arguments, "--out", run).code == 0
    return losses(run)


def options(images: Path, steps: int = STEPS) -> tuple[object, ...]:
    validating = ("--set", "training.saving.validate_every=3", "--set", "training.schedule.warmup=0")
    return ("train", images, *TINY, "--steps", steps, *validating)


def start_pair(forks: ForkServer, *arguments: object) -> tuple[Process, Process]:
    """Two processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    one, two = (forks.start(*arguments, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1))
    return one, two


def test_torchrun_gives_the_curve_of_one_process(
    command: RealCommand, forks: ForkServer, images: Path, tmp_path: Path
) -> None:
    alone = lonely(options(images), tmp_path / "one", forks)
    ended = command.run(*options(images), "--out", tmp_path / "two", launcher=TORCHRUN)
    assert ended.code == 0, ended.err
    assert ended.out.count("trained 8 steps (32 images)") == 1  # one speaks for both
    assert losses(tmp_path / "two") == pytest.approx(alone, rel=TOLERANCE)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        # Adam divides by the size of the gradient, so that rounding counts for more where it is nearly nothing.
        assert (weight - two[name]).abs().max() < 1e-3, name


def test_accelerate_launch_gives_the_curve_of_one_process(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    alone = lonely(options(images), tmp_path / "one", forks)
    command = [sys.executable, *ACCELERATE, "--module", "morphogen", *map(str, options(images)), "--out", "two"]
    # Warnings are no errors here: the launcher itself has some to give.
    quiet = {**environment(), "PYTHONWARNINGS": "default"}
    ended = subprocess.run(command, cwd=tmp_path, env=quiet, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert losses(tmp_path / "two") == pytest.approx(alone, rel=TOLERANCE)


def test_runs_go_on_with_another_number_of_processes(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    alone = lonely(options(images), tmp_path / "one", forks)
    run = tmp_path / "mixed"
    lonely(options(images, 3), run, forks)
    for process in (pair := start_pair(forks, *options(images, 6), "--out", run)):
        assert process.wait() == 0, process.err
    assert [p.out.count("trained") for p in pair] == [1, 0]
    assert pair[1].err == ""
    lonely(options(images), run, forks)
    assert losses(run) == pytest.approx(alone, rel=TOLERANCE)


def test_two_processes_resume_bit_for_bit(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    for name, stops in (("whole", [STEPS]), ("parts", [2, 5, STEPS])):
        for steps in stops:
            for process in start_pair(forks, *options(images, steps), "--out", tmp_path / name):
                assert process.wait() == 0, process.err
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_take_the_rate_down_together(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    """By steps and by time; a longer run goes back to the checkpoint before the fall."""
    falling = ("--set", "training.schedule.cooldown=0.5")
    run = tmp_path / "run"
    for ends in (("--minutes", 0.02), ("--steps", 100_000)):
        arguments = ["train", images, *TINY, *falling, *ends, "--out", run]
        pair = start_pair(forks, *arguments)
        if ends[0] == "--steps":
            until(lambda: "going back from step" in pair[0].err)  # noqa: B023
            start = int(pair[0].err.splitlines()[1].rpartition(" ")[2])  # resuming ... at step
            until(lambda: start + 5 < len(losses(run)))  # noqa: B023
            pair[0].send(signal.SIGTERM)
            assert [p.wait() for p in pair] == [3, 3], (pair[0].err, pair[1].err)
        else:
            assert [p.wait() for p in pair] == [0, 0], (pair[0].err, pair[1].err)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_batch_that_cannot_be_shared_is_refused(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    pair = start_pair(forks, *options(images), "--batch-size", 3, "--out", tmp_path / "run")
    for process in pair:
        assert process.wait() == 2
        assert process.err.splitlines()[-1] == "morphogen: --batch-size 3 cannot be shared evenly by 2 processes"
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)], ids=str)
def test_a_signal_to_any_process_saves_and_ends_all(
    forks: ForkServer, images: Path, tmp_path: Path, asked: tuple[int, ...]
) -> None:
    run = tmp_path / "run"
    pair = start_pair(forks, *options(images, 100_000), "--out", run)
    try:
        until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 3)
        for rank in asked:
            pair[rank].send(signal.SIGTERM)
        assert [p.wait() for p in pair] == [3, 3], (pair[0].err, pair[1].err)
    finally:
        for process in pair:
            if process.code is None:
                os.kill(process.pid, signal.SIGKILL)
    assert "saved; the same command goes on from there" in pair[0].err
    newest = max((run / "checkpoints").iterdir()).name
    assert newest == f"step-{len(losses(run)):08d}"


def test_one_that_dies_does_not_spoil_the_folder(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    often = ("--set", "training.saving.checkpoint_every=5", "--out", run)
    first, second = start_pair(forks, *options(images, 100_000), *often)
    until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 12)
    assert second.kill() == -9
    assert first.wait() != 0  # its partner is gone
    step = int(max((run / "checkpoints").glob("step-????????")).name.removeprefix("step-"))
    resumed = forks.run(*options(images, step + 3), *often)
    assert resumed.code == 0
    assert f"at step {step}" in resumed.err
    assert len(losses(run)) == step + 3
