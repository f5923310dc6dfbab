"""Runs that earlier versions began are read and resumed; those of a later one are refused."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import Outcome, assert_same_run, snapshot
from safetensors.torch import load_file

from morphogen._version import VERSION
from morphogen.core.model_files import FORMAT
from morphogen.training.run_folder import read_run

# Three steps by the code of format 1, on a processor without the kernel, and what it had after six.
OLD = Path(__file__).with_name("run_0_1.zip")
LOSSES = [0.784156322479248, 0.7766860127449036, 0.7755860686302185]
WEIGHTS = {  # by the kind of processor: the first is what the run was begun on
    "6f65614f46f5974bb83b7c79bb72016dbfa15d7d6333ade87a46f991f4f22fb1",  # AMD EPYC
    "53268b085042bce7a6cb514630fd60b8891821fd53384fcef28a7c3fe2a0cce1",  # Intel Xeon
}
SETTINGS = (
    *("--size", "16", "--batch-size", "2", "--set", "training.validate_every=2", "--set", "training.warmup=2"),
    *("--set", "architecture.channels=6", "--set", "architecture.hidden=4", "--set", "architecture.embedding_hidden=4"),
    *("--set", "architecture.nca_steps=2", "--set", "architecture.patch=1", "--set", "training.validation_images=4"),
    *("--set", "training.learning_rate=2e-3", "--set", "training.kernel=off"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The images that the old run was trained on."""
    (folder := tmp_path / "images").mkdir()
    y, x = np.mgrid[:20, :20]
    for k in range(10):
        planes = [(x * (k + 3) + y * 7) % 256, (y * (k + 5) * 3) % 256, (x * y + 40 * k) % 256]
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(folder / f"{k}.bmp")
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(OLD) as archive:
        archive.extractall(tmp_path / "old")
    (tmp_path / "old" / "samples").mkdir()
    (tmp_path / "old" / ".lock").touch()
    return tmp_path / "old"


def test_a_run_of_format_1_goes_on(cli: Callable[..., Outcome], data: Path, old: Path, tmp_path: Path) -> None:
    free = ("--set", "training.sample_images=0", "--set", "training.keep_checkpoints=1", "--steps", 6)
    ended = cli("train", data, "--out", old, *SETTINGS, *free)
    assert ended.code == 0, ended.err
    assert "at step 3" in ended.err
    losses = [json.loads(line)["loss"] for line in (old / "metrics.jsonl").read_text().splitlines()]
    # 1e-5 and 1e-4: other processors round otherwise, and Adam divides by the size of the gradient. Where
    # the losses are the same to the bit, the weights are those that a kind of processor has always given.
    assert losses[3:] == pytest.approx(LOSSES, rel=1e-5)
    if losses[3:] == LOSSES:
        assert hashlib.sha256((old / "model.safetensors").read_bytes()).hexdigest() in WEIGHTS
    written = json.loads((old / "run.json").read_text())
    assert (written["format"], written["morphogen"]) == (FORMAT, VERSION)
    assert written["training"]["optimizer"]["learning_rate"] == 2e-3
    assert read_run(old).training.averaging.kind == "relative"

    assert cli("train", data, "--out", tmp_path / "new", *SETTINGS, *free, "--set", "diffusion.predict=noise").code == 0
    one, other = (load_file(run / "model.safetensors") for run in (old, tmp_path / "new"))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_its_run_json_is_a_configuration(cli: Callable[..., Outcome], data: Path, old: Path, tmp_path: Path) -> None:
    again = ("train", data, "--config", old / "run.json", "--out")
    assert cli(*again, tmp_path / "a", "--steps", 3).code == 0
    assert cli(*again, tmp_path / "b", "--steps", 3, *SETTINGS).code == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_other_settings_than_its_own_are_refused(refused: Callable[..., str], data: Path, old: Path) -> None:
    other = ("--set", "training.optimizer.learning_rate=1e-3")
    says = ["training.optimizer.learning_rate was 0.002, is 0.001"]
    refused("train", data, "--out", old, *SETTINGS, *other, says=says, keeps=[old])


def test_a_setting_in_both_spellings_of_one_place_is_refused(
    refused: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    (file := tmp_path / "c.yaml").write_text("training:\n  warmup: 3\n  schedule:\n    warmup: 4\n")
    refused("train", data, "--out", tmp_path / "run", "--config", file, says=["schedule.warmup is given twice"])


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_files_of_a_newer_version_are_refused_with_both_versions(
    cli: Callable[..., Outcome], refused: Callable[..., str], data: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    assert cli("train", data, "--out", run, *SETTINGS, "--steps", 1, "--set", "training.sample_images=0").code == 0
    file = run / name
    for number, says in ((FORMAT + 1, ["Morphogen 9.1.0", f"Morphogen {VERSION}", "format"]), ("x", ["format", "'x'"])):
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": number, "morphogen": "9.1.0"}))
        before = snapshot(run)
        if name == "run.json":
            refused("train", data, "--out", run, *SETTINGS, "--steps", 2, says=[name, *says])
        else:
            refused("sample", run, "--out", tmp_path / "samples", says=[name, *says])
        assert snapshot(run) == before
