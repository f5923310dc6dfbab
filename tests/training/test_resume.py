"""An interrupted training ends in the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_helpers import TINY, ForkServer, Process, RealCommand, assert_same_run, contents, draw_images, until

from morphogen.core.errors import InputError
from morphogen.training.checkpoint import find_corruption, list_checkpoints
from morphogen.training.config import RunConfig
from morphogen.training.loop import Result, train

KILLS = 20
INSIDE_A_SAVE = 5


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["diff-nca-small", "fourier-diff-nca-small"])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_n_and_m_steps_equal_n_plus_m(trained: Callable[..., Result], tmp_path: Path, model: str, recipe: str) -> None:
    source = draw_images(tmp_path / "images", 5, 40)
    rest = {"model": model, "source": source}
    trained("whole", f"recipe={recipe}", steps=7, **rest)
    trained("parts", f"recipe={recipe}", steps=3, **rest)
    trained("parts", f"recipe={recipe}", steps=7, **rest)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.sets(st.integers(1, 11), max_size=4), every=st.integers(1, 5))
def test_any_stops_and_any_checkpoint_interval(
    config: Callable[..., RunConfig], tmp_path: Path, stops: set[int], every: int
) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        train(config("training.saving.validate_every=4", steps=12), whole, quiet=True)
    parts = Path(tempfile.mkdtemp(dir=tmp_path))
    for steps in [*sorted(stops), 12]:
        train(config("training.saving.validate_every=4", steps=steps, checkpoint_every=every), parts, quiet=True)
    assert_same_run(whole, parts)


def test_one_line_a_step_and_validation_on_time(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("run", "training.saving.validate_every=3", steps=4)
    trained("run", "training.saving.validate_every=3", steps=8)
    found = records(tmp_path / "run")
    assert [r["step"] for r in found] == list(range(1, 9))
    assert [r["images"] for r in found] == [4 * n for n in range(1, 9)]
    assert [r["step"] for r in found if "held_out_noise_error" in r] == [3, 6]
    keys = {"step", "images", "loss", "gradient_norm", "learning_rate"}
    assert all(set(r) - {"held_out_noise_error"} == keys for r in found)


def test_what_may_change_changes_no_bit(trained: Callable[..., Result], tmp_path: Path) -> None:
    trained("plain", steps=6)
    trained("other", "training.devices.recompute=always", "training.devices.workers=1", "data.cache_mb=0", steps=2)
    trained("other", "training.devices.recompute=never", "training.saving.keep_checkpoints=1", steps=6, sample_every=4)
    assert_same_run(tmp_path / "plain", tmp_path / "other")


def test_moved_data_resumes(trained: Callable[..., Result], images: Path, tmp_path: Path) -> None:
    trained("plain", steps=6)
    trained("moved", steps=3)
    (moved := tmp_path / "elsewhere").symlink_to(images)
    trained("moved", source=moved, steps=6)
    assert_same_run(tmp_path / "plain", tmp_path / "moved")


def test_changed_data_is_refused(trained: Callable[..., Result], tmp_path: Path) -> None:
    source = draw_images(tmp_path / "images", 4)
    trained("run", source=source, steps=2)
    before = contents(tmp_path / "run")
    draw_images(source, 1, first=3, size=24)  # another content under the same name
    (source / "03.png").rename(source / "03.png")
    with pytest.raises(InputError, match="are not those that"):
        trained("run", source=source, steps=4)
    assert contents(tmp_path / "run") == before


def test_a_finished_run_stays_as_it_is(trained: Callable[..., Result], tmp_path: Path) -> None:
    first = trained("run", steps=3)
    before = contents(tmp_path / "run")
    again = trained("run", steps=3)
    fewer = trained("run", steps=2)
    assert (again.step, again.loss, again.images) == (first.step, first.loss, first.images) == (3, fewer.loss, 12)
    assert contents(tmp_path / "run") == before


def test_a_start_killed_before_it_wrote_its_settings_is_no_obstacle(
    trained: Callable[..., Result], tmp_path: Path
) -> None:
    (run := tmp_path / "run").mkdir()
    (run / ".lock").touch()
    (run / ".run.json-k3j2h1").write_text("{")  # what replacing run.json leaves when it is killed
    assert trained("run", steps=2).step == 2
    assert not list(run.glob(".run.json-*"))


# --- real processes, killed ---


def staging(run: Path, pid: int | None = None) -> bool:
    """Whether a checkpoint is being written, by this process where one is given."""
    try:
        with os.scandir(run / "checkpoints") as entries:
            return any(entry.name.startswith(f".staging-{pid or ''}") for entry in entries)
    except FileNotFoundError:
        return False


def kill_at_random(process: Process, chance: random.Random) -> bool:
    """Kill a training some time after its start; whether it was still running."""
    time.sleep(chance.uniform(0.0, 0.7))
    return process.kill() == -9


def kill_inside_a_save(process: Process, run: Path, chance: random.Random) -> bool:
    """Kill a training while it writes its first, second or third checkpoint; whether it was still running."""

    def ended() -> bool:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    for _ in range(chance.randint(1, 3)):
        until(lambda: not staging(run, process.pid) or ended(), pause=0)
        until(lambda: staging(run, process.pid) or ended(), pause=0)
    time.sleep(chance.choice([0, 0, 0.001, 0.003, 0.01]))
    return process.kill() == -9


def newest_undamaged(run: Path) -> int:
    """The step of the newest good checkpoint, 0 where there is none."""
    folders = list_checkpoints(run / "checkpoints") if run.exists() else []
    return next((int(p.name.removeprefix("step-")) for p in folders if find_corruption(p) is None), 0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds out about processes through /proc")
def test_killed_at_any_moment(forks: ForkServer, images: Path, tmp_path: Path) -> None:
    """At least 20 kills, at random moments and inside saves, of a run that keeps a single checkpoint."""
    options = (
        *("train", images, *TINY, "--steps", 24, "--set", "training.saving.checkpoint_every=1"),
        *("--set", "training.saving.keep_checkpoints=1", "--set", "training.saving.validate_every=10"),
    )
    assert forks.run(*options, "--out", tmp_path / "whole").code == 0
    chance = random.Random(20)
    kills = saves = rounds = 0
    while kills < KILLS or saves < INSIDE_A_SAVE:
        run = tmp_path / f"killed-{rounds}"
        rounds += 1
        reached = 0
        killed = True
        while killed:
            process = forks.start(*options, "--out", run)
            killed = (
                kill_inside_a_save(process, run, chance) if chance.random() < 0.5 else kill_at_random(process, chance)
            )
            kills += killed
            saves += killed and staging(run)
            assert killed or process.code in (0, None), process.err
            good = newest_undamaged(run)
            assert good >= reached, "the last good checkpoint was lost"
            reached = good
        assert "damaged" not in process.err
        assert_same_run(tmp_path / "whole", run)
        visible = {p.name for p in run.iterdir()} - {".lock"}
        assert not [name for name in visible if name.startswith(".")], "half-written files were left"
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000024"]
    print(f"{kills} kills, {saves} of them inside a save, in {rounds} runs")


def test_the_real_command_killed(command: RealCommand, forks: ForkServer, images: Path, tmp_path: Path) -> None:
    options = ("train", images, *TINY, "--steps", 40, "--set", "training.saving.checkpoint_every=2")
    assert forks.run(*options, "--out", tmp_path / "whole").code == 0
    run = tmp_path / "killed"
    process = command.start(*options, "--out", run)
    until(lambda: staging(run), pause=0)
    assert process.kill() == -9
    process = command.start(*options, "--out", run)
    step = newest_undamaged(run)
    until(lambda: newest_undamaged(run) > step + 4)
    assert process.kill() == -9
    assert newest_undamaged(run) < 40
    last = forks.run(*options, "--out", run)
    assert last.code == 0
    assert "resuming" in last.err
    assert_same_run(tmp_path / "whole", run)
