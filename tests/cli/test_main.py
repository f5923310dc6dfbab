"""The command as a whole: help, version, wrong use, and what errors become."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import Outcome, RealCommand, environment, until

import morphogen.cli
from morphogen._version import VERSION

HEAVY = (
    "fastapi",
    "uvicorn",
    "torch",
    "diffusers",
    "accelerate",
    "numpy",
    "huggingface_hub",
    "skimage",
    "safetensors",
    "yaml",
)


def test_help_is_quick() -> None:
    """Under half a second on a machine that has nothing else to do."""
    resource = pytest.importorskip("resource", reason="processor time of children is known on POSIX systems only")
    command = [sys.executable, "-m", "morphogen", "--help"]
    idle = [sys.executable, "-c", "import typing, inspect, dataclasses, re, json"]

    def quickest(arguments: list[str]) -> float:
        taken = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(arguments, check=True, capture_output=True, env=environment())
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        return min(taken)

    # Processor time, which a busy machine changes little: PyTorch alone takes longer than 0.5 s beyond Python itself.
    assert quickest(command) - quickest(idle) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["--version"],
        ["train", "--help"],
        ["sample", "-h"],
        ["inpaint", "-h"],
        ["data", "check", "--help"],
    ],
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; sys.argv = ['morphogen', *sys.argv[1:]]\n"
        "from morphogen.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment(), check=True
    )
    assert ended.stdout.splitlines()[-1] == "HEAVY []"
    assert ended.stderr == ""


def test_version(cli: Callable[..., Outcome]) -> None:
    assert cli("--version") == Outcome(0, f"morphogen {VERSION}\n", "")


def test_help_says_the_defaults_that_are_found_later(cli: Callable[..., Outcome]) -> None:
    """They are no values of the options, and brackets in a text would be taken for markup and left out."""
    for words, says in (
        (["train"], ["diff-nca-small", "10000; 200000 with --recipe paper"]),
        (["serve"], ["12 of dpm++, 20 of others"]),
        (["data", "split"], ["else image"]),
    ):
        shown = " ".join(cli(*words, "--help").out.replace("│", " ").split())
        assert all(f"{word})]" in shown for word in says), shown
    texts = [p.read_text(encoding="utf-8") for p in Path(morphogen.cli.__path__[0]).glob("*.py")]
    assert not any("[default" in text for text in texts), "give show_default"


def test_help_names_the_commands(cli: Callable[..., Outcome]) -> None:
    shown = cli("--help")
    assert shown.code == 0
    for name in ("train", "sample", "inpaint", "upscale", "vary", "models", "info", "data"):
        assert name in shown.out
    for command in (
        "train",
        "sample",
        "inpaint",
        "upscale",
        "vary",
        "serve",
        "models",
        "info",
        "data",
        ("data", "check"),
        ("data", "split"),
    ):
        words = (command,) if isinstance(command, str) else command
        assert cli(*words, "--help").code == 0


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_without_a_command_it_shows_help(cli: Callable[..., Outcome], arguments: tuple[str, ...]) -> None:
    shown = cli(*arguments)
    assert shown.code == 2
    assert "Usage" in shown.out + shown.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("grow",), "no such command 'grow'"),
        (("--frobnicate",), "--frobnicate"),
        (("train",), "missing option '--out'"),
        (("train", "--out", "run"), "missing argument 'data'"),
        (("train", "faces"), "missing option '--out'"),
        (("train", "faces", "--out"), "--out"),
        (("train", "faces", "--out", "r", "--stepz", "3"), "--stepz"),
        (("train", "faces", "--out", "r", "--steps", "many"), "'--steps'"),
        (("train", "faces", "--out", "r", "--seed", "1.5"), "'--seed'"),
        (("train", "faces", "others", "--out", "r"), "others"),
        (("sample",), "missing argument"),
        (("sample", "tissue", "-n", "0"), "'-n'"),
        (("sample", "tissue", "-n", "some"), "'-n'"),
        (("sample", "tissue", "--seed", "-1"), "'--seed'"),
        (("sample", "tissue", "--batch-size", "0"), "'--batch-size'"),
        (("sample", "tissue", "--sampling-steps", "0"), "'--sampling-steps'"),
        (("serve",), "missing argument"),
        (("serve", "tissue", "--port", "70000"), "'--port'"),
        (("serve", "tissue", "--deadline", "nan"), "--deadline nan"),
        (("info",), "missing argument"),
        (("models", "extra"), "extra"),
        (("data", "split", "faces"), "missing option '--out'"),
    ],
)
def test_wrong_use_is_one_sentence(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(*arguments, says=[says], keeps=[tmp_path])


def test_a_bug_shows_where_it_is(cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("this is a bug")

    monkeypatch.setattr("morphogen.models.load_model", broken)
    with pytest.raises(RuntimeError, match="this is a bug"):
        cli("info", run)


def test_no_memory_is_no_bug(refused: Callable[..., str], run: Path, tmp_path: Path) -> None:
    # 2,560,000,000,000 cells of 8 channels: 80 TB.
    refused("sample", run, "-n", 1, "--size", "800000x800000", "--out", tmp_path / "s", says=["--size"])


def test_ctrl_c_while_it_starts_or_samples(command: RealCommand, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    process = command.start("sample", run, "-n", 100_000, "--batch-size", 1, "--out", out)
    until(lambda: out.exists() and any(out.glob("*.png")))
    process.send(signal.SIGINT)
    assert process.wait() == 3
    assert process.err.splitlines()[-1] == "morphogen: interrupted; what was finished is kept"
    assert "Traceback" not in process.err
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_a_signal_while_a_library_has_a_file_open_is_one_line() -> None:
    """Where warnings are errors, Python says of each file that it closes by itself that nobody closed it."""
    program = (
        "import os, signal, sys\n"
        "from morphogen.cli import main\n"
        "def read():\n"
        "    left_open = open(sys.executable, 'rb')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "def run():\n"
        "    try:\n"
        "        read()\n"
        "    except BaseException:\n"
        "        pass\n"
        "    raise ImportError\n"
        "main._run = run\n"
        "main.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert (ended.returncode, ended.stderr) == (3, "morphogen: interrupted; what was finished is kept\n")


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
@pytest.mark.parametrize(
    "words", [["models", "--json"], ["--version"]]
)  # more than the output's buffer takes, and less
def test_a_reader_that_goes_away_is_no_bug(words: list[str]) -> None:
    program = [sys.executable, "-m", "morphogen", *words]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode in (0, 1)
