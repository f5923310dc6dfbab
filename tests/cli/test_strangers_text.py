"""Strangers' text in file names, settings, tensors, tables: it reaches the terminal as one line without controls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from run_helpers import TINY, Outcome, draw_images, environment
from safetensors.torch import load_file, save_file

EVIL = "a\x1b[31m\x1b]0;owned\x07\nmorphogen: all is well\u202e\x9b31m"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")


def check_harmless(ended: Outcome, *, code: int, lines: int | None = None) -> None:
    """The text was printed, as lines of ours alone."""
    assert ended.code == code, ended
    printed = ended.out + ended.err
    assert printed.replace("\n", "").isprintable(), repr(printed)
    assert "\nmorphogen: all is well" not in printed
    assert "\\x1b" in printed or "\\u001b" in printed, printed
    if lines is not None:
        assert len(printed.splitlines()) == lines


@pytest.fixture
def evil_images(tmp_path: Path) -> Path:
    """Images, two of them broken ones of an evil name, in a folder of an evil class."""
    folder = draw_images(tmp_path / "data" / "good")
    below = tmp_path / "data" / EVIL.replace("/", "")
    draw_images(below, 2, first=20)
    (below / f"{EVIL}.png").write_bytes(b"no image")
    (folder / f"{EVIL}.png").write_bytes(b"no image")
    return tmp_path / "data"


def test_file_names_and_classes(cli: Callable[..., Outcome], evil_images: Path, tmp_path: Path) -> None:
    check_harmless(cli("data", "check", evil_images, "--size", 8), code=2)
    check_harmless(cli("data", "check", evil_images, "--size", 8, "--json"), code=2)
    check_harmless(cli("train", evil_images, "--out", tmp_path / "run", *TINY, "--steps", 1), code=0)
    check_harmless(cli("train", evil_images, "--out", tmp_path / f"run{EVIL}", *TINY, "--steps", 1), code=0)
    check_harmless(cli("train", evil_images / EVIL, "--out", tmp_path / "b", *TINY, "--max-bad", 0), code=2, lines=1)


def test_names_of_arguments(cli: Callable[..., Outcome], run: Path, images: Path) -> None:
    check_harmless(cli("sample", EVIL), code=2, lines=1)
    check_harmless(cli("sample", run, "--sampler", EVIL), code=2, lines=1)
    check_harmless(cli("sample", run, f"--{EVIL}", 1), code=2, lines=1)
    check_harmless(cli("train", images, "--out", "never", "--set", f"training.{EVIL}=1"), code=2, lines=1)


@pytest.mark.parametrize("place", ["family", "setting", "value"])
def test_a_downloaded_models_settings(cli: Callable[..., Outcome], run: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(run, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    if place == "family":
        config["family"] = EVIL
    elif place == "setting":
        config["architecture"][EVIL] = 1
    else:
        config["architecture"]["norm"] = EVIL
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for command in ("sample", "info"):
        check_harmless(cli(command, tmp_path / "model"), code=2, lines=1)


def test_a_downloaded_models_tensors(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "model")
    weights = load_file(run / "model.safetensors")
    save_file({**weights, EVIL: weights[next(iter(weights))].clone()}, tmp_path / "model" / "model.safetensors")
    check_harmless(cli("sample", tmp_path / "model"), code=2, lines=1)


def test_headers_of_a_table(cli: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    quoted = '"' + EVIL.replace('"', "") + '"'
    rows = [f"{path.name},1,{k % 2}" for k, path in enumerate(sorted(images.iterdir()))]
    table.write_text("\n".join([f"file,{quoted},other", *rows[:-1], rows[-1].replace(",1,", ",x,")]))
    check_harmless(cli("data", "check", images, "--labels", table), code=2, lines=1)
    table.write_text("\n".join([f"file,{quoted},other", *rows]))
    check_harmless(cli("data", "check", images, "--labels", table, "--size", 8), code=0)


def test_a_console_that_cannot_hold_a_name(run: Path, tmp_path: Path) -> None:
    """A redirected console of code page 1252, and a file name in Latin-1 bytes."""
    given = tmp_path / "given"
    given.mkdir()
    for name in ("猫.png".encode(), b"gr\xfcn.png"):
        try:
            with Path(os.fsdecode(os.fsencode(given) + b"/" + name)).open("wb") as file:
                Image.new("RGB", (16, 16), "teal").save(file, "PNG")
        except OSError:
            pytest.skip("this file system holds no such names")
    command = [sys.executable, "-m", "morphogen"]
    where = {**environment(), "PYTHONIOENCODING": "cp1252"}
    vary = [*command, "vary", run, given, "--out", tmp_path / "猫", "--sampling-steps", "2"]
    ended = subprocess.run(vary, env=where, capture_output=True, text=True, encoding="cp1252", check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("\\u732b\n")
    check = [*command, "data", "check", given, "--size", "8"]
    ended = subprocess.run(check, env=where, capture_output=True, text=True, encoding="cp1252", check=False)
    assert ended.returncode == 2, ended.stderr
    assert "\\u732b.png" in ended.stdout
    assert "gr\\xfcn.png" in ended.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(run: Path, tmp_path: Path, closed: str) -> None:
    command = f'"{sys.executable}" -m morphogen sample "{run}" -n 1 --sampling-steps 2 --out "{tmp_path / "out"}"'
    ended = subprocess.run(["sh", "-c", f"{command} {closed}"], env=environment(), capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    with Image.open(tmp_path / "out" / "0.png") as image:
        image.load()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("words", [("models",), ("sample", "RUN", "-n", "1", "--sampling-steps", "2")])
def test_streams_into_a_full_disk(run: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """What could not be printed is said, and nothing else goes wrong; notes that cannot be printed are lost."""
    out = ("--out", tmp_path / "out") if "sample" in words else ()
    command = [sys.executable, "-m", "morphogen", *(run if word == "RUN" else word for word in words), *out]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.stderr == "morphogen: standard output cannot be written: No space left on device\n"
        assert ended.returncode == 2
        assert (
            subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=full, check=False).returncode == 0
        )


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system holds names in UTF-8 only")
def test_names_that_are_not_utf_8(cli: Callable[..., Outcome], run: Path, images: Path, tmp_path: Path) -> None:
    """Folders of models and results may be called so; one of images is refused for what it is."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    model, photo = shutil.copytree(run, odd / "model"), odd / os.fsdecode(b"\xe9.png")
    Image.new("RGB", (24, 24)).save(photo)
    few = ("--sampling-steps", 2)
    for words in (
        ("sample", model, "-n", 1, *few, "--out", odd / "samples"),
        ("vary", model, photo, *few, "--out", odd / "varied"),
        ("info", model),
        ("train", images, *TINY, "--steps", 1, "--out", odd / "run"),
        ("sample", odd / "run", "-n", 1, *few, "--out", odd / "more"),
        *(("slide", model, "--size", 24, *few, "--out", f"{photo}{end}") for end in (".ome.tif", ".ome.zarr", ".dzi")),
    ):
        for again in range(2):
            ended = cli(*words)
            assert ended.code == 0, (words, again, ended.err)
    refused = cli("train", shutil.copytree(images, odd / "images"), *TINY, "--steps", 1, "--out", tmp_path / "never")
    assert refused.code == 2
    assert "its name is not in UTF-8; rename it, or give a link to it" in refused.err
    (tmp_path / "link").symlink_to(odd / "images")
    assert cli("train", tmp_path / "link", *TINY, "--steps", 1, "--out", tmp_path / "linked").code == 0
