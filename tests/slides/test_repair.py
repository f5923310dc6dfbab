"""What a power cut or a bad disk has changed in a work is computed again, or the folder to delete is named."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from run_helpers import Outcome
from slide_helpers import pixels, save_tiny, untiled

from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.pyramids import formats
from morphogen.slides import progress, repair
from morphogen.slides import render as render_module
from morphogen.slides.executors import InProcessExecutor
from morphogen.slides.progress import TileProgress
from morphogen.slides.render import render
from morphogen.slides.request import SlideRequest
from morphogen.slides.schedule import work_folder
from morphogen.slides.tile_worker import SteppedTile

SIZE, STEPS, TILE = (70, 50), 4, 16  # 20 tiles


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


class Stopping(InProcessExecutor):
    """Is killed at a tile of an evaluation, others of which have been done."""

    def run(self, i: int, tiles: Sequence[int]) -> Iterator[tuple[int, SteppedTile]]:
        for number, done in enumerate(super().run(i, tiles)):
            if i == 2 and number == 9:
                raise Killed
            yield done


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("repair") / "tiny")


def request(tiny: Path, folder: Path) -> SlideRequest:
    return SlideRequest(str(tiny), SIZE, folder / "a.ome.zarr", 3, SamplingRequest("dpm++", STEPS), TILE)


@pytest.fixture(scope="module")
def begun(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Works that were killed: in the middle of the third evaluation, and when the file was to be written."""
    folders = {}
    for name in ("middle", "painted"):
        folders[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            if name == "middle":
                patch.setattr(SlideRequest, "executor", lambda self, folder: Stopping(folder))
            else:
                patch.setattr(formats, "write", lambda *_: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                render(request(tiny, folders[name]))
    return folders


def chunks(work: Path, array: str) -> list[Path]:
    return sorted(p for p in (work / array / "c").rglob("*") if p.is_file())


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(path: Path, at: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def change_metadata(work: Path, words: tuple[str, str]) -> None:
    """With other metadata an array's chunks are read as other values."""
    path = work / "canvas-1.zarr" / "zarr.json"
    changed = path.read_text().replace(*words)
    assert changed != path.read_text()
    path.write_text(changed)


def make_folder(path: Path) -> None:
    """A folder with a file in place of a file."""
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a chunk that is read": ("middle", lambda work: flip(chunks(work, "canvas-1.zarr")[7])),
    "a chunk that was written": ("middle", lambda work: flip(chunks(work, "canvas-0.zarr")[2])),
    "both of one tile": (
        "middle",
        lambda work: [flip(chunks(work, f"canvas-{n}.zarr")[3]) for n in (0, 1)],
    ),
    "a missing chunk": ("middle", lambda work: chunks(work, "canvas-1.zarr")[11].unlink()),
    "a short chunk": ("middle", lambda work: chunks(work, "canvas-1.zarr")[19].write_bytes(b"short")),
    "an empty chunk": ("middle", lambda work: chunks(work, "canvas-0.zarr")[5].write_bytes(b"")),
    "a folder for a chunk": ("middle", lambda work: make_folder(chunks(work, "canvas-1.zarr")[8])),
    "a record": ("middle", lambda work: flip(work / "progress", 16 * 4)),
    "a count out of range": ("middle", lambda work: flip(work / "progress", 16 * 12 + 3)),
    "a short progress": (
        "middle",
        lambda work: (work / "progress").write_bytes((work / "progress").read_bytes()[:-40]),
    ),
    "a long progress": ("middle", lambda work: (work / "progress").write_bytes((work / "progress").read_bytes() * 2)),
    "a painted chunk": ("painted", lambda work: flip(chunks(work, "painted.zarr")[7])),
    "a painted chunk and a record": (
        "painted",
        lambda work: [flip(chunks(work, "painted.zarr")[7]), flip(work / "progress", 3)],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_computed_again(
    name: str, begun: dict[str, Path], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, and said."""
    stage, damage = DAMAGES[name]
    folder = tmp_path / "work"
    shutil.copytree(begun[stage], folder)
    asked = request(tiny, folder)
    damage(work_folder(asked.out))
    render(asked)
    assert np.array_equal(pixels(asked.out), untiled(tiny, 3, SIZE, "dpm++", STEPS))
    said = capsys.readouterr().err
    assert name == "a long progress" or ("damaged" in said and "row" in said)


def test_what_is_whole_is_not_computed_again(
    begun: dict[str, Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("middle", "painted"):
        folder = tmp_path / stage
        shutil.copytree(begun[stage], folder)
        monkeypatch.setattr(repair, "_replay", lambda *_: pytest.fail("nothing is damaged"))
        render(request(tiny, folder))


def test_what_cannot_be_gone_on_with_names_the_folder(
    cli: Callable[..., Outcome], begun: dict[str, Path], tiny: Path, tmp_path: Path
) -> None:
    for number, damage in enumerate(
        (
            lambda work: (work / "manifest.json").write_text("{"),
            lambda work: (work / "manifest.json").write_text('{"work_format": 1}'),
            lambda work: (work / "manifest.json").rename(work / "job.json"),
            lambda work: (work / "canvas-1.zarr" / "zarr.json").unlink(),
            lambda work: (work / "painted.zarr" / "zarr.json").write_text("{"),
            *(
                functools.partial(change_metadata, words=words)
                for words in (("float32", "float64"), ("little", "big"), ("70", "60"))
            ),
            lambda work: (work / "progress").write_bytes(bytes(16 * 20)),
            lambda work: make_folder(work / "progress"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(begun["middle"], folder)
        asked = request(tiny, folder)
        damage(work_folder(asked.out))
        options = ("--size", "70x50", "--seed", 3, "--sampler", "dpm++", "--sampling-steps", STEPS, "--tile", TILE)
        outcome = cli("slide", tiny, "--out", asked.out, *options)
        assert outcome.code == 2 and f"delete {work_folder(asked.out)}" in outcome.err, (number, outcome.err)


def test_too_much_to_compute_alone_names_the_folder(
    begun: dict[str, Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(begun["middle"], folder)
    asked = request(tiny, folder)
    flip(chunks(work_folder(asked.out), "canvas-1.zarr")[7])
    monkeypatch.setattr("morphogen.slides.tile_worker._LARGEST_REPLAY", 10)
    with pytest.raises(InputError, match=r"takes too much to compute that tile alone; delete .*a\.ome\.zarr\.painting"):
        render(asked)


def test_records(tmp_path: Path) -> None:
    kept = TileProgress(tmp_path, 3)
    kept.mark(1, 17)
    kept.mark(1, 2**32 - 1)
    kept.close()
    again = TileProgress(tmp_path, 3)
    assert again.done.tolist() == [0, 2, 0] and again.damaged == []
    assert (again.left_by(1, 1), again.left_by(1, 0)) == (2**32 - 1, 17)
    again.close()
    assert progress.checksum(np.zeros((2, 3), np.float32)[:, ::2]) == progress.checksum(np.zeros((2, 2), np.float32))
    assert render_module.TileProgress.exists(tmp_path)
