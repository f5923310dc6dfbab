"""`export --to onnx`: the file against PyTorch, painting with it alone, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ladder_helpers import save_ladder
from map_helpers import map_level
from PIL import Image
from run_helpers import Outcome

from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.models import create_model, load_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample_onnx.py"


def open_file(file: Path) -> tuple[Any, dict[str, Any]]:
    session = onnxruntime.InferenceSession(str(file))
    return session, json.loads(session.get_modelmeta().custom_metadata_map["morphogen"])


@pytest.mark.slow
def test_a_model_told_a_map_gives_the_noise_that_pytorch_gives(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    model = map_level(0, patch=2)
    model.architecture = model.architecture.model_copy(update={"sampling_fire_rate": 1.0})
    model.save_pretrained(tmp_path / "model")
    done = cli("export", tmp_path / "model", "--to", "onnx", tmp_path / "a.onnx")
    assert done.code == 0 and "opset 20, inputs x, t, condition; onnxruntime agrees" in done.out, done.err
    session, facts = open_file(tmp_path / "a.onnx")
    assert facts["multiple"] == 2 and facts["condition"]["classes"]["1"] == "nucleus"
    model = load_model(tmp_path / "model")  # type: ignore[assignment]
    for batch, size in ((1, (26, 14)), (5, (18, 50))):
        x, t = torch.randn(batch, 3, *size), torch.rand(batch) * 999
        told = (torch.rand(batch, 3, *size) > 0.5).float()
        with torch.no_grad():
            wanted = model(x, t, Evaluation(Key.of(range(batch)), condition=told)).noise.numpy()
        (found,) = session.run(None, {"x": x.numpy(), "t": t.numpy(), "condition": told.numpy()})
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()  # float32, other orders of sums


@pytest.mark.slow
def test_numpy_and_onnxruntime_alone_paint_what_cells_that_rest_in_turn_paint(
    cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "tissue.onnx"
    assert cli("export", "tissue-texture", "--to", "onnx", file).code == 0
    out = tmp_path / "out.png"
    done = subprocess.run([sys.executable, EXAMPLE, file, "2", "32", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(out)).astype(float)
    assert pixels.shape == (32, 64, 3)
    # Stained tissue: not gray, not noise; red above green as eosin and haematoxylin have it.
    assert pixels[..., 0].mean() > pixels[..., 1].mean() + 10 and 8 < pixels.std() < 80
    spec = importlib.util.spec_from_file_location("sample_onnx", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    noise = np.random.default_rng(1).standard_normal((2, 3, 24, 36))
    session, facts = open_file(file)
    assert facts["inputs"] == ["x", "t", "fire"] and len(facts["alpha_bar"]) > 100
    both = example.sample(session, noise, 6, 5)
    assert both.shape == noise.shape and np.isfinite(both).all() and np.abs(both).max() <= 1


def test_what_cannot_be_exported(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    pyramid = save_ladder(tmp_path / "pyramid", levels=2)
    for name in ("fourier-diff-nca-small", "geca-xs", "vnca"):
        create_model(name, size=64).save_pretrained(tmp_path / name)
    (tmp_path / "there.onnx").write_bytes(b"mine")
    for words, sentence in (
        ((pyramid, "a.onnx"), "has 2 levels; name one with --level, 0 being the coarsest"),
        ((pyramid, "a.onnx", "--level", 2), "has the levels 0 (coarsest) to 1"),
        (("tissue-texture", "a.onnx", "--level", 0), "is no pyramid; leave it out"),
        ((tmp_path / "fourier-diff-nca-small", "a.onnx"), "whose Fourier transforms ONNX has at one size only"),
        ((tmp_path / "geca-xs", "a.onnx"), "whose cells begin with random numbers of their own"),
        ((tmp_path / "vnca", "a.onnx"), "which predicts no noise"),
        (("tissue-texture", "a.bin"), "should end in .onnx"),
        (("tissue-texture", tmp_path / "there.onnx"), "exists; name another file, or replace it with --overwrite"),
        (("tissue-texture", "a.onnx", "--sampling-steps", 3), "an ONNX file holds one evaluation; leave it out"),
    ):
        model, file, *more = words
        done = cli("export", model, "--to", "onnx", tmp_path / file, *more)
        assert done.code == 2 and sentence in done.err and "Traceback" not in done.err, (words, done.err)
    assert (tmp_path / "there.onnx").read_bytes() == b"mine" and not (tmp_path / "a.onnx").exists()
    assert "it should be web or onnx" in cli("export", "tissue-texture", "--to", "tiff", tmp_path / "a").err
