"""Folders and zips, kind and hostile."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.data.builtin import builtin_names
from morphogen.data.config import DataConfig
from morphogen.data.formats import BadImage
from morphogen.data.source import Source, label_records
from morphogen.data.sources import open_source


def opened(path: object) -> Source:
    return open_source(DataConfig(source=str(path)))


def png(colour: tuple[int, int, int] = (1, 2, 3), side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in (
        "b/2.PNG",
        "a/1.Png",
        "b/deep/3.png",
        ".hidden.png",
        ".git/x.png",
        "__MACOSX/a/._1.png",
        "notes.txt",
        "top.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    source = opened(tmp_path)
    assert [(r.name, r.label) for r in source.records] == [
        ("a/1.Png", "a"), ("b/2.PNG", "b"), ("b/deep/3.png", "b"), ("top.png", None),
    ]  # fmt: skip
    assert (source.read(0) == (1, 2, 3)).all()


def test_a_folder_around_everything_is_no_class() -> None:
    assert [r.label for r in label_records(["all/a/1.png", "all/b/2.png"])] == ["a", "b"]
    assert [r.label for r in label_records(["all/1.png", "all/2.png"])] == [None, None]


def test_train_val_test_folders_are_the_official_split() -> None:
    records = label_records(["train/a/1.png", "train/b/2.png", "val/a/3.png", "test/b/4.png"])
    assert [(r.part, r.label) for r in records] == [("train", "a"), ("train", "b"), ("val", "a"), ("test", "b")]
    assert all(r.part is None for r in label_records(["train/1.png", "plane/2.png"]))


def test_a_zip_and_its_folder_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}
    inside, outside = opened(zipped(tmp_path / "set.zip", files)), opened(folder)
    assert inside.records == outside.records and len(inside) == 12
    assert inside.fingerprint() == outside.fingerprint()
    np.testing.assert_array_equal(inside.read(5), outside.read(5))
    (folder / "a" / "00.png").write_bytes(png())
    assert inside.fingerprint() != opened(folder).fingerprint()


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_linked_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    (folder / "loop").symlink_to(folder)
    (folder / "a" / "up").symlink_to("..")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "x.png").write_bytes(png())
    (folder / "c").symlink_to(outside)
    assert len(opened(folder)) == 13


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipes_sparse_files_and_dead_links_are_named(folder: Path) -> None:
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "dead.png").symlink_to("nowhere")
    with (folder / "a" / "vast.png").open("wb") as file:
        file.truncate(3 * 2**30)
    source = opened(folder)
    says = {"a/pipe.png": "not an ordinary file", "a/dead.png": "No such file", "a/vast.png": "3.0 GiB; the limit is 2"}
    for i, record in enumerate(source.records):
        if record.name in says:
            with pytest.raises(BadImage, match=f"^{record.name}: .*{says[record.name]}"):
                source.read(i)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "missing does not exist; DATA should be a folder"),
        ("empty", "empty is an empty folder; it should hold JPEG"),
        ("words", "words holds 1 files but no image"),
        ("words/notes.txt", "notes.txt is not an image, a zip or a slide"),
        ("fake.zip", "fake.zip is not a zip, or it is damaged"),
        ("nothing.zip", "nothing.zip holds no image"),
        ("x\0y", "is not a path|does not exist"),
        ("n" * 5000, "is not a path|does not exist"),
    ],
)
def test_not_data(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "notes.txt").write_text("hello")
    (tmp_path / "fake.zip").write_bytes(b"PK\3\4 but no more")
    zipped(tmp_path / "nothing.zip", {"readme.txt": b"hello"})
    with pytest.raises(InputError, match=says) as caught:
        opened(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "getuid") and os.getuid() == 0), reason="root may read everything")
def test_a_locked_folder_is_named(folder: Path) -> None:
    (folder / "a").chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        opened(folder)
    (folder / "a").chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "c:x.png", "..\\x.png", "\\\\host\\x.png", "../notes.txt"],
)
def test_names_that_lead_out_of_a_zip(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "bad.zip", {"fine.png": png(), name: png()})
    with pytest.raises(InputError, match=r"bad\.zip is refused: its entry .* leads out of the archive"):
        opened(path)


def test_two_dots_in_a_name_are_no_attack(tmp_path: Path) -> None:
    assert len(opened(zipped(tmp_path / "fine.zip", {"a..b.png": png(), "..c.png": png(), "d../e.png": png()}))) == 2


@pytest.mark.parametrize("size", [2**21, 50 * 2**20])
@pytest.mark.parametrize("name", ["bomb.png", "notes.txt"])
def test_zip_bombs(tmp_path: Path, size: int, name: str) -> None:
    path = zipped(tmp_path / "bomb.zip", {"fine.png": png(), name: bytes(size)})
    with pytest.raises(
        InputError, match=rf"bomb\.zip is refused as a zip bomb: its entry '{name}' unpacks to \d+ times"
    ):
        opened(path)


def test_a_thousand_to_one_of_any_size(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {"x.bmp": bytes(400_000)}, zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="zip bomb"):
        opened(path)


def test_an_entry_larger_than_it_claims_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "liar.zip", {"a.png": png(side=200) + bytes(5000)})
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\1\2") + 24  # the uncompressed size in the central directory
    data[place : place + 4] = (50).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(BadImage, match=r"^a\.png: its entry in the zip is damaged"):
        opened(path).read(0)


def test_an_absurd_claim(tmp_path: Path) -> None:
    path = zipped(tmp_path / "liar.zip", {"a.png": bytes(2**24 + 2**20)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\1\2") + 24
    data[place : place + 4] = (3 * 2**30).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"claims 3 GiB, the limit is 2 GiB"):
        opened(path)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "locked.zip", {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"locked\.zip is encrypted"):
        opened(path)


def test_one_name_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("a.png", png((9, 9, 9)))
    with pytest.raises(InputError, match=r"two entries named 'a\.png'"):
        opened(tmp_path / "twice.zip")


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "cut.zip", {"a.png": png(), "b.png": png()}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.find(b"a.png") + 40] ^= 0xFF
    path.write_bytes(bytes(data))
    source = opened(path)
    with pytest.raises(BadImage, match=r"^a\.png: its entry in the zip is damaged: Bad CRC-32"):
        source.read(0)
    assert (source.read(1) == (1, 2, 3)).all()


WORKERS = """
import multiprocessing, pickle, sys
from morphogen.data.config import DataConfig
from morphogen.data.sources import open_source

source = open_source(DataConfig(source=sys.argv[1]))

def work(_):
    return source.fingerprint()

if __name__ == "__main__":
    prints = {source.fingerprint(), pickle.loads(pickle.dumps(source)).fingerprint()}  # here the archive is open
    for how in {"fork", "spawn"} & set(multiprocessing.get_all_start_methods()):
        with multiprocessing.get_context(how).Pool(2) as pool:
            prints |= set(pool.map(work, range(20), chunksize=1))
    print(*prints)
"""


def test_a_zip_is_read_by_forked_and_spawned_processes_at_once(folder: Path, tmp_path: Path) -> None:
    files = [p.read_bytes() for p in folder.rglob("*.png")]
    path = zipped(tmp_path / "s.zip", {f"{k}.png": files[k % 12] for k in range(300)})
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    out = subprocess.run([sys.executable, script, path], capture_output=True, text=True, timeout=60, check=False)
    assert out.stdout.split() == [opened(path).fingerprint()], out.stderr


def test_builtin_images() -> None:
    source = opened("builtin:tissue")
    assert source.read(0).shape == (512, 512, 3) and source.domain == "pathology"
    assert {"tissue", "brick", "grass", "gravel"} <= set(builtin_names())
    for name in builtin_names():
        assert opened(f"builtin:{name}").read(0).shape[2] == 3
    with pytest.raises(InputError, match="no built-in image 'tisue'; there are tissue, brick"):
        opened("builtin:tisue")
    with pytest.raises(InputError, match=r"no built-in image '../setup.py'"):
        opened("builtin:../setup.py")


def test_one_image_file(folder: Path) -> None:
    assert len(opened(folder / "a" / "00.png")) == 1
