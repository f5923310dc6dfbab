"""What `slide` writes is data for every other command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx_files import write_network
from run_helpers import TINY, Outcome

pytest.importorskip("openslide")
Cli = Callable[..., Outcome]


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif"])
def test_what_slide_writes_is_checked_trained_on_and_measured(cli: Cli, run: Path, tmp_path: Path, suffix: str) -> None:
    out, trained = tmp_path / f"painted{suffix}", tmp_path / "run"
    cli("slide", run, "--size", "600x300", "--sampling-steps", 1, "--pixel-size", 0.5, "--out", out)
    assert "1 images, nothing wrong" in cli("data", "check", out, "--size", 16).out
    ended = cli("train", out, "--out", trained, *TINY, "--steps", 2, "--mpp", 1)
    assert ended.code == 0 and "mpp: 1" in (trained / "README.md").read_text()
    assert json.loads((trained / "config.json").read_text())["image"]["mpp"] == 1
    coarse = tmp_path / "coarse"  # by its own scale, and twice as coarse
    for steps in (1, 2):  # begun, and gone on with
        assert cli("train", out, "--out", coarse, *TINY, "--steps", steps, "--downscale", 2).code == 0
    assert json.loads((coarse / "config.json").read_text())["image"]["mpp"] == 1
    network = f"onnx:{write_network(tmp_path / 'toy.onnx', features=6, side=16)}"
    options = ("-n", 4, "--network", network, "--lpips", "none", "--part", "train", "--out", tmp_path / "measured")
    assert cli("evaluate", trained, "--data", out, *options).code == 0
