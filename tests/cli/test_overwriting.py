"""No command replaces what it would not write again, unless it is told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from run_helpers import Outcome, draw_images, snapshot

Refused = Callable[..., str]


def test_a_split_replaces_only_itself(
    cli: Callable[..., Outcome], refused: Refused, images: Path, tmp_path: Path
) -> None:
    table, photo, made = tmp_path / "labels.csv", tmp_path / "photo.png", tmp_path / "split.json"
    table.write_text("file,patient\n" + "".join(f"{p.name},{p.name}\n" for p in sorted(images.iterdir())))
    shutil.copy(images / "00.png", photo)
    for mine in (table, photo):
        refused("data", "split", images, "--out", mine, says=[str(mine), "--overwrite"], keeps=[tmp_path])
    assert cli("data", "split", images, "--out", made).code == 0
    before = made.read_bytes()
    assert cli("data", "split", images, "--out", made).code == 0
    assert made.read_bytes() == before
    refused("data", "split", images, "--out", made, "--seed", 1, says=["made with other settings"], keeps=[tmp_path])
    assert cli("data", "split", images, "--out", made, "--seed", 1, "--overwrite").code == 0
    assert made.read_bytes() != before
    assert cli("data", "split", images, "--out", photo, "--overwrite").code == 0
    json.loads(photo.read_text())


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_foreign_results(refused: Refused, run: Path, images: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": true}')
    labelled = tmp_path / "data"
    for k in range(2):
        shutil.copytree(images, labelled / f"class-{k}")
    said = {"says": [str(tmp_path / name), "was not made by this command"], "keeps": [tmp_path]}
    refused("evaluate", run, "--out", tmp_path, "--network", "pixels", "-n", 4, **said)
    refused("classify", labelled, "--out", tmp_path, "--steps", 1, **said)
    refused("compare", "quick", "--data", images, "--out", tmp_path, **said)


def test_foreign_files_between_the_results(refused: Refused, cli: Callable[..., Outcome], tmp_path: Path) -> None:
    for k in range(2):
        draw_images(tmp_path / "data" / f"class-{k}", 12, 12, 20 * k)
    for name, content in (("test-seed-0.json", '{"mine": true}'), ("spec.json", "[1]")):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    said = {"says": ["was not made by this command"], "keeps": [tmp_path / "data"]}
    quick = ("--size", 8, "--steps", 1, "--batch-size", 4, "--device", "cpu")
    refused("classify", tmp_path / "data", *quick, "--out", tmp_path / "out", **said)
    refused("compare", "quick", "--data", tmp_path / "data", "--gpus", "cpu0", "--out", tmp_path / "out", **said)
    assert (tmp_path / "out" / "test-seed-0.json").read_text() == '{"mine": true}'
    assert (tmp_path / "out" / "spec.json").read_text() == "[1]"


def test_a_foreign_preview_of_a_slide(refused: Refused, run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "big.ome.zarr.preview.png")
    before = snapshot(tmp_path)
    line = refused(
        "slide", run, "--size", 32, "--sampling-steps", 2, "--out", tmp_path / "big.ome.zarr", "--device", "cpu"
    )
    assert "big.ome.zarr.preview.png is there and is no preview" in line
    kept = snapshot(tmp_path)
    assert {k: v for k, v in kept.items() if "preview" in k} == {k: v for k, v in before.items() if "preview" in k}


def test_links_that_lead_nowhere(refused: Refused, run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.zarr"
    out.symlink_to(tmp_path / "nowhere" / "below")
    says = {"says": [f"--out {out} is a link to something that is not there"], "keeps": [tmp_path]}
    refused("sample", run, "--out", out, **says)
    refused("vary", run, images, "--out", out, **says)
    refused("slide", run, "--size", 32, "--out", out, **says)
    refused("train", images, "--out", out, **says)
    refused("evaluate", run, "--out", out, **says)
    refused("classify", images, "--out", out, **says)
    refused("compare", "quick", "--data", images, "--out", out, **says)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 2500, "a" * 5000 + "/b"])
def test_names_that_are_too_long(refused: Refused, run: Path, name: str) -> None:
    for command in (("sample", name), ("info", name), ("sample", run, "--out", name), ("vary", run, name)):
        assert len(refused(*command, says=["too long"])) < 200
