"""The exported folder: what is in it is the model, and wrong models and folders are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from morphogen import create_model
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.diffusion.ladder import Ladder
from morphogen.export.web import export_web, paintable
from morphogen.models import find_model, load_model


def exported(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The manifest of an export, and its tensors by name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (level,) = manifest["levels"]
    content = (folder / "weights.bin").read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest["weights"]["sha256"]
    values = np.frombuffer(content, "<f4")
    tensors = {}
    for name, entry in level["tensors"].items():
        count = int(np.prod(entry["shape"]))
        tensors[name] = values[entry["offset"] : entry["offset"] + count].reshape(entry["shape"])
    assert sum(t.size for t in tensors.values()) == values.size
    return level, tensors


def clean_image(
    level: dict[str, Any], tensors: dict[str, NDArray[np.float32]], i: int, x: torch.Tensor, masks: list[torch.Tensor]
) -> torch.Tensor:
    """The predicted clean images at evaluation i, from the exported numbers alone."""
    step, t = level["steps"][i], {k: torch.from_numpy(v.copy()) for k, v in tensors.items()}
    cells = F.pixel_unshuffle(x * step["input"], level["patch"])
    state = F.pad(cells, (0, 0, 0, 0, 0, level["cell_channels"] - cells.shape[1]))
    for k, mask in enumerate(masks):
        perceived = F.conv2d(F.pad(state, (1, 1, 1, 1), mode="reflect"), t["perceive"].permute(0, 3, 1, 2))
        scales = torch.cat([t["state_scale"][i, k], t["perceived_scale"][i, k]])
        hidden = F.conv2d(torch.cat([state, perceived], 1), (t["hidden"] * scales)[..., None, None])
        hidden = hidden + t["hidden_bias"][i, k].view(1, -1, 1, 1)
        scale = torch.rsqrt(hidden.square().mean(1, keepdim=True) + 1e-5)
        rows = t["output"] * t["hidden_scale"][i, k]
        change = F.conv2d(F.leaky_relu(hidden, 0.01), rows[..., None, None]) * scale
        state = state + (change + t["output_bias"].view(1, -1, 1, 1)) * mask
    colours = cells.shape[1]
    output = F.pixel_shuffle(state[:, colours : 2 * colours], level["patch"])
    noise = step["by_output"] * output + step["by_x"] * x
    return ((x - step["sigma"] * noise) / step["alpha"]).clamp(-1, 1)


@pytest.mark.parametrize("output", ["noise", "v", "edm"])
def test_the_exported_numbers_are_the_model(tmp_path: Path, output: str) -> None:
    """Float32 sums in another order: 1e-4 of [-1, 1] is a hundredth of a grey level."""
    diffusion = {"timesteps": 50, "output": output, "loss_on": "noise"}
    model = create_model("diff-nca-small", size=16, diffusion=diffusion, patch=2, nca_steps=4, output_gain=2.0)
    model.save_pretrained(tmp_path / "run")
    export_web(str(tmp_path / "run"), tmp_path / "page")
    level, tensors = exported(tmp_path / "page")
    denoiser = paintable(load_model(tmp_path / "run"))[0]
    key = Key((3,), 5)
    x = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    from morphogen.core.request import SamplingRequest
    from morphogen.diffusion.request import ON_CANVAS, resolve
    from morphogen.diffusion.sampling import Stepper

    after = Stepper(denoiser, resolve(SamplingRequest("dpm++"), denoiser, ON_CANVAS)).step(5, x, Evaluation(key))
    masks = key.coarser(2).fire_masks(4, denoiser.fire_rate, (10, 12), "cpu")
    found = clean_image(level, tensors, 5, x, masks)
    assert 0.1 < after.clean.abs().mean() < 0.95  # neither nothing nor all clipped
    assert (found - after.clean).abs().max() < 1e-4


def test_the_sampler_is_dpmpp_2m(tmp_path: Path) -> None:
    """The coefficients take the same way as the solver itself, on a made-up model of the clean image."""
    from morphogen.core.request import SamplingRequest
    from morphogen.diffusion.sampling import Stepper
    from morphogen.diffusion.solvers import CLEAN, dpmpp_2m

    export_web("tissue-texture", tmp_path / "page", sampling_steps=9)
    level, _ = exported(tmp_path / "page")
    stepper = Stepper(paintable(load_model("tissue-texture"))[0], SamplingRequest("dpm++", 9))
    x = ours = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64)
    last, history = torch.zeros_like(x), None
    for i, step in enumerate(level["steps"]):
        clean, ours_clean = torch.tanh(x + i), torch.tanh(ours + i)
        after = stepper.levels[i + 1] if i + 1 < len(stepper) else CLEAN
        x, history = dpmpp_2m(x, clean, x, stepper.levels[i], after, history)
        ours = step["keep"] * ours + step["mean"] * (ours_clean + step["ahead"] * (ours_clean - last))
        last = ours_clean
        assert torch.allclose(x, ours, rtol=1e-12, atol=1e-12)


def test_refuses_models_that_it_cannot_paint_with(tmp_path: Path) -> None:
    for name, says in (
        ("fourier-diff-nca-small", "see the whole image"),
        ("diff-nca-paper", "group normalisation"),
        ("unet-50k", "only Diff-NCA"),
    ):
        create_model(name, size=32).save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=says):
            export_web(str(tmp_path / name), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_refuses_levels_by_themselves(tmp_path: Path) -> None:
    pyramid = load_model("tissue")
    assert isinstance(pyramid, Ladder)
    pyramid[1].save_pretrained(tmp_path / "level")
    with pytest.raises(InputError, match="it is told a picture that is not there; use the whole pyramid"):
        export_web(str(tmp_path / "level"), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_refuses_folders_of_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        export_web("tissue-texture", tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"other files \(thesis.txt\)"):
            export_web("tissue-texture", tmp_path / "mine", overwrite=overwrite)
    (tmp_path / "empty").mkdir()
    export_web("tissue-texture", tmp_path / "empty")
    export_web("tissue-texture", tmp_path / "empty")  # the same again
    renamed = str(shutil.copytree(find_model("tissue-texture"), tmp_path / "renamed"))
    with pytest.raises(InputError, match="title was tissue-texture, is renamed"):
        export_web(renamed, tmp_path / "empty")
    export_web(renamed, tmp_path / "empty", overwrite=True)
    (tmp_path / "empty" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="export did not write"):
        export_web("tissue-texture", tmp_path / "empty")


@pytest.mark.slow
def test_the_command(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("export", "tissue-texture", "--to", "web", tmp_path / "page")
    assert done.code == 0 and "serve it" in done.out
    wrong = cli("export", "tissue-texture", "--to", "paper", tmp_path / "page")
    assert wrong.code == 2 and "--to paper" in wrong.err


def test_where_nothing_can_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "page"
    refused("export", "tissue-texture", "--to", "web", out, says=[str(out), "cannot be written"])
