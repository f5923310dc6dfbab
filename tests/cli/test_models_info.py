"""`morphogen models` and `morphogen info`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import Outcome, snapshot

# The table of DESIGN.md: parameters while training, deployed, and as published.
COUNTS = {
    "diff-nca": (329_416, 327_492, None),
    "diff-nca-paper": (330_440, 328_516, 331_000),
    "fourier-diff-nca": (1_100_192, 1_095_952, 1_101_216),
    "fourier-diff-nca-1.85m": (1_848_352, 1_843_088, 1_849_632),
    "fourier-diff-nca-h256": (736_672, 733_712, 737_184),
    "fourier-diff-nca-c48": (524_768, 521_104, 525_792),
}


def test_models_as_json(cli: Callable[..., Outcome]) -> None:
    shown = cli("models", "--json")
    assert (shown.code, shown.err) == (0, "")
    rows = json.loads(shown.out)
    assert isinstance(rows, list)
    by_name = {row["name"]: row for row in rows}
    assert len(by_name) == len(rows)
    assert by_name.keys() >= COUNTS.keys() | {"diff-nca-small", "fourier-diff-nca-small"}
    for row in rows:
        assert {"name", "parameters", "deployed_parameters", "published_parameters"} <= row.keys()
        gains = "nca" in row["name"] and row["name"] != "vnca"
        assert (0 < row["deployed_parameters"] < row["parameters"]) == gains
    for name, (parameters, deployed, published) in COUNTS.items():
        row = by_name[name]
        found = (row["parameters"], row["deployed_parameters"], row["published_parameters"])
        assert found == (parameters, deployed, published), name


def test_models_as_a_table(cli: Callable[..., Outcome]) -> None:
    shown = cli("models")
    assert shown.code == 0
    for text in ("fourier-diff-nca-1.85m", "1,848,352", "1,843,088", "1,849,632", "diff-nca-small"):
        assert text in shown.out


def test_info_as_json(cli: Callable[..., Outcome], run: Path) -> None:
    before = snapshot(run)
    shown = cli("info", run, "--json")
    assert (shown.code, shown.err) == (0, "")
    facts = json.loads(shown.out)
    assert facts["family"] == "diff-nca"
    assert facts["size"] == "16x16"
    assert facts["image_channels"] == 3
    assert facts["parameters"] == 3488
    assert facts["deployed_parameters"] < 3488
    assert facts["file_bytes"] == (run / "model.safetensors").stat().st_size
    assert facts["receptive_range"] == facts["architecture"]["nca_steps"] == 2
    assert facts["exact_in_tiles"] is True
    assert facts["diffusion"]["timesteps"] == 10
    assert facts["run"]["preset"] == "diff-nca-small"
    assert facts["run"]["last_step"]["step"] == 12
    assert facts["run"]["checkpoints"] == {"step-00000012": "undamaged", "step-00000010": "undamaged"}
    assert snapshot(run) == before


def test_info_for_people(cli: Callable[..., Outcome], run: Path) -> None:
    shown = cli("info", run)
    assert shown.code == 0
    for text in ("diff-nca", "16x16", "3,488", "step-00000012", "undamaged"):
        assert text in shown.out


def test_info_tells_of_damage(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "checkpoints" / "step-00000012" / "ema.safetensors").unlink()
    facts = json.loads(cli("info", copy, "--json").out)
    assert facts["run"]["checkpoints"]["step-00000012"] == "ema.safetensors is missing"
    assert facts["run"]["checkpoints"]["step-00000010"] == "undamaged"


def test_info_of_a_model_that_is_no_run(cli: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, tmp_path / name)
    facts = json.loads(cli("info", tmp_path, "--json").out)
    assert "run" not in facts
    assert facts["parameters"] == 3488


@pytest.mark.parametrize("what", ["nothing-here", "diff-nca"])
def test_info_of_what_is_not_there(refused: Callable[..., str], what: str) -> None:
    refused("info", what, says=[f"'{what}'"])
