"""`morphogen train`: what it prints and writes, and being stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from run_helpers import (
    TINY,
    ForkServer,
    Outcome,
    RealCommand,
    assert_same_run,
    contents,
    draw_images,
    environment,
    snapshot,
    until,
)
from safetensors.torch import load_file

from morphogen._version import VERSION
from morphogen.core.model_files import FORMAT
from morphogen.training.run_folder import read_run


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_says_what_it_did_and_what_to_do_next(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = cli("train", images, "--out", run, *TINY, "--steps", 3)
    assert ended.code == 0
    assert "trained 3 steps (12 images), loss " in ended.out
    assert f"morphogen sample {run} -n 16" in ended.out
    assert "Traceback" not in ended.err
    again = cli("train", images, "--out", run, *TINY, "--steps", 5)
    assert again.code == 0
    assert f"resuming {run} at step 3" in again.err


def test_flags_reach_the_run(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    flags = (
        "--model",
        "fourier-diff-nca-small",
        "--recipe",
        "paper",
        "--size",
        "32x36",
        "--batch-size",
        2,
        "--seed",
        9,
    )
    more = ("--fit", "stretch", "--domain", "icons", "--background", "#102030", "--max-bad", 3, "--split", "none")
    last = ("--device", "cpu", "--precision", "float32", "--downscale", 1.5, "--set", "architecture.nca_steps=1")
    draw_images(tmp_path / "big", 3, 60)
    small = (
        "--set",
        "architecture.channels=8",
        "--set",
        "architecture.hidden=8",
        "--set",
        "training.saving.sample_images=0",
    )
    ended = cli("train", tmp_path / "big", "--out", tmp_path / "run", *flags, *more, *last, *small, "--steps", 2)
    assert ended.code == 0, ended.err
    found = read_run(tmp_path / "run")
    assert (found.model, found.recipe, found.data.size) == ("fourier-diff-nca-small", "paper", (32, 36))
    assert (found.training.batch_size, found.training.seed, found.training.steps) == (2, 9, 2)
    assert (found.data.fit, found.data.domain, found.data.background) == ("stretch", "icons", "#102030")
    assert (found.data.max_bad, found.data.split, found.data.downscale) == (3, "none", 1.5)
    assert (found.training.devices.device, found.training.devices.precision) == ("cpu", "float32")
    assert found.architecture["nca_steps"] == 1
    assert found.diffusion.timesteps == 300


def test_another_seed_is_another_run(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert cli("train", images, "--out", tmp_path / str(seed), *TINY, "--steps", 2, "--seed", seed).code == 0
    one, other = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert one["metrics.jsonl"] != other["metrics.jsonl"]
    assert one["model.safetensors"] != other["model.safetensors"]


# --- --dry-run ---


def test_dry_run_prints_the_plan_and_writes_nothing(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    shown = cli("train", images, "--out", tmp_path / "run", *TINY, "--steps", 70, "--seed", 6, "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    assert snapshot(tmp_path) == before
    settings, _, plan = shown.out.partition("\n# parameters ")
    printed = yaml.safe_load(shown.out)
    assert yaml.safe_load(settings) == printed
    assert printed["training"]["steps"] == 70
    assert printed["training"]["seed"] == 6
    assert printed["data"]["source"] == str(images)
    assert printed["architecture"].items() >= {"channels": 8, "hidden": 16, "nca_steps": 2}.items()
    assert "3,488" in plan
    for word in ("time ", "memory ", "disk ", "MiB", "70 steps", str(tmp_path / "run")):
        assert word in plan


@pytest.mark.slow
def test_dry_run_of_the_paper(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 2, 40)
    paper = ("--model", "fourier-diff-nca", "--recipe", "paper", "--size", 32)
    shown = cli("train", images, "--out", tmp_path / "run", *paper, "--dry-run")
    assert shown.code == 0
    for text in ("1,100,192", "1,095,952", "200,000 steps", "timesteps: 300", "decay_rate: 0.9999", "loss: mse+l1"):
        assert text in shown.out


def test_what_dry_run_prints_is_a_configuration(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    shown = cli("train", images, "--out", tmp_path / "run", *TINY, "--steps", 2, "--dry-run")
    (tmp_path / "plan.yaml").write_text(shown.out)
    assert cli("train", images, "--out", tmp_path / "a", "--config", tmp_path / "plan.yaml").code == 0
    assert cli("train", images, "--out", tmp_path / "b", *TINY, "--steps", 2).code == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    shown = cli("train", images, "--out", tmp_path / "run", *TINY, "--steps", 2, "--dry-run", "--json")
    (tmp_path / "plan.json").write_text(shown.out)
    printed = json.loads(shown.out)
    assert printed["estimate"]["steps"] == 2
    assert (printed["format"], printed["morphogen"]) == (FORMAT, VERSION)
    assert cli("train", "--out", tmp_path / "c", "--config", tmp_path / "plan.json").code == 0, "it names the images"
    assert_same_run(tmp_path / "a", tmp_path / "c")
    (tmp_path / "none.yaml").write_text("model: diff-nca-small")
    ended = cli("train", "--out", tmp_path / "d", "--config", tmp_path / "none.yaml")
    assert ended.code == 2 and "the images are not named: name them as DATA, or as data.source in" in ended.err


def test_dry_run_refuses_what_the_run_would(
    refused: Callable[..., str], cli: Callable[..., Outcome], images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli("train", images, "--out", run, *TINY, "--steps", 1).code == 0
    refused("train", images, "--out", run, *TINY, "--seed", 1, "--dry-run", says=["training.seed"], keeps=[run])
    refused("train", images, "--out", images, *TINY, "--dry-run", says=["no run"], keeps=[images])
    refused("train", images, "--out", run / "run.json", *TINY, "--dry-run", says=["is a file"], keeps=[run])
    refused("train", tmp_path / "no", "--out", tmp_path / "n", *TINY, "--dry-run", says=["no", "does not exist"])


# --- --config, --minutes, --init ---


def test_the_run_json_of_a_run_reproduces_it(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    unusual = (
        "--set",
        "diffusion.output=noise",
        "--set",
        "training.averaging.kind=constant",
        "--recipe",
        "paper",
        "--seed",
        5,
    )
    assert cli("train", images, "--out", tmp_path / "first", *TINY, *unusual, "--steps", 4).code == 0
    again = cli("train", images, "--out", tmp_path / "second", "--config", tmp_path / "first" / "run.json")
    assert again.code == 0
    assert_same_run(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first" / "run.json").read_text() == (tmp_path / "second" / "run.json").read_text()


def test_minutes(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("train", images, "--out", run, *TINY, "--minutes", 0.01).code == 0
    facts = json.loads((max((run / "checkpoints").iterdir()) / "facts.json").read_text())
    assert facts["elapsed_s"] > 0.3  # no step is begun that would end after them
    assert facts["step"] == len(records(run)) >= 1
    steps = facts["step"]
    assert cli("train", images, "--out", run, *TINY, "--minutes", 0.01).code == 0  # in all, so nothing is left to do
    assert len(records(run)) == steps
    assert cli("train", images, "--out", run, *TINY, "--steps", steps + 2).code == 0  # and the end may change
    assert len(records(run)) == steps + 2


def test_init_starts_from_the_weights_of_a_run(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    paper = ("--recipe", "paper")  # whose shape and timesteps are not those of `default`, which goes on from it
    assert cli("train", images, "--out", first, *TINY, *paper, "--steps", 30).code == 0
    start = (
        "--set",
        "training.optimizer.learning_rate=1e-12",
        "--set",
        "training.averaging.kind=constant",
        "--set",
        "training.averaging.decay=0",
    )
    assert cli("train", images, "--out", tuned, *TINY, "--steps", 1, "--init", first, *start).code == 0
    one, other = load_file(first / "model.safetensors"), load_file(tuned / "model.safetensors")
    # 1e-6: one step of a learning rate of 1e-12 / 100 (its warm-up) moves no weight that float32 can tell.
    assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-6) for name in one)
    assert read_run(tuned).init == str(first)
    first.rename(tmp_path / "gone")  # it was needed for the start alone
    assert cli("train", images, "--out", tuned, *TINY, "--steps", 2, "--init", first, *start).code == 0


def test_tensorboard(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    setting = ("--set", "training.saving.tensorboard=true")
    assert cli("train", images, "--out", run, *TINY, "--steps", 3, *setting).code == 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"loss", "learning_rate", "gradient_norm"} <= set(events.Tags()["scalars"])
    logged = [(e.step, e.value) for e in events.Scalars("loss")]
    assert logged == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records(run)]


def test_no_tensorboard_unless_asked_for(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    assert cli("train", images, "--out", tmp_path / "run", *TINY, "--steps", 1).code == 0
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.slow
def test_bfloat16(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("train", images, "--out", run, *TINY, "--precision", "bfloat16", "--steps")
    assert cli(*options, 60).code == 0
    weights = load_file(run / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    losses = [r["loss"] for r in records(run)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert cli("train", images, "--out", tmp_path / "whole", *options[4:], 62).code == 0
    assert cli(*options, 62).code == 0
    assert_same_run(run, tmp_path / "whole")


def test_splits_and_folds(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    assert cli("data", "split", images, "--folds", 3, "--out", file).code == 0
    assignment = json.loads(file.read_text())["assignment"]
    run = tmp_path / "run"
    options = ("train", images, "--out", run, *TINY, "--split", file, "--fold", 1)
    assert cli(*options, "--steps", 2).code == 0
    card = (run / "README.md").read_text()
    assert f"- images: {sum(fold == 0 for fold in assignment.values())}" in card  # 1 is for testing, 2 for validation
    assert "- fold: 1" in card
    moved = file.rename(tmp_path / "moved.json")
    assert cli("train", images, "--out", run, *TINY, "--split", moved, "--fold", 1, "--steps", 3).code == 0


# --- signals, to the real command ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_exits_with_3_and_the_same_command_goes_on(
    command: RealCommand, forks: ForkServer, images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    options = ("train", images, *TINY, "--out", run, "--steps")
    process = command.start(*options, 100_000)
    until(lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 5)
    process.send(number)
    assert process.wait() == 3
    last = process.err.splitlines()[-1]
    steps = len(records(run))
    assert last == f"morphogen: stopped at step {steps} and saved; the same command goes on from there"
    assert "Traceback" not in process.err
    assert process.out == ""
    assert max((run / "checkpoints").iterdir()).name == f"step-{steps:08d}"

    resumed = forks.start(*options, 100_000)
    until(lambda: len(records(run)) > steps)
    resumed.send(number)
    assert resumed.wait() == 3
    assert f"resuming {run} at step {steps}" in resumed.err
    steps = len(records(run))
    assert forks.run(*options, steps + 2).code == 0
    assert forks.run("train", images, *TINY, "--steps", steps + 2, "--out", tmp_path / "whole").code == 0
    assert_same_run(run, tmp_path / "whole")


def test_a_signal_before_the_first_step_loses_nothing(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    """At any moment of the start: it ends, by the signal or with 3, and the same command does it all."""
    for k in range(6):
        run = tmp_path / f"run-{k}"
        process = forks.start("train", images, *TINY, "--out", run, "--steps", 100_000)
        until(lambda k=k, run=run: run.exists() or k < 3, pause=0.001 * (k + 1))
        process.send(signal.SIGTERM)
        code = process.wait()
        assert code in (3, -signal.SIGTERM)
        assert "Traceback" not in process.err
        ends = ("saved; the same command goes on from there", "interrupted; what was finished is kept")
        assert code != 3 or process.err.rstrip().endswith(ends), process.err
        ended = forks.run("train", images, *TINY, "--out", run, "--steps", 1)
        assert ended.code == 0, ended.err


def test_a_second_signal_ends_it_at_once(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = ("--set", "architecture.nca_steps=512", "--set", "training.saving.sample_images=0", "--batch-size", 64)
    process = forks.start("train", images, "--size", 20, *slow, "--out", run, "--steps", 9)
    until(lambda: handles(process.pid, signal.SIGTERM))  # the first step has begun, and takes many seconds
    process.send(signal.SIGINT)
    time.sleep(0.2)
    assert handles(process.pid, signal.SIGTERM)
    process.send(signal.SIGINT)
    assert process.wait() == 3
    assert process.err.splitlines()[-1] == "morphogen: interrupted; what was finished is kept"
    assert not (run / "metrics.jsonl").exists()


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigCgt"], 16) >> (number - 1) & 1)


def test_data_loading_workers_are_stopped_with_it(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    run = tmp_path / "run"
    process = forks.start(
        "train", images, *TINY, "--out", run, "--steps", 100_000, "--set", "training.devices.workers=2"
    )
    until(lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 5)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    for worker in workers:  # as Ctrl-C on a terminal, which goes to all
        worker.send_signal(signal.SIGINT)
    process.send(signal.SIGINT)
    assert process.wait() == 3, process.err
    assert "Traceback" not in process.err
    until(lambda: not any(worker.is_running() for worker in workers))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of its own")
def test_a_progress_bar_on_a_terminal(images: Path, tmp_path: Path) -> None:
    terminal, end = os.openpty()
    argv = ["-m", "morphogen", "train", str(images), *TINY, "--out", str(tmp_path / "run"), "--steps", "60"]
    env = {**environment(), "TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL, stderr=end, env=env)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    assert process.wait() == 0
    text = shown.decode()
    for part in ("training diff-nca-small", "100%", "images/s", "0:00 left", "step 60", "loss "):
        assert part in text
