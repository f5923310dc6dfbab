"""Progress where there is no terminal: lines, not too often, on standard error."""

from __future__ import annotations

import re

import pytest

from morphogen.core import progress
from morphogen.core.progress import Progress


class Clock:
    """A clock that goes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_one_line_an_interval(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 1000) as bar:
        for _ in range(50):  # 100 seconds
            clock.now += 2
            bar.advance(10, note="loss 0.25")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 10
    assert lines[0] == "Training: 50/1000 images, 5 images/s, 3:10 left, loss 0.25"
    assert lines[-1] == "Training: 500/1000 images, 5 images/s, 1:40 left, loss 0.25"


def test_what_was_done_before_does_not_count_into_the_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 10_000, unit="steps", done=9000) as bar:
        clock.now += 10
        bar.advance(10)
        assert bar.rate() == pytest.approx(1)
    assert capsys.readouterr().err == "Training: 9010/10000 steps, 1 steps/s, 16:30 left\n"


def test_no_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Reading", None, unit="files") as bar:
        clock.now += 10
        bar.advance(20)
        clock.now += 10
        bar.update(40, total=80)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "Reading: 20 files, 2 files/s"
    assert second == "Reading: 40/80 files, 2 files/s, 0:20 left"


def test_long_times(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 36_001) as bar:
        clock.now += 10
        bar.advance(1)
    assert re.search(r", 100:00:00 left$", capsys.readouterr().err.strip())


def test_nothing_done_yet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 10) as bar:
        clock.now += 10
        bar.advance(0)
    assert capsys.readouterr().err == "Training: 0/10 images, 0 images/s\n"


def test_quiet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 10, quiet=True) as bar:
        clock.now += 100
        bar.advance(5)
    assert capsys.readouterr() == ("", "")


def test_a_line_said_is_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 10) as bar:
        bar.say("[bold]a[/bold] 3/4")
    assert capsys.readouterr() == ("", "[bold]a[/bold] 3/4\n")


def test_an_error_is_passed_on() -> None:
    with pytest.raises(KeyError), Progress("Training", 10):
        raise KeyError
