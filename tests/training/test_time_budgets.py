"""Budgets of time: what they are spent on, and where they end."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

import morphogen
from morphogen.automata.diff_nca import DiffNCA
from morphogen.core.keys import Key
from morphogen.training.clock import Clock
from morphogen.training.config import TrainingConfig

SMALL: dict[str, Any] = {"size": 16, "batch_size": 4, "architecture": {"channels": 8, "hidden": 16, "nca_steps": 2}}


def test_samples_that_would_take_the_whole_time_are_left_out(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample of a slow model may take longer than all of a short training, which learns instead."""
    seen: list[int] = []
    generate = DiffNCA.generate

    def slow(self: DiffNCA, key: Key, *arguments: Any, **settings: Any) -> Tensor:
        seen.append(len(key.seeds))
        time.sleep(0.2 * len(key.seeds) * (settings["request"].steps or 100))
        return generate(self, key, *arguments, **settings)

    monkeypatch.setattr(DiffNCA, "generate", slow)
    result = morphogen.train(images, model="diff-nca-small", minutes=0.1, out=tmp_path / "run", **SMALL)
    assert seen == [1, 1], "a sample is measured, of a step, once it is built"
    assert result.step > 0
    assert "note: no grids of samples, each of which takes about" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "samples").iterdir())


class FakeDevices:
    """One process."""

    from_main = staticmethod(float)
    any = staticmethod(bool)


def test_a_step_that_would_end_after_the_time_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("morphogen.training.clock.time.monotonic", lambda: now)
    state = SimpleNamespace(elapsed_s=0.0, step=0, spent_minutes=None)
    clock = Clock(TrainingConfig(minutes=1), state, FakeDevices())  # type: ignore[arg-type]
    clock.reserve(20.0)
    for step, taken in enumerate([15.0, 10.0], 1):
        assert not clock.is_over(False)
        clock.begin_step()
        now, state.step = now + taken, step
        clock.tick()
    assert state.elapsed_s == 25.0
    assert not clock.is_over(False), "25 s of 40, and a step takes 12.5"
    clock.begin_step()
    now, state.step = now + 8.0, 3
    clock.tick()
    assert clock.is_over(False), "33 s of 40, and a step takes 10"
    assert clock.spent == 1.0


def test_however_short_the_time_there_is_a_step(images: Path, tmp_path: Path) -> None:
    result = morphogen.train(images, model="diff-nca-small", minutes=1e-4, out=tmp_path / "run", **SMALL)
    assert result.step == 1
    (loss,) = result.metrics()["loss"]
    assert loss is not None and math.isfinite(loss)
