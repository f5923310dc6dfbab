"""Runs of `morphogen` in this process, in forked ones and as the real command, and runs compared byte by byte."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent

# Options of `train` that make a step take milliseconds.
TINY = (
    *("--size", "16", "--batch-size", "4"),
    *("--set", "architecture.channels=8", "--set", "architecture.hidden=16", "--set", "architecture.nca_steps=2"),
    *("--set", "training.saving.sample_images=0"),
)


def pixels(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth random picture, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def draw_images(folder: Path, count: int = 12, size: int = 20, first: int = 0) -> Path:
    """Put `count` different square PNGs, 00.png, 01.png, ..., into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(first, first + count):
        Image.fromarray(pixels(size, size, k)).save(folder / f"{k:02d}.png")
    return folder


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (negative: a signal) and what it printed."""

    code: int
    out: str
    err: str


def snapshot(*folders: Path) -> dict[str, Any]:
    """Everything in folders: names, contents and times."""
    found: dict[str, Any] = {}
    for folder in folders:
        found[str(folder)] = folder.exists()
        for path in sorted(folder.rglob("*")):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            found[str(path)] = (content, path.stat().st_mtime_ns if path.is_file() else None)
    return found


@dataclass
class Process:
    """A running `morphogen`."""

    pid: int
    collect: Callable[[], int]
    """Waits for its end: the exit code, negative for a signal."""
    out_file: Path
    err_file: Path
    code: int | None = None

    @property
    def out(self) -> str:
        return self.out_file.read_text()

    @property
    def err(self) -> str:
        return self.err_file.read_text()

    def wait(self) -> int:
        """Wait for its end: the exit code, negative for a signal."""
        self.code = self.collect()
        return self.code

    def send(self, what: int) -> None:
        os.kill(self.pid, what)

    def kill(self) -> int:
        """SIGKILL, unless it has ended by itself; how it ended."""
        self.send(signal.SIGKILL)
        return self.wait()


def until(condition: Callable[[], Any], seconds: float = 180, pause: float = 0.002) -> Any:
    """Wait until a condition holds; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
    return value


def environment() -> dict[str, str]:
    """The environment of real processes: one thread, no network, and warnings as errors."""
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error"}
    return {**os.environ, **quiet}


@dataclass
class ForkServer:
    """See fork_server.py."""

    folder: Path
    server: subprocess.Popen[str]
    started: int = 0

    def start(self, *argv: object, file_limit: int | None = None, env: dict[str, str] | None = None) -> Process:
        """Start `morphogen` with these arguments."""
        self.started += 1
        out, err_file = self.folder / f"{self.started}.out", self.folder / f"{self.started}.err"
        order = {
            "argv": [str(a) for a in argv],
            "out": str(out),
            "err": str(err_file),
            "file_limit": file_limit,
            "env": env or {},
        }
        pid = int(self._ask(order))
        err_file.touch()
        return Process(pid, lambda: int(self._ask({"wait": pid})), out, err_file)

    def run(self, *argv: object) -> Outcome:
        """Run `morphogen` to its end."""
        process = self.start(*argv)
        return Outcome(process.wait(), process.out, process.err)

    def _ask(self, order: dict[str, Any]) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, "the fork server has died"
        return answer


@dataclass
class RealCommand:
    """`python -m morphogen` as a user starts it."""

    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *argv: object, launcher: Sequence[str] = ("-m", "morphogen")) -> Process:
        number = len(self.started)
        out, err = self.folder / f"{number}.real-out", self.folder / f"{number}.real-err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            command = [sys.executable, *launcher, *map(str, argv)]
            process = subprocess.Popen(command, stdout=out_file, stderr=err_file, env=environment())
        self.started.append(process)
        return Process(process.pid, lambda: process.wait(120), out, err)

    def run(self, *argv: object, launcher: Sequence[str] = ("-m", "morphogen")) -> Outcome:
        process = self.start(*argv, launcher=launcher)
        return Outcome(process.wait(), process.out, process.err)


def contents(run: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on interruptions: newest checkpoint, model and log, as bytes."""
    newest = max((run / "checkpoints").glob("step-????????"))
    found: dict[str, Any] = {"checkpoint": newest.name}
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        found[f"checkpoint's {name}"] = (newest / name).read_bytes()
    facts = json.loads((newest / "facts.json").read_text())
    found["facts"] = {k: v for k, v in facts.items() if k != "elapsed_s"}
    for name in ("model.safetensors", "config.json", "metrics.jsonl"):
        found[name] = (run / name).read_bytes()
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Fail, naming what differs, unless two runs ended in the same bits."""
    first, second = contents(one), contents(other)
    differing = [name for name in first if first[name] != second[name]]
    assert not differing, f"{one.name} and {other.name} differ in {', '.join(differing)}"
