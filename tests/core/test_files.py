"""Writing files at once, and reading what others wrote."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morphogen.core import files
from morphogen.core.errors import InputError


def test_replace_file_puts_new_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.replace_file(path, b"one")
    files.replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_replaced_files_can_be_read_by_all(tmp_path: Path) -> None:
    files.replace_file(tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_old_content_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    path = tmp_path / "model.safetensors"
    files.replace_file(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if at == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        files.replace_file(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        files.replace_file(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


WRITER = """
import sys
from pathlib import Path
from morphogen.core.files import replace_file
path, n = Path(sys.argv[1]), 0
while True:
    replace_file(path, bytes([n % 256]) * 100_000)
    n += 1
"""


def test_a_reader_never_sees_a_part_and_a_kill_leaves_a_whole_file(tmp_path: Path) -> None:
    """A process replaces a file again and again while it is read here, and is killed in the midst of it."""
    path = tmp_path / "state"
    files.replace_file(path, b"\0" * 100_000)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        seen = set()
        end = time.monotonic() + 20
        while len(seen) < 20 and time.monotonic() < end:
            content = path.read_bytes()
            assert len(content) == 100_000 and len(set(content)) == 1
            seen.add(content[0])
        assert len(seen) == 20, "the writer did not get on"
    finally:
        writer.kill()
        writer.wait()
    content = path.read_bytes()
    assert len(content) == 100_000 and len(set(content)) == 1


def test_read_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "ä"], "b": {"c": True}}
    (tmp_path / "a.json").write_bytes(files.json_bytes(value))
    assert files.read_json(tmp_path / "a.json") == value
    assert files.json_bytes(value).endswith(b"}\n")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": 1,}', b"\xff\xfe\x00", b"[" * 100_000, b"\x80\x02}q\x00."],
    ids=["empty", "cut", "comma", "no text", "deep", "pickle"],
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        files.read_json(path)
    assert str(caught.value) == f"{path} is not valid JSON"


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read: No such file"):
        files.read_json(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no room on the disk
    with pytest.raises(InputError, match=r"huge\.json is too large"):
        files.read_json(path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert json.loads(files.json_bytes(1)) == 1
