"""The learning rate falls to zero at the end of a budget, and a longer run is as if it never had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import assert_same_run, contents

from morphogen.core.errors import InputError
from morphogen.training.checkpoint import list_checkpoints, step_of
from morphogen.training.config import ScheduleConfig, TrainingConfig
from morphogen.training.loop import Result
from morphogen.training.schedule import Cooldown

FALLING = ("training.schedule.cooldown=0.3", "recipe=paper")


def rates(run: Path) -> list[float]:
    return [json.loads(line)["learning_rate"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_share_of_the_rate() -> None:
    fall = Cooldown(TrainingConfig(steps=10, schedule=ScheduleConfig(cooldown=0.4)))
    assert fall.start == 6
    assert [fall.factor(step, 0) for step in range(10)] == [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    timed = Cooldown(TrainingConfig(minutes=10, schedule=ScheduleConfig(cooldown=0.4)))
    timed.begin(70, 0.59)
    assert timed.start is None
    timed.begin(71, 0.6)
    timed.begin(72, 0.7)
    assert timed.start == 71
    assert [timed.factor(71, s) for s in (0.6, 0.8, 1.0, 1.1)] == pytest.approx([1, 0.5, 0, 0])
    none = Cooldown(TrainingConfig(steps=10))
    assert none.start is None
    assert none.factor(9, 0) == 1


def test_an_extended_run_equals_the_longer_one_to_the_bit(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("whole", *FALLING, steps=20)
    trained("parts", *FALLING, steps=10, keep_checkpoints=1)
    fallen = rates(tmp_path / "parts")
    assert fallen[:8] == rates(tmp_path / "whole")[:8]
    assert fallen[9] < fallen[8] < fallen[7]
    assert sorted(map(step_of, list_checkpoints(tmp_path / "parts" / "checkpoints"))) == [7, 10]
    trained("parts", *FALLING, steps=15, keep_checkpoints=1)
    trained("parts", *FALLING, steps=20, keep_checkpoints=1)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert sorted(map(step_of, list_checkpoints(tmp_path / "parts" / "checkpoints"))) == [14, 20]


def test_interrupted_in_the_fall(
    trained: Callable[..., Result], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed after the last checkpoint of the fall: it goes on in the fall, not before it."""
    trained("whole", *FALLING, steps=20, checkpoint_every=3)
    trained("killed", *FALLING, steps=20, checkpoint_every=3, keep_checkpoints=9)
    run = tmp_path / "killed"
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    trained("killed", *FALLING, steps=20, checkpoint_every=3)
    assert_same_run(tmp_path / "whole", run)


def test_a_finished_run_can_fall_later(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("whole", "training.schedule.cooldown=0.5", steps=12)
    trained("later", steps=6)
    trained("later", "training.schedule.cooldown=0.5", steps=12)
    assert_same_run(tmp_path / "whole", tmp_path / "later")


def test_given_again_it_stays_and_shortened_it_is_refused(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("run", *FALLING, steps=10)
    before = contents(tmp_path / "run")
    assert trained("run", *FALLING, steps=10).step == 10
    assert contents(tmp_path / "run") == before
    with pytest.raises(InputError, match=r"no checkpoint up to step 6, .* of 8 steps falls .* give more --steps"):
        trained("run", *FALLING, steps=8)
    assert contents(tmp_path / "run") == before


def test_by_time(trained: Callable[..., Result], tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained("run", "training.schedule.cooldown=0.5", "recipe=paper", minutes=0.02)
    found = rates(run)
    start = min(map(step_of, list_checkpoints(run / "checkpoints")))
    assert 0 < start < len(found)
    assert found[:start] == pytest.approx([1.6e-3 * 0.9999**n for n in range(start)], rel=1e-12)
    assert all(a > b for a, b in zip(found[start:], found[start + 1 :], strict=False))
    # The last step began when less than a fifth of the fall was left: a step takes milliseconds of its 600 ms.
    assert found[-1] < 0.2 * found[0]
    trained("longer", "recipe=paper", steps=start + 3)
    trained("run", "recipe=paper", steps=start + 3)
    assert rates(run) == rates(tmp_path / "longer")
    one, other = contents(run), contents(tmp_path / "longer")
    assert one["checkpoint's model.safetensors"] == other["checkpoint's model.safetensors"]
