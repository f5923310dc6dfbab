"""What the tests of training and of the command line share; the functions are in run_helpers.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType

import pytest

sys.path.append(str(Path(__file__).parent))  # so that tests can import run_helpers

from run_helpers import HERE, ForkServer, Outcome, RealCommand, draw_images, environment, snapshot

# A suite that was started in the background ignores Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What starts real processes: these fixtures, and these modules where a test or a helper beside it names them.
REAL_PROCESSES = {"command", "forks"}, {"subprocess", "multiprocessing"}


def names(function: Callable[..., object]) -> set[str]:
    """The names that a function uses, with those of functions inside it and of the helpers that it calls."""
    waiting: list[CodeType] = [function.__code__]
    found: set[str] = set()
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        helpers = (function.__globals__.get(name) for name in set(code.co_names) - found)
        waiting += [h.__code__ for h in helpers if isinstance(h, FunctionType) and h.__module__ == function.__module__]
        found |= set(code.co_names)
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `e2e` every test that starts real processes, so that nobody has to remember to."""
    fixtures, modules = REAL_PROCESSES
    for item in items:
        assert isinstance(item, pytest.Function)
        if fixtures & set(item.fixturenames) or modules & names(item.function):
            item.add_marker("e2e")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve different images of 20x20 in a folder: 10 to train on, 1 to validate on, 1 for testing. Read only."""
    return draw_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """PyTorch with one thread, which tiny models run faster with, above all on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """cli("train", DATA, ...): run `morphogen` in this process. A bug's exception comes through."""

    def run(*argv: object) -> Outcome:
        from morphogen.cli.main import main

        monkeypatch.setattr(sys, "argv", ["morphogen", *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Outcome(int(end.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def refused(cli: Callable[..., Outcome]) -> Callable[..., str]:
    """refused(*argv, says=[...], keeps=[folders]): assert that the command refuses as it should.

    That is: exit code 2, nothing on standard output, one line on standard error that begins with `morphogen: ` and
    holds the words `says`, and the folders `keeps` as they were. Returns the line.
    """

    def check(*argv: object, says: Sequence[str] = (), keeps: Sequence[Path] = ()) -> str:
        before = snapshot(*keeps)
        outcome = cli(*argv)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("morphogen: ")
        for word in says:
            assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
        assert snapshot(*keeps) == before
        return lines[0]

    return check


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """forks.start(...) and forks.run(...): `morphogen` in processes of its own that start at once."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    command = [sys.executable, str(HERE / "fork_server.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as server:
        yield ForkServer(tmp_path_factory.mktemp("forks"), server)
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCommand]:
    """command.start(...) and command.run(...): the real command; what still runs at the end is killed."""
    real = RealCommand(tmp_path_factory.mktemp("commands"))
    yield real
    for process in real.started:
        if process.poll() is None:
            process.kill()
            process.wait()
