"""What a picture is computed in: said in its metadata, alike with the kernel and without; and what `doctor` finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import Outcome

from morphogen.automata.fused.build import has_bfloat16, load_attention, load_kernel
from morphogen.automata.fused.compiler import Unavailable
from morphogen.core.images import read_metadata

try:
    load_kernel("float32")
except Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

FAST = ("sample", "tissue", "-n", 1, "--size", "40x32", "--sampling-steps", 4, "--no-grid")


@pytest.fixture
def no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on there is neither a compiler nor anything compiled."""

    def forget() -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "empty"))
        monkeypatch.setattr("morphogen.core.notices._said", set())
        monkeypatch.setattr("morphogen.automata.fused.build.COMPILED", tmp_path)
        for load in (load_kernel, load_attention):
            monkeypatch.setattr(load, "_found", {})

    return forget


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image, dtype=int)


def test_float32_is_one_picture_with_the_kernel_and_without(
    cli: Callable[..., Outcome], no_kernel: Callable[[], None], tmp_path: Path
) -> None:
    assert cli(*FAST, "--precision", "float32", "--out", tmp_path / "with").code == 0
    no_kernel()
    without = cli(*FAST, "--precision", "float32", "--out", tmp_path / "without")
    assert without.code == 0 and "it takes 4 to 10 times as long" in without.err
    assert "another picture" not in without.err
    files = [tmp_path / name / "0.png" for name in ("with", "without")]
    assert np.abs(pixels(files[0]) - pixels(files[1])).max() <= 1  # rounding, now and then over a level's edge
    assert [read_metadata(file)["precision"] for file in files] == ["float32"] * 2


@pytest.mark.skipif(not has_bfloat16(), reason="this processor does not multiply in bfloat16")
def test_auto_names_what_it_computed_in(
    cli: Callable[..., Outcome], no_kernel: Callable[[], None], tmp_path: Path
) -> None:
    assert cli(*FAST, "--out", tmp_path / "with").code == 0
    assert read_metadata(tmp_path / "with" / "0.png")["precision"] == "bfloat16"
    no_kernel()
    without = cli(*FAST, "--out", tmp_path / "without")
    assert "a seed gives another picture than with the kernel (--precision float32 gives the same" in without.err
    assert read_metadata(tmp_path / "without" / "0.png")["precision"] == "float32"
    again = cli(*FAST, "--out", tmp_path / "with")  # what bfloat16 made is not what this command would make now
    assert again.code == 2 and "0.png" in again.err


def test_doctor(cli: Callable[..., Outcome], no_kernel: Callable[[], None]) -> None:
    shown = cli("doctor")
    assert shown.code == 0 and "kernel rule-float32" in shown.out and "kernel attention" in shown.out
    no_kernel()
    found = {entry["name"]: entry for entry in json.loads(cli("doctor", "--json").out)}
    assert found["kernel rule-float32"]["found"] == "not there"
    assert "4 to 10 times as long" in found["kernel rule-float32"]["missing"]
    assert found["compiler"]["missing"] and "--precision auto is float32" in found["precision"]["found"]
    for name in ("morphogen", "pytorch", "gpu", "threads", "extra slides", "cache kernels", "cache datasets"):
        assert found[name]["found"]
    assert "empty/kernels" in found["cache kernels"]["found"]
