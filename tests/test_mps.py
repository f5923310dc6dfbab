"""Everything runs on a device without float64: training, sampling by every sampler, the tasks, evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from mps_mode import MPSMode
from onnx_files import write_network
from PIL import Image
from run_helpers import Outcome, draw_images, pixels

import morphogen
from morphogen.diffusion.samplers import SAMPLERS

NARROW = {"channels": 8, "hidden": 16, "nca_steps": 2}
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "diff-nca-small": (16, NARROW),
    "fourier-diff-nca-small": (32, {**NARROW, "fourier_steps": 2}),
    "geca-xs": (16, {"width": 16, "heads": 2, "mlp": 16, "nca_steps": 2}),
    "unet-50k": (16, {}),
    "vnca": (16, {"latent": 16, "nca_steps": 1}),
}


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with an MPS device."""
    monkeypatch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: True))
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # which accelerate sets, and which is to be taken back
    with MPSMode():
        yield


def trained(tmp_path: Path, model: str, device: str = "mps") -> morphogen.Run:
    size, architecture = MODELS[model]
    images = draw_images(tmp_path / "images", 12, 40)
    settings = {"saving": {"sample_images": 2, "validate_every": 1, "validation_images": 2}}
    diffusion = {} if model == "vnca" else {"diffusion": {"timesteps": 4}}
    return morphogen.train(
        images,
        out=tmp_path / "run",
        model=model,
        size=size,
        steps=2,
        batch_size=2,
        device=device,
        architecture=architecture,
        training=settings,
        progress=False,
        **diffusion,
    )


def test_the_mode_refuses_what_mps_refuses(mps: None) -> None:
    there = torch.zeros(3, device="mps")
    assert (there + 1).device.type == "mps"
    assert there.cpu().double().device.type == "cpu"
    with pytest.raises(TypeError, match="float64"):
        there.double()
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2, dtype=torch.float64, device="mps")
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2, dtype=torch.float64).to("mps")
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


@pytest.mark.parametrize("model", MODELS)
def test_training(mps: None, tmp_path: Path, model: str) -> None:
    before = MPSMode.seen
    run = trained(tmp_path, model)
    assert run.step == 2
    assert list(run.samples()) == [2]
    assert MPSMode.seen > before + 1000
    assert trained(tmp_path, model).step == 2  # and resumes


def test_the_tasks(mps: None, tmp_path: Path) -> None:
    run = trained(tmp_path, "diff-nca-small")
    pipeline = morphogen.Pipeline.from_pretrained(run.path, "mps")
    assert pipeline.model.device.type == "mps"
    before = MPSMode.seen
    for sampler in SAMPLERS:
        assert len(pipeline(seeds=[3, 4], num_inference_steps=3, sampler=sampler).images) == 2
    image = Image.fromarray(pixels(20, 24, 1))
    mask = np.zeros((20, 24), bool)
    mask[4:9, 6:14] = True
    assert pipeline.inpaint(image, mask, seeds=[1], num_inference_steps=3).images[0].size == (24, 20)
    assert pipeline.vary(image, seeds=[1], strength=0.5, num_inference_steps=3).images[0].size == (24, 20)
    assert pipeline.upscale(image, seeds=[1], num_inference_steps=3).images[0].size == (48, 40)
    assert MPSMode.seen > before + 1000


def test_evaluation(mps: None, cli: Callable[..., Outcome], tmp_path: Path) -> None:
    run = trained(tmp_path, "diff-nca-small")
    network = f"onnx:{write_network(tmp_path / 'toy.onnx', features=6, side=16)}"
    before = MPSMode.seen
    few = ("-n", 4, "--data", tmp_path / "images", "--part", "train", "--sampling-steps", 2, "--batch-size", 4)
    ended = cli("evaluate", run.path, *few, "--network", network, "--lpips", "none", "--device", "mps", "--json")
    assert ended.code == 0, ended.err
    assert MPSMode.seen > before + 100
