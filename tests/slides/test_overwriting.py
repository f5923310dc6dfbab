"""`slide --overwrite`: a slide of other settings or another's, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import Outcome, snapshot
from slide_helpers import save_tiny

from morphogen.core.errors import InputError
from morphogen.core.request import SamplingRequest
from morphogen.pyramids import formats
from morphogen.slides.manifest import SlideManifest
from morphogen.slides.render import read_note, render
from morphogen.slides.request import SlideRequest
from morphogen.slides.schedule import preview_file, work_folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("overwriting") / "tiny")


def asked(tiny: Path, out: Path, seed: int = 0, **settings: object) -> SlideRequest:
    return SlideRequest(str(tiny), (20, 24), out, seed, SamplingRequest("ddim", 2), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.zarr", ".dzi"])
def test_other_settings_are_refused_by_name_and_replaced_when_told(tiny: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"a{suffix}"
    render(asked(tiny, out))
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"--seed \(0 there, 1 now\).*--overwrite"):
        render(asked(tiny, out, 1))
    assert snapshot(tmp_path) == before
    assert render(asked(tiny, out, 0, overwrite=True)) == (out, False)  # the same again is there already
    assert render(asked(tiny, out, 1, overwrite=True)) == (out, True)
    assert formats.read_metadata(out, suffix)["seed"] == 1
    assert not work_folder(out).exists()
    assert render(asked(tiny, out, 1)) == (out, False)


def test_the_old_slide_stays_until_the_new_one_is_painted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.ome.zarr"
    render(asked(tiny, out))

    def interrupted(*_: object) -> None:
        raise OSError(5, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("morphogen.pyramids.formats.write", interrupted)
        with pytest.raises(OSError, match="gone"):
            render(asked(tiny, out, 1, overwrite=True))
    assert formats.read_metadata(out, ".ome.zarr")["seed"] == 0
    with pytest.raises(InputError, match=r"--seed .*--overwrite"):
        render(asked(tiny, out, 2))
    assert render(asked(tiny, out, 2, overwrite=True)) == (out, True)  # what was begun with seed 1 is dropped
    assert formats.read_metadata(out, ".ome.zarr")["seed"] == 2


def test_work_begun_with_other_settings_is_begun_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.ome.tif"
    with monkeypatch.context() as patch:
        patch.setattr("morphogen.slides.render.run_schedule", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Exception, match="stopped"):
            render(asked(tiny, out, 5))
    assert SlideManifest.load(work_folder(out)).seed == 5
    with pytest.raises(InputError, match=r"--seed .*--overwrite"):
        render(asked(tiny, out, 6))
    render(asked(tiny, out, 6, overwrite=True))
    assert formats.read_metadata(out, ".ome.tif")["seed"] == 6


def test_files_and_slides_of_others(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.ome.tif"
    out.write_bytes(b"mine")
    preview_file(out).write_bytes(b"mine too")
    with pytest.raises(InputError, match=r"was not painted by Morphogen.*--overwrite"):
        render(asked(tiny, out))
    render(asked(tiny, out, overwrite=True))
    assert formats.read_metadata(out, ".ome.tif")["seed"] == 0
    with Image.open(preview_file(out)) as shown:
        assert shown.size == (24, 20)


def test_a_folder_that_is_no_slide_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.ome.zarr"
    render(asked(tiny, out))
    (out / "thesis.txt").write_text("mine")
    before = snapshot(out)
    with pytest.raises(InputError, match=r"other files than a slide's \(thesis.txt\)"):
        render(asked(tiny, out, 1, overwrite=True))
    (tmp_path / "b_files").mkdir()
    (tmp_path / "b_files" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match=r"other files than a slide's \(letter.txt\)"):
        render(asked(tiny, tmp_path / "b.dzi", overwrite=True))
    assert snapshot(out) == before
    assert (tmp_path / "b_files" / "letter.txt").exists()


def test_a_filled_slide(tiny: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.ome.zarr", tmp_path / "filled.ome.zarr"
    render(asked(tiny, source))
    Image.fromarray(np.pad(np.full((4, 5), 255, np.uint8), ((3, 13), (6, 13)))).save(tmp_path / "mask.png")
    fill = replace(asked(tiny, out), size=(0, 0), source=source, mask=tmp_path / "mask.png")
    render(fill)
    with pytest.raises(InputError, match=r"--seed .*--overwrite"):
        render(replace(fill, seed=3))
    render(replace(fill, seed=3, overwrite=True))
    assert read_note(out)["seed"] == 3
    inside = shutil.copytree(source, out / "0" / "source.ome.zarr")
    with pytest.raises(InputError, match="is in its place and is needed"):
        render(replace(fill, seed=4, source=inside, overwrite=True))
    assert inside.exists()


def test_the_command(cli: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    command = ("slide", tiny, "--size", 20, "--sampling-steps", 2, "--out", tmp_path / "a.dzi")
    assert cli(*command).code == 0
    assert "--overwrite" in cli(*command, "--seed", 1).err
    assert cli(*command, "--seed", 1, "--overwrite").code == 0
    assert json.loads((tmp_path / "a_files" / "morphogen.json").read_text())["seed"] == 1
